"""Mirroring an image beyond its edges."""

import torch
from torch import Tensor


def mirror_index(index: Tensor, n: int) -> Tensor:
    """Which of n pixels stands at places beyond 0 ... n - 1 too: ... 1 0 | 0 1 2 | 2 1 0 0 1 ... for n = 3."""
    index = index % (2 * n)
    return torch.where(index < n, index, 2 * n - 1 - index)


def mirror_pad(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Extends (..., h, w) downwards and to the right to (..., H, W), mirrored with the edge pixel repeated."""
    for axis, n in ((-2, size[0]), (-1, size[1])):
        if x.shape[axis] != n:
            x = x.index_select(axis, mirror_index(torch.arange(n, device=x.device), x.shape[axis]))
    return x
