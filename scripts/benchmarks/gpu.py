"""Measures the CUDA kernels, and the networks on them, against what this GPU can copy and multiply.

    python scripts/benchmarks/gpu.py accuracy networks kernels resources [--rows FILE]
    python scripts/benchmarks/gpu.py constants

All parts make rows of one table; without a part its head alone is written. Times are medians of CUDA events after a
warm-up. A kernel's bytes count each of its inputs and outputs once, its operations are those of its formula; both are
least amounts. The networks and the constants need BasicSR; the rest
needs torch alone.
"""

import argparse
import math
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import kernel_checks
import torch

from clit_basicsr.ops import backends, use_backend
from clit_basicsr.ops.attention.reference import PositionalBias
from clit_basicsr.ops.backends import contract, cuda_backend, cuda_device, native, torch_backend, torch_conv
from clit_basicsr.ops.geometry.axes import convolution_taps, make_axis
from clit_basicsr.ops.geometry.coords import Frame

DEVICE = 'cuda'
# A training batch of LIT: patches, their side in pixels, queries per patch; C, H, G, outputs of the first layer.
BATCH, SIDE, QUERIES = 32, 48, 2304
CHANNELS, HEADS, GRID, OUTPUTS = 256, 8, 7, 256
# Pixels of the tile of a picture whose first layer is timed; the enlarged picture that networks make.
TILE, PICTURE = (64, 512), (1356, 2040)
# What finds the ceilings: numbers copied, side of the square matrices.
COPIED, MULTIPLIED = 1 << 28, 8192
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}

COLUMNS = {
    'what': 'what',
    'kind': 'type',
    'ms': 'ms',
    'peak': 'peak GB',
    'moved': 'GB/s',
    'of_copy': 'of copy',
    'rate': 'TFLOP/s',
    'of_product': 'of product',
    'faster_than': 'faster than',
    'remark': 'remark',
}


def row(**cells: str) -> str:
    """A line of the table."""
    return f'| {" | ".join((dict.fromkeys(COLUMNS, "") | cells).values())} |'


def seconds(function: Callable[[], Any], repeats: int = 10) -> float:
    """Median time of a call, after one or two to warm up."""
    for _ in range(min(repeats, 2)):
        function()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, stop in events:
        start.record()
        function()
        stop.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(stop) for start, stop in events) / 1e3


def accuracy() -> Iterator[str]:
    """The worst norm of a difference over the norm, of values and gradients, against float64 from the same inputs."""
    for name in kernel_checks.OPERATORS:
        for dtype in cuda_backend.DTYPES:
            bound = kernel_checks.TOLERANCE[dtype]
            shape = (CHANNELS, HEADS, GRID, OUTPUTS)
            worst = max(kernel_checks.errors(name, dtype, DEVICE, shape=shape, size=(12, 9), queries=300))
            verdict = f'error {worst:.1e}, {"below" if worst < bound else "NOT BELOW"} {bound:.0e}'
            yield row(what=f'{name} and gradients', kind=str(dtype).removeprefix('torch.'), remark=verdict)


