"""MATLAB's ``imresize`` with the bicubic kernel: a = -0.5, symmetric borders, antialiased when shrinking.

It is the yardstick of the papers' tables (row "Bicubic") and the way the published LR images were made. torch's own
bicubic uses a = -0.75 and does not antialias by default: not the same.
"""

import math

import torch
from torch import Tensor

from clit_basicsr.ops.geometry.mirror import mirror_index

KERNEL_WIDTH = 4


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5 at distances x (any shape)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


def contributions(in_size: int, out_size: int, scale: float) -> tuple[Tensor, Tensor]:
    """Which input pixels make each output pixel along one axis, and by how much.

    Args:
        scale: output pixels per input pixel; below 1 the kernel is widened by 1 / scale (antialiasing).

    Returns:
        tuple[Tensor, Tensor]: indices (out_size, P), int64 in [0, in_size), the image being mirrored with its edge
        pixel repeated; weights (out_size, P), float64, each row sums to 1.
    """
    shrink = min(scale, 1.0)
    width = KERNEL_WIDTH / shrink
    taps = math.ceil(width) + 2
    position = (torch.arange(out_size, dtype=torch.float64) + 0.5) / scale - 0.5
    index = (position - width / 2).floor().unsqueeze(1) + torch.arange(taps, dtype=torch.float64)
    weights = cubic(shrink * (position.unsqueeze(1) - index))
    weights = weights / weights.sum(1, keepdim=True)
    index = mirror_index(index.long(), in_size)
    used = (weights != 0).any(0)
    return index[:, used], weights[:, used]


def resize_axis(x: Tensor, axis: int, out_size: int, scale: float | None = None) -> Tensor:
    """Resizes one axis of x (any shape, floating point); see :func:`imresize`.

    Works tap by tap: besides x and the result it holds one array of the result's size.
    """
    if not x.is_floating_point():
        raise TypeError(f'imresize works on floating-point tensors, got {x.dtype=}.')
    axis %= x.dim()
    in_size = x.shape[axis]
    if min(in_size, out_size) < 1:
        raise ValueError(f'cannot resize {in_size} pixels to {out_size}.')
    index, weights = contributions(in_size, out_size, scale or out_size / in_size)
    index = index.to(x.device)
    weights = weights.to(x)
    shape = [-1 if dim == axis else 1 for dim in range(x.dim())]
    out: Tensor | None = None
    for tap in range(index.shape[1]):
        part = x.index_select(axis, index[:, tap])
        weight = weights[:, tap].view(shape)
        out = part * weight if out is None else out.addcmul_(part, weight)
    assert out is not None  # the weights of a pixel sum to 1, so it has at least one tap
    return out


def imresize(x: Tensor, size: tuple[int, int], scale: tuple[float, float] | None = None) -> Tensor:
    """Resizes images as MATLAB's ``imresize`` does in floating point: rows (the vertical axis) first, not clipped.

    Args:
        x: (B, C, H, W), floating point, any range.
        size: (H_out, W_out) in pixels.
        scale: (y, x) output pixels per input pixel; size / (H, W) by default. Give it where the size is a rounded one
            and the exact factor is meant.

    Returns:
        Tensor: (B, C, H_out, W_out), the dtype and device of x.

    Raises:
        TypeError: x is not floating point.
        ValueError: an axis has no pixels.
    """
    scale_y, scale_x = scale or (None, None)
    return resize_axis(resize_axis(x, -2, size[0], scale_y), -1, size[1], scale_x)
