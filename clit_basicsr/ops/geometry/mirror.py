"""Mirroring an image beyond its edges."""

import torch
from torch import Tensor


def mirror_index(n: int, size: int, device=None) -> Tensor:
    """Which of n pixels stands at each of the places 0 ... size - 1: 0 1 2 2 1 0 0 1 ... for n = 3."""
    index = torch.arange(size, device=device) % (2 * n)
    return torch.where(index < n, index, 2 * n - 1 - index)


def mirror_pad(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Continues (..., h, w) downwards and to the right up to (..., H, W), mirrored with the edge pixel repeated."""
    for axis, n in ((-2, size[0]), (-1, size[1])):
        if x.shape[axis] != n:
            x = x.index_select(axis, mirror_index(x.shape[axis], n, x.device))
    return x
