"""Times the CUDA kernels, and the networks on them, against what this GPU can copy and multiply.

    python scripts/benchmarks/gpu.py kernels networks

Times are medians of CUDA events after a warm-up. A kernel's bytes count each of its inputs and outputs once, its
operations are those of its formula; both are least amounts. The networks need BasicSR; without it only the kernels are
timed, which need torch alone.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F

from clit_basicsr.ops import backends, cuda_backend, use_backend
from clit_basicsr.ops.axes import convolution_taps, make_axis
from clit_basicsr.ops.coords import Frame
from clit_basicsr.ops.reference import PositionalBias

# A training batch of LIT: patches, their side in pixels, queries per patch; C, H, G, outputs of the first layer.
BATCH, SIDE, QUERIES = 32, 48, 2304
CHANNELS, HEADS, GRID, OUTPUTS = 256, 8, 7, 256
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}
PICTURE = (1356, 2040)


def seconds(function: Callable[[], object], repeats: int = 10) -> float:
    """Median time of a call."""
    for _ in range(2):
        function()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, stop in events:
        start.record()
        function()
        stop.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(stop) for start, stop in events) / 1e3


def shares(function: Callable[[], object]) -> dict[str, float]:
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
    source = torch.randn(1 << 28, device='cuda')
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds(partial(target.copy_, source))
    a, b = (torch.randn(8192, 8192, device='cuda', dtype=dtype) for _ in range(2))
    return copied, 2 * 8192**3 / seconds(partial(torch.mm, a, b))


def size_of(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, (tuple, list)) else 0


def workloads(dtype: torch.dtype) -> dict[str, tuple[Callable, tuple, float]]:
    """Name -> (function's name, arguments, operations) of a training batch and of a part of a picture."""
    gen = torch.Generator('cuda').manual_seed(0)

    def randn(*size, factor=1.0):
        return (torch.randn(*size, device='cuda', generator=gen) * factor).to(dtype)

    total, window = BATCH * QUERIES, GRID * GRID * CHANNELS
    query, k, v = randn(BATCH, QUERIES, CHANNELS), *(randn(BATCH, SIDE, SIDE, CHANNELS) for _ in range(2))
    tables = [torch.randn(BATCH, QUERIES, GRID, HEADS, device='cuda', generator=gen) for _ in range(2)]
    place = [torch.randint(0, SIDE, (BATCH, QUERIES), device='cuda', generator=gen) for _ in range(2)]
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
    maps = [randn(1, 64, 512, CHANNELS) for _ in range(3)]
    packed = cuda_backend.pack(weight, HEADS, GRID)
    bias = PositionalBias(
        *(torch.randn(*size, device='cuda', generator=gen) for size in ((10,), (HEADS, 40), (HEADS,)))
    )
    for ratio in (3, 4):
        size = (64 * ratio, 512 * ratio)
        axes = [
            make_axis(axis, Frame((64, 512)), n, n * ratio, (0, n * ratio), GRID, HEADS, bias, offset)
            for axis, n in enumerate((64, 512))
        ]
        shared = 2 * 64 * 512 * window * OUTPUTS + 2 * size[0] * size[1] * GRID * GRID * HEADS * OUTPUTS
        found[f'dense first layer x{ratio}'] = ('dense_linear', (*maps, packed, offset, *axes), shared)
    return found


def time_kernels() -> list[str]:
    lines = [
        '| kernel | type | ms | GB/s | of copy | TFLOP/s | of product | torch / cuda | our kernels, ms |',
        '|---' * 9 + '|',
    ]
    for label, dtype in DTYPES.items():
        copied, multiplied = ceilings(dtype)
        lines.append(f'| ceilings | {label} | | {copied / 1e9:.0f} | | {multiplied / 1e12:.1f} | | | |')
        for title, (name, arguments, operations) in workloads(dtype).items():
            call = {b: partial(getattr(backends.module(b), name), *arguments) for b in ('cuda', 'torch')}
            took, bytes_least = seconds(call['cuda']), size_of(arguments) + size_of(call['cuda']())
            plain = seconds(call['torch'], repeats=2)
            parts = ', '.join(f'{kernel} {spent * 1e3:.2f}' for kernel, spent in shares(call['cuda']).items())
            moved, rate = bytes_least / took, operations / took
            cells = [title, label, f'{took * 1e3:.3f}', f'{moved / 1e9:.0f}', f'{moved / copied:.0%}']
            cells += [f'{rate / 1e12:.1f}', f'{rate / multiplied:.0%}', f'{plain / took:.1f}x', parts]
            lines.append(f'| {" | ".join(cells)} |')
            print(lines[-1], flush=True)
    return lines


def attempt(function: Callable[[], object], repeats: int) -> str:
    """Milliseconds and peak memory in GB, as two cells of the table."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        took = seconds(function, repeats)
    except torch.cuda.OutOfMemoryError:
        return 'out of memory | '
    return f'{took * 1e3:.1f} | {(torch.cuda.max_memory_allocated() - before) / 1e9:.2f}'


def step_of(net, scales: tuple[float, ...], half: bool) -> Callable[[], None]:
    """A training step's forward and backward pass."""
    size = round(SIDE * torch.tensor(scales, dtype=torch.float64).prod().item())
    lq, gt = torch.rand(BATCH, 3, SIDE, SIDE, device='cuda'), torch.rand(BATCH, QUERIES, 3, device='cuda')
    pixel = torch.randint(0, size, (BATCH, QUERIES, 2), device='cuda')
    coord, cell = -1 + 1 / size + 2 / size * pixel.float(), torch.full((BATCH, 2), 2 / size, device='cuda')

    def step() -> None:
        net.zero_grad(set_to_none=True)
        with torch.autocast('cuda', torch.bfloat16, enabled=half):
            out = net(lq, coord, cell, scales)
        F.l1_loss(out.float(), gt).backward()

    return step


def time_networks() -> list[str]:
    try:
        import cases
    except ImportError as e:
        return [f'The networks are not timed: {e}']
    lines = ['| workload | type | backend | ms | peak memory, GB |', '|---' * 5 + '|']

    def add(title: str, label: str, backend: str, function: Callable[[], object], repeats: int) -> None:
        with use_backend(backend):
            lines.append(f'| {title} | {label} | {backend} | {attempt(function, repeats)} |')
        print(lines[-1], flush=True)

    net = cases.network().cuda()
    for scales in ((2.5,), (2.5, 2.5, 1.5)):
        title = f'training step, {len(scales)} branches, batch {BATCH}'
        for label, half in (('fp32', False), ('bf16 autocast', True)):
            for backend in ('cuda', 'torch', 'reference'):
                if backend == 'cuda' or len(scales) == 1:
                    add(title, label, backend, step_of(net, scales, half), 10 if backend == 'cuda' else 1)
    net.eval()
    for ratio in (2, 3, 4, 12, 30):
        lq = torch.rand(1, 3, *(-(-n // ratio) for n in PICTURE), device='cuda')
        for label, half in (('fp32', False), ('bf16 autocast', True)):
            for backend in ('cuda', 'torch') if ratio == 4 else ('cuda',):

                def picture(lq=lq, half=half) -> None:
                    with torch.no_grad(), torch.autocast('cuda', torch.bfloat16, enabled=half):
                        net.upscale(lq, size=PICTURE)

                title = f'picture x{ratio}, {PICTURE[1]} x {PICTURE[0]}'
                add(title, label, backend, picture, 3 if backend == 'cuda' else 1)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='+', choices=['kernels', 'networks'])
    parser.add_argument('--tf32', action='store_true', help='let products in single precision run as TF32')
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(f'no GPU here: torch {torch.__version__} finds no CUDA device')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    lines = [f'{torch.cuda.get_device_name()}, torch {torch.__version__}, TF32 {"on" if args.tf32 else "off"}']
    for what in args.what:
        lines += ['', *(time_kernels() if what == 'kernels' else time_networks())]
    print('\n'.join(['', *lines]))


if __name__ == '__main__':
    main()
