"""How much memory there is, and which tiles fit into it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.base.errors import UserError

# What a tile may take on a CPU at most: larger ones are hardly faster. It is a part of what is free, as on GPUs.
CPU_BYTES = 1 << 30
# An encoder holds some maps at a time: about two as wide as its widest, and six as wide as its result (the inputs of
# nested blocks). It takes between a half and 1.1 times of that for EDSR, MSRResNet and RDN, up to 1.8 times for RCAN,
# RRDBNet and SwinIR.
WIDEST_MAPS, PLAIN_MAPS = 2, 6
# The padding of a tile where the encoder's reach is longer, or the whole image. On the networks that
# scripts/benchmarks/tile_seams.py tries, what is farther away changes no 8-bit level.
LONGEST_PAD = 64
# Tiles are as large as the progress bar likes, HR pixels, but not so small that most of the work is their padding.
TILE_HR = 512
SHORTEST_TILE, PADS_PER_TILE = 32, 4
CGROUP = '/sys/fs/cgroup'  # of the container, if there is one
# How torch says that memory has ended in a plain RuntimeError: the CPU's allocator, C++, the GPU's libraries.
FULL = ('DefaultCPUAllocator', 'bad_alloc', 'out of memory', 'ALLOC_FAILED')


class Tiles(NamedTuple):
    """How a picture is cut.

    Attributes:
        size, pad: LR pixels of a tile's side, and of its surroundings that the encoder sees too.
        whole: whether the encoder sees the whole image once, and only the queries go by tiles.
        exact: whether the result is that of a network which sees the whole image.
    """

    size: int
    pad: int
    whole: bool
    exact: bool

    def __str__(self) -> str:
        if self.whole:
            return 'encoded whole'
        smaller = '' if self.exact else ", smaller than the encoder's receptive field"
        return f'tiles of {self.size}+{self.pad} pixels{smaller}'


def device_of(net: nn.Module) -> torch.device:
    """Where a network is; the CPU for one without parameters."""
    return next((parameter.device for parameter in net.parameters()), torch.device('cpu'))


def available_memory(device: torch.device) -> int:
    """Bytes that are free on the device; 4 GB where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    free = 4 << 30
    try:
        with open('/proc/meminfo') as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable'))
        with open(f'{CGROUP}/memory.max') as limit, open(f'{CGROUP}/memory.current') as used:
            free_here = int(limit.read()) - int(used.read())
        with open(f'{CGROUP}/memory.stat') as lines:  # files in the cache, given back where memory is needed
            free_here += sum(int(line.split()[1]) for line in lines if line.startswith('inactive_file '))
        free = min(free, free_here)
    except (OSError, ValueError, StopIteration):  # another system; no container; no limit ('max')
        pass
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of numpy, Pillow or torch says that memory has ended, on the CPU or a GPU."""
    if isinstance(error, RuntimeError):
        return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in FULL)
    return isinstance(error, MemoryError)


@contextmanager
def reporting_full_memory(what: str, remedy: str) -> Iterator[None]:
    """Says in one line that memory has ended.

    Raises:
        UserError: '<what>: there is too little memory for it; <remedy>.'
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f'{what}: there is too little memory for it; {remedy}.') from error


def check_fits(size: tuple[int, int], bytes_per_pixel: int, what: str) -> None:
    """Raises UserError where the CPU has not the memory for ``what``, (H, W) pixels of so many bytes each."""
    needed, free = math.prod(size) * bytes_per_pixel, available_memory(torch.device('cpu'))
    if needed > free:
        raise UserError(
            f'{what} of {size[1]}x{size[0]} pixels needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB is free.'
        )


def plan_tiles(
    net: ImplicitNet, lq_size: tuple[int, int], factors: tuple[float, float], tile: int | None = None
) -> Tiles:
    """Tiles for a picture of size (h, w) that is enlarged by ``factors`` (y, x).

    Args:
        tile: side of the tiles in LR pixels, for the encoder too; None: as large as memory and progress allow, and the
            encoder sees the whole image where it can.
    """
    reach = net.encoder.reach
    needed = max(lq_size) if reach is None else reach + net.reach
    pad = max(min(needed, LONGEST_PAD), net.reach)
    exact = pad >= needed and reach is not None
    if tile is not None:
        return Tiles(tile, pad, False, exact or tile >= max(lq_size))
    device = device_of(net)
    budget = available_memory(device) // (4 if device.type == 'cpu' else 2)
    if device.type == 'cpu':
        budget = min(budget, CPU_BYTES)
    pixels = budget / bytes_per_pixel(net)
    size = max(SHORTEST_TILE, int(TILE_HR / max(factors)))
    if math.prod(lq_size) <= pixels:
        return Tiles(size, max(lq_size), True, True)
    size = max(size, PADS_PER_TILE * pad)
    answer = 2 * 3 * 4 * math.prod(factors)  # bytes of a tile of the result and its rounding, for each LR pixel
    fits = min(math.sqrt(pixels) - 2 * (pad + net.context), math.sqrt(budget / answer))
    return Tiles(max(SHORTEST_TILE, min(size, int(fits))), pad, False, exact)


@torch.no_grad()
def bytes_per_pixel(net: ImplicitNet) -> int:
    """Memory that the features take for each LR pixel while they are computed, about."""
    side, widest = 16, 3

    def measure(layer: nn.Module, inputs: tuple, output: object) -> None:
        nonlocal widest
        for tensor in (*inputs, output):
            if isinstance(tensor, Tensor):
                widest = max(widest, tensor.numel() // side**2)

    hooks = [layer.register_forward_hook(measure) for layer in net.modules()]
    try:
        like = next(net.parameters(), torch.empty(0))
        out = net.extract(torch.zeros(1, 3, side, side, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return 4 * (WIDEST_MAPS * widest + PLAIN_MAPS * out.shape[1])
