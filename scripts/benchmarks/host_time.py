"""Times what the host does for the CUDA backend, without a GPU: its kernels are counted instead of launched.

    python scripts/benchmarks/host_time.py [--repeats 9]

prints CPU milliseconds, and how often each kernel of ours and torch's own operations would be launched:

picture   the first layer of a picture of 2040 x 1356 by LIT, C = 256, H = 8, G = 7. The maps have no channels and the
          layer 16 outputs, packed beforehand, so that torch's operations take the time of their calls alone; the
          queries, and with them tables, tiles and launches, are those of the real picture.
step      forward and backward pass of the attention and the first layer of LIT, a batch of 32 patches with 2304 queries
          each. Every size is a fraction, and so is the constant of the backend: all loops make as many passes as for
          the real step in half precision.

The time of a launch itself is not contained, 3 to 5 us each on most machines.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))
import cases
from measure import timed

from clit_basicsr.ops import operators, use_backend
from clit_basicsr.ops.attention.dense import dense_first_layer
from clit_basicsr.ops.attention.reference import Head, Linear, PositionalBias
from clit_basicsr.ops.backends import contract, cuda_backend
from clit_basicsr.ops.geometry.coords import Bounds, Frame, Piece
from clit_basicsr.ops.registration import functions

# The enlarged picture (H, W), and the batch of the training step, as in gpu.py.
PICTURE, BATCH = (1356, 2040), 32
RATIOS = (2, 3, 4)
# Channels, heads, side of the window; outputs of the first layer here.
CHANNELS, HEADS, GRID, OUTPUTS = 256, 8, 7, 16
# The training step: channels, side of the window, and which part of the queries and of the patch's sides there is.
SMALL_CHANNELS, SMALL_GRID, QUERIES_PART, SIDE_PART = 8, 3, 16, 12


class EmptyMaps:
    """In place of :class:`~clit_basicsr.ops.attention.rows.MapRows`: q, k and v without channels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.window, self.target = size, Frame(size)

    def runs(self) -> None:
        return None

    def make(self, rows: Bounds, cols: Bounds) -> Iterator[Tensor]:
        for _ in range(3):
            yield torch.empty(1, 0, rows[1] - rows[0], cols[1] - cols[0], dtype=torch.bfloat16)


class Launches(Counter):
    """Of our kernels, by name; a tile of the dense kernels is two."""

    def run(self, name: str, *arguments) -> None:
        if name == 'dense_linear':
            height, width = arguments[18:20]
            pieces = arguments[8], arguments[13]  # of rows and columns
            name = 'dense_attention and dense_linear'
            self[name] += math.prod(math.ceil(len(p) / n) for p, n in zip(pieces, (height, width), strict=True))
        else:
            self[name] += 1


class Operations(TorchDispatchMode):
    """Counts torch's operations that would launch something on a GPU, within our operators too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in functions:
            with self:
                return functions[func](*args, **(kwargs or {}))
        self.count += not func.is_view and 'empty' not in func.name()
        return func(*args, **(kwargs or {}))


@contextmanager
def without_a_gpu() -> Iterator[Launches]:
    """The backend 'cuda' takes CPU tensors as if they were a GPU's, and counts its launches."""
    launches = Launches()
    stand_ins = {
        'unavailable': lambda device=None: None,
        'reason': lambda call: None,
        'run': launches.run,
        'tuning': lambda device: contract.Tuning.make(torch.device('cuda'), cuda_backend.SHARING_PAYS),
    }
    before = {name: getattr(cuda_backend, name) for name in stand_ins}
    for name, value in stand_ins.items():
        setattr(cuda_backend, name, value)
    try:
        with use_backend('cuda'):
            yield launches
    finally:
        for name, value in before.items():
            setattr(cuda_backend, name, value)


def picture(ratio: float) -> Callable[[], None]:
    """The first layer of all queries of a picture."""
    maps = EmptyMaps((math.ceil(PICTURE[0] / ratio), math.ceil(PICTURE[1] / ratio)))
    weight = torch.zeros(OUTPUTS, GRID**2 * CHANNELS, dtype=torch.bfloat16)
    layer = Linear(weight, weight.new_zeros(OUTPUTS))
    bias = PositionalBias(torch.ones(1), torch.zeros(HEADS, 4), torch.zeros(HEADS))
    head, piece = Head(HEADS, GRID, bias), Piece(PICTURE, (0, PICTURE[0]), (0, PICTURE[1]))

    packed = cuda_backend.pack(weight, HEADS, GRID)
    cuda_backend.pack = lambda *_: packed

    @torch.no_grad()
    def run() -> None:
        for _ in dense_first_layer(maps, piece, layer, head, 'cuda'):  # type: ignore[arg-type]
            pass

    return run


def step() -> Callable[[], None]:
    """Forward and backward pass of the attention and of the first layer; scales the constant of :mod:`cuda_backend`."""
    queries, side, positions = cases.QUERIES // QUERIES_PART, cases.SIDE // SIDE_PART, SMALL_GRID**2
    maps, query = torch.zeros(BATCH, side, side, SMALL_CHANNELS), torch.zeros(BATCH, queries, SMALL_CHANNELS)
    table, weight = torch.zeros(BATCH, queries, SMALL_GRID, 1), torch.zeros(SMALL_CHANNELS, positions * SMALL_CHANNELS)
    place = [torch.randint(0, side, (BATCH, queries)) for _ in range(2)]
    share = 2 * SMALL_CHANNELS * positions / (CHANNELS * GRID**2) / QUERIES_PART  # 2: single precision for half
    cuda_backend.SCATTERED_BYTES = int(cuda_backend.SCATTERED_BYTES * share)
    leaves = [t.requires_grad_() for t in (query, maps, table, weight)]

    def run() -> None:
        attention = operators.attention(query, maps, table, table, *place, 'cuda')
        out = operators.attend_linear(attention, maps, weight, *place, 'cuda')
        torch.autograd.grad(out.sum(), leaves)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    workloads: dict[str, Callable[[], Callable[[], None]]] = {f'picture x{r}': partial(picture, r) for r in RATIOS}
    workloads[f'step, batch {BATCH}'] = step
    print('| what | host ms, median and least | launches of ours | of torch |\n|---|---|---|---|')
    with without_a_gpu() as launches:
        for title, make in workloads.items():
            function = make()
            function()
            samples = [timed(function).cpu * 1e3 for _ in range(args.repeats)]
            launches.clear()
            with Operations() as operations:
                function()
            named = ', '.join(f'{name} {count}' for name, count in sorted(launches.items()))
            print(f'| {title} | {median(samples):.1f}, {min(samples):.1f} | {named} | {operations.count} |', flush=True)


if __name__ == '__main__':
    main()
