"""Convolution over upsampled features: equation (8) and the convolutions after it, without the upsampled features."""

from typing import NamedTuple

import torch
from torch import Tensor

from clit_basicsr.ops import operators
from clit_basicsr.ops.attention.local import channels_last
from clit_basicsr.ops.geometry.axes import convolution_taps
from clit_basicsr.ops.geometry.coords import Bounds, Frame
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


def narrowed(
    upsampling: Upsampling, part: tuple[Bounds, Bounds], lengths: tuple[int, int]
) -> tuple[Upsampling, tuple[Bounds, Bounds]]:
    """Some rows and columns of the window, and those of the source that they read.

    Args:
        part: rows and columns, counted from the window's own first.
        lengths: rows and columns of the source's window.

    Returns:
        The narrower upsampling, whose source begins at the first pixel that is read, and the bounds of what is.
    """
    source, target = upsampling.source, upsampling.target
    firsts, read = [], []
    for axis, (start, stop) in enumerate(part):
        bounds = (target.origin[axis] + start, target.origin[axis] + stop)
        taps = convolution_taps(
            axis, source, lengths[axis], target.size[axis], bounds, upsampling.padding, torch.empty(0)
        )
        low, high = int(taps[0].min()), int(taps[0].max())
        firsts.append((source.origin[axis] + low, bounds[0]))
        read.append((low, high + 1))
    (source_y, target_y), (source_x, target_x) = firsts
    (y0, y1), (x0, x1) = part
    narrow = Upsampling(
        Frame(source.size, (source_y, source_x)),
        Frame(target.size, (target_y, target_x)),
        (y1 - y0, x1 - x0),
        upsampling.padding,
    )
    return narrow, (read[0], read[1])