def shares(function: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each kernel of ours within one call; the rest is the library's products and torch's own operations."""
    original, events = cuda_backend.run, defaultdict(list)

    def run(name: str, *arguments) -> None:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        original(name, *arguments)
        stop.record()
        events[name].append((start, stop))

    cuda_backend.run = run
    try:
        function()
        torch.cuda.synchronize()
    finally:
        cuda_backend.run = original
    return {name: sum(a.elapsed_time(b) for a, b in pairs) / 1e3 for name, pairs in events.items()}


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes per second of a copy, read and written, and operations per second of a large matrix product."""
    source = torch.randn(COPIED, device=DEVICE)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds(partial(target.copy_, source))
    a, b = (torch.randn(MULTIPLIED, MULTIPLIED, device=DEVICE, dtype=dtype) for _ in range(2))
    return copied, 2 * MULTIPLIED**3 / seconds(partial(torch.mm, a, b))


def size_of(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, (tuple, list)) else 0


def workloads(dtype: torch.dtype) -> dict[str, tuple[str, tuple, float]]:
    """Name -> (function's name, arguments, operations) of a training batch and of a part of a picture."""
    gen = torch.Generator(DEVICE).manual_seed(0)

    def randn(*size, factor=1.0):
        return (torch.randn(*size, device=DEVICE, generator=gen) * factor).to(dtype)

    total, window = BATCH * QUERIES, GRID * GRID * CHANNELS
    query, k, v = randn(BATCH, QUERIES, CHANNELS), *(randn(BATCH, SIDE, SIDE, CHANNELS) for _ in range(2))
    tables = [torch.randn(BATCH, QUERIES, GRID, HEADS, device=DEVICE, generator=gen) for _ in range(2)]
    place = [torch.randint(0, SIDE, (BATCH, QUERIES), device=DEVICE, generator=gen) for _ in range(2)]
    weight, attention = randn(OUTPUTS, window, factor=0.01), randn(BATCH, QUERIES, HEADS, GRID * GRID).softmax(-1)
    grad, first = torch.randn_like(attention), randn(BATCH, QUERIES, OUTPUTS)
    dots, layer = 2 * total * window, 2 * total * window * OUTPUTS
    found = {
        'attention': ('attention', (query, k, *tables, *place), dots),
        'attention, backward': ('attention_backward', (grad, attention, query, k, *place), 2 * dots),
        'first layer': ('attend_linear', (attention, v, weight, *place), layer),
        'first layer, backward': ('attend_linear_backward', (first, attention, v, weight, *place), 2 * layer),
    }
    kernel, offset = randn(CHANNELS, CHANNELS, 3, 3, factor=0.02), randn(CHANNELS)
    for ratio in (2.5, 6.25):
        fine, frame = round(SIDE * ratio), Frame((SIDE, SIDE))
        taps = [convolution_taps(axis, frame, SIDE, fine, (0, fine), 'zeros', offset) for axis in (0, 1)]
        conv = 2 * 9 * k.numel() * CHANNELS
        result = randn(BATCH, fine, fine, CHANNELS)
        found[f'upsampled conv x{ratio}'] = ('upsampled_conv', (k, kernel, offset, *taps), conv)
        found[f'upsampled conv x{ratio}, backward'] = ('upsampled_conv_backward', (result, k, kernel, *taps), 2 * conv)
    maps, bias = [randn(1, *TILE, CHANNELS) for _ in range(3)], randn(OUTPUTS)
    positional = PositionalBias(
        *(torch.randn(*size, device=DEVICE, generator=gen) for size in ((10,), (HEADS, 40), (HEADS,)))
    )
    for ratio in (2, 3, 4, 12):
        axes = [
            make_axis(axis, Frame(TILE), n, n * ratio, (0, n * ratio), GRID, HEADS, positional, weight)
            for axis, n in enumerate(TILE)
        ]
        pixels = TILE[0] * TILE[1]
        shared = 2 * pixels * window * OUTPUTS + 2 * pixels * ratio**2 * GRID * GRID * HEADS * OUTPUTS
        found[f'dense first layer x{ratio}'] = ('dense_linear', (*maps, weight, bias, *axes), shared)
    return found


def prepared(backend: str, name: str, arguments: tuple) -> Callable[[], Any]:
    """A call of :func:`workloads` on a backend, the weights packed as it reads them."""
    module = backends.kernels(backend)
    if name == 'dense_linear':
        arguments = *arguments[:3], module.pack(arguments[3], HEADS, GRID), *arguments[4:]
    return partial(getattr(module, name), *arguments)


def kernels() -> Iterator[str]:
    for label, dtype in DTYPES.items():
        copied, multiplied = ceilings(dtype)
        yield row(what='ceilings', kind=label, moved=f'{copied / 1e9:.0f}', rate=f'{multiplied / 1e12:.1f}')
        for title, (name, arguments, operations) in workloads(dtype).items():
            call = {b: prepared(b, name, arguments) for b in ('cuda', 'torch')}
            took, bytes_least = seconds(call['cuda']), size_of(arguments) + size_of(call['cuda']())
            plain = seconds(call['torch'], repeats=1)
            parts = ', '.join(f'{kernel} {spent * 1e3:.2f}' for kernel, spent in shares(call['cuda']).items())
            yield row(
                what=title,
                kind=label,
                ms=f'{took * 1e3:.3f}',
                moved=f'{bytes_least / took / 1e9:.0f}',
                of_copy=f'{bytes_least / took / copied:.0%}',
                rate=f'{operations / took / 1e12:.1f}',
                of_product=f'{operations / took / multiplied:.0%}',
                faster_than=f'torch {plain / took:.1f}x',
                remark=parts,
            )


def step_of(net, scales: tuple[float, ...], precision: str) -> Callable[[], None]:
    """A training step's forward and backward pass."""
    import cases

    return cases.training_step(net, cases.Training('', BATCH, scales), SIDE, QUERIES, precision)


def picture_of(net, ratio: float, precision: str) -> Callable[[], None]:
    """A whole picture of size PICTURE."""
    from clit_basicsr.archs.precision import in_precision

    lq = torch.rand(1, 3, *(math.ceil(n / ratio) for n in PICTURE), device=DEVICE)

    def picture() -> None:
        with torch.no_grad(), in_precision(precision, lq.device):
            net.upscale(lq, size=PICTURE)

    return picture


def networks() -> Iterator[str]:
    try:
        import cases
    except ImportError as e:
        yield row(what='networks', remark=f'not timed: {e}')
        return
    net = cases.network().to(DEVICE)
    for scales in ((2.5,), (2.5, 2.5, 1.5)):
        title = f'training step, batch {BATCH}, branches: {len(scales)}'
        yield from timed(title, partial(step_of, net, scales), ('fp32', 'tf32', 'bf16'), all_of_them=True)
    net.eval()
    for ratio in (4, 2, 3, 12, 30):
        title = f'picture x{ratio}, {PICTURE[1]} x {PICTURE[0]}'
        kinds = ('fp32', 'tf32', 'bf16') if ratio == 4 else ('bf16', 'fp32')
        yield from timed(title, partial(picture_of, net, ratio), kinds, all_of_them=ratio == 4)


def timed(
    title: str, make: Callable[[str], Callable[[], None]], kinds: tuple[str, ...], all_of_them: bool
) -> Iterator[str]:
    """Rows of a workload in several precisions, on the CUDA kernels and, if all_of_them, on the other backends; these
    not in TF32, which would take a while.
    """
    for kind in kinds:
        before: dict[str, float] = {}
        for backend in ('reference', 'torch', 'cuda') if all_of_them and kind != 'tf32' else ('cuda',):
            with use_backend(backend):
                took, memory = attempt(make(kind), 5 if backend == 'cuda' else 1)
            if took is None:
                yield row(what=title, kind=kind, remark=f'{backend}: out of memory')
                continue
            faster = ', '.join(f'{name} {other / took:.1f}x' for name, other in before.items())
            before[backend] = took
            yield row(
                what=title,
                kind=kind,
                ms=f'{took * 1e3:.1f}',
                peak=f'{memory:.2f}',
                faster_than=faster,
                remark=backend,
            )


def attempt(function: Callable[[], None], repeats: int) -> tuple[float | None, float]:
    """Seconds, None if the memory does not suffice, and the peak of memory beyond what was taken before, in GB."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        took = seconds(function, repeats)
    except torch.cuda.OutOfMemoryError:
        return None, 0
    return took, (torch.cuda.max_memory_allocated() - before) / 1e9


# Constants that decide how much is made together: module, name, multiples of its value, backend, what is timed with it
# (parts of `workloads`, 'picture' at some factor, 'step').
TRIED = [
    (cuda_backend, 'DENSE_BYTES', (0.5, 1, 2, 4), 'cuda', ('picture 2', 'picture 4')),
    (cuda_backend, 'SCATTERED_BYTES', (0.06, 0.25, 1, 4), 'cuda', ('first layer', 'first layer, backward')),
    (cuda_backend, 'GROUP_BYTES', (0.25, 1, 4), 'cuda', ('attention, backward', 'upsampled conv x6.25, backward')),
    (cuda_backend, 'SHARING_PAYS', (0, 1, 100), 'cuda', ('picture 1', 'picture 1.5', 'picture 2', 'picture 3')),
    (contract, 'GPU_BAND_BYTES', (0.5, 1, 2), 'cuda', ('picture 4',)),
    (contract, 'GPU_STEP_QUERIES', (0.5, 1, 2, 4), 'cuda', ('picture 4',)),
    (torch_backend, 'GPU_CHUNK', (0.25, 1, 4), 'torch', ('step',)),
    (torch_backend, 'GPU_TILE', (0.25, 1, 4), 'torch', ('picture 4',)),
    (torch_conv, 'GPU_BLOCK', (0.25, 1, 4), 'torch', ('upsampled conv x6.25',)),
]


def constants() -> Iterator[str]:
    """What the constants of the backends are worth: times with multiples of them, 1 being as it is, all in bf16."""
    import cases

    net, calls = cases.network().to(DEVICE), workloads(torch.bfloat16)

    def call_of(title: str, backend: str) -> Callable[[], None]:
        if title == 'step':
            return step_of(net.train(), (2.5, 2.5), 'bf16')
        if title.startswith('picture'):
            return picture_of(net.eval(), float(title.split()[1]), 'bf16')
        name, arguments, _ = calls[title]
        return prepared(backend, name, arguments)

    for module, name, multiples, backend, titles in TRIED:
        value = getattr(module, name)
        for title in titles:
            with use_backend(backend):
                call = call_of(title, backend)
                for multiple in multiples:
                    setattr(module, name, type(value)(value * multiple))
                    try:
                        took, memory = attempt(call, 3)
                    finally:
                        setattr(module, name, value)
                    cells = {'ms': f'{took * 1e3:.2f}', 'peak': f'{memory:.2f}'} if took else {'ms': 'out of memory'}
                    yield row(what=title, kind='bf16', remark=f'{name} x {multiple}', **cells)


def resources() -> Iterator[str]:
    """What the compiler gave each kernel for this GPU: registers, and bytes of stack, where registers are spilled."""
    tool = shutil.which('cuobjdump', path='/usr/local/cuda/bin') or shutil.which('cuobjdump')
    library = native.find('cuda', cuda_device.gpus())
    if tool is None or library is None:
        yield row(what='registers', remark='not known: cuobjdump is missing' if tool is None else 'no library')
        return
    major, minor = torch.cuda.get_device_capability()
    command = [tool, '--dump-resource-usage', '--gpu-architecture', f'sm_{major}{minor}', str(library)]
    dump = subprocess.run(command, capture_output=True, text=True).stdout
    found = defaultdict(set)
    for name, registers, stack in re.findall(
        r'Function \S*\d([a-z][a-z_]*_kernel)[IE]\S*\s+REG:(\d+) STACK:(\d+)', dump
    ):
        found[name].add((int(registers), int(stack)))
    for name, pairs in sorted(found.items()):
        registers, stack = ([f(pair[i] for pair in pairs) for f in (min, max)] for i in (0, 1))
        remark = f'{registers[0]} to {registers[1]} registers, {stack[0]} to {stack[1]} bytes of stack'
        yield row(what=f'{name}, all types', remark=remark)


PARTS = {part.__name__: part for part in (accuracy, networks, kernels, resources, constants)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', metavar='part', help=', '.join(PARTS))
    parser.add_argument('--rows', metavar='FILE', help='append the rows to this file as they come')
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f'unknown part {", ".join(sorted(unknown))}; the parts are {", ".join(PARTS)}')
    if not torch.cuda.is_available():
        raise SystemExit(f'no GPU here: torch {torch.__version__} finds no CUDA device')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with open(args.rows or os.devnull, 'a') as file:

        def write(line: str) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        if file.tell() == 0:
            write(row(**COLUMNS))
            write('|---' * len(COLUMNS) + '|')
        failed = False
        for part in args.parts:
            for line in PARTS[part]():
                write(line)
                failed |= 'NOT BELOW' in line
    raise SystemExit(failed)


if __name__ == '__main__':
    main()
