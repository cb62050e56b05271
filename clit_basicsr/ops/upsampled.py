"""Convolution over upsampled features: equation (8) and the convolutions after it, without the upsampled features."""

from typing import NamedTuple

import torch
from torch import Tensor

from clit_basicsr.ops import operators
from clit_basicsr.ops.attention.local import channels_last
from clit_basicsr.ops.geometry.axes import convolution_taps
from clit_basicsr.ops.geometry.coords import Frame
from clit_basicsr.ops.geometry.sampling import upsample_bilinear


class Conv(NamedTuple):
    """A 3 x 3 convolution: weight (O, C, 3, 3) and bias (O,)."""

    weight: Tensor
    bias: Tensor


class Upsampling(NamedTuple):
    """A window of a grid that is finer than the features it is read from.

    Attributes:
        source: the features' frame.
        target: the window's frame: size of the fine grid, first pixel.
        size: (rows, columns) of the window.
        padding: 'zeros' or 'border', see :func:`clit_basicsr.ops.geometry.sampling.upsample_bilinear`.
    """

    source: Frame
    target: Frame
    size: tuple[int, int]
    padding: str = 'zeros'


def upsample(z: Tensor, upsampling: Upsampling) -> Tensor:
    """The upsampled features themselves: (B, C, h, w) -> (B, C, rows, columns)."""
    target = upsampling.target
    rows, cols = ((target.origin[axis], target.origin[axis] + upsampling.size[axis]) for axis in (0, 1))
    return upsample_bilinear(z, upsampling.source, target.size, rows, cols, upsampling.padding)


def upsampled_conv(z: Tensor, weight: Tensor, bias: Tensor, upsampling: Upsampling, backend: str) -> Tensor:
    """conv3x3(upsample(z)), zero padding at the borders of the fine grid.

    Args:
        z: (B, C, h, w).
        weight, bias: (O, C, 3, 3), (O,).
        backend: 'torch', 'cpu' or 'cuda'.

    Returns:
        Tensor: (B, O, rows, columns), channels last in memory.
    """
    taps: list[Tensor] = []
    for axis in (0, 1):
        start = upsampling.target.origin[axis]
        bounds = (start, start + upsampling.size[axis])
        fine, length = upsampling.target.size[axis], z.shape[2 + axis]
        taps += convolution_taps(axis, upsampling.source, length, fine, bounds, upsampling.padding, z)
    out = operators.upsampled_conv(channels_last(z), weight, bias, *taps, backend)
    return out.permute(0, 3, 1, 2)


def narrowed(upsampling: Upsampling, rows: tuple[int, int], length: int) -> tuple[Upsampling, tuple[int, int]]:
    """Some rows of the window, and the rows of the source that they read.

    Args:
        rows: first and one past the last row, counted from the window's own first.
        length: rows of the source's window.

    Returns:
        The narrower upsampling, whose source begins at the first row that is read, and the rows that are.
    """
    source, target = upsampling.source, upsampling.target
    bounds = (target.origin[0] + rows[0], target.origin[0] + rows[1])
    index, _ = convolution_taps(0, source, length, target.size[0], bounds, upsampling.padding, torch.empty(0))
    first, last = int(index.min()), int(index.max())
    narrow = Upsampling(
        Frame(source.size, (source.origin[0] + first, source.origin[1])),
        Frame(target.size, (bounds[0], target.origin[1])),
        (rows[1] - rows[0], upsampling.size[1]),
        upsampling.padding,
    )
    return narrow, (first, last + 1)
