"""Where pixels are, and how to read a feature map there.

Every grid of n pixels spans [-1, 1]; coordinates are (y, x). The order of the floating-point operations below is part
of the definition: the algebraically equal ``-1 + (2 i + 1) / n`` moves ties (x1.5, x2.5, x3.5 have many) to another
pixel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Frame(NamedTuple):
    """The part of an image-sized grid that a map covers, so that a map cut into windows is read at the same places.

    Attributes:
        size: (h, w) of the whole grid, in pixels.
        origin: (y, x) of the map's first pixel in that grid.
    """

    size: tuple[int, int]
    origin: tuple[int, int] = (0, 0)


def pixel_centers(n: int, start: int = 0, stop: int | None = None, *, device=None, dtype=torch.float32) -> Tensor:
    """Centres of the pixels start ... stop - 1 of a grid of n pixels, (stop - start,), in [-1, 1]."""
    index = torch.arange(start, n if stop is None else stop, device=device, dtype=dtype)
    return index * (2 / n) + (-1 + 1 / n)


def make_coord(size: tuple[int, int], rows=(0, None), cols=(0, None), *, device=None, dtype=torch.float32) -> Tensor:
    """(y, x) centres of the pixels rows x cols of a grid of that size, row by row: (num_rows * num_cols, 2)."""
    y = pixel_centers(size[0], *rows, device=device, dtype=dtype)
    x = pixel_centers(size[1], *cols, device=device, dtype=dtype)
    return torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1).flatten(0, 1)


def numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """A vector of these numbers, of the dtype and on the device of ``like``. Unlike ``new_tensor`` it is made without
    waiting for a GPU.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def nearest_index(coord: Tensor, n: int) -> Tensor:
    """Index of the pixel whose centre is nearest to coord, on a grid of n; ties go to the even index."""
    return (((coord + 1) * n - 1) / 2).round().long().clamp(0, n - 1)


def sampling_position(coord: Tensor, n: int) -> Tensor:
    """Position of coord on the pixel axis of a grid of n: 0 is the first centre, n - 1 the last.

    One fused multiply-add, as in torch's vectorised ``grid_sample``: unfused, the position is off by 1e-4 at n = 200.
    """
    return ((coord + 1).double() * (n / 2) - 0.5).to(coord.dtype)


def read_pixels(feat: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Reads a map (B, C, h, w) at integer pixels y, x (B, ...), which broadcast -> (B, ..., C)."""
    height, width = feat.shape[-2:]
    batch = torch.arange(feat.shape[0], device=feat.device).view(-1, *[1] * (y.dim() - 1))
    index = (batch * height + y) * width + x
    # An embedding reads rows and adds into rows on the way back: deterministic and fast, which indexing is not.
    return F.embedding(index, feat.flatten(2).transpose(1, 2).flatten(0, 1))


def bilinear_taps(coord: Tensor, frame: Frame, axis: int, length: int, padding: str) -> list[tuple[Tensor, Tensor]]:
    """The two pixels beside each coordinate along one axis, as (index into the window, weight) pairs."""
    n, start = frame.size[axis], frame.origin[axis]
    position = sampling_position(coord, n)
    if padding == 'border':
        position = position.clamp(0, n - 1)
    low = position.floor()
    pairs = []
    for index, weight in ((low.long(), low + 1 - position), (low.long() + 1, position - low)):
        weight = weight * ((index >= 0) & (index < n))
        # Only taps of weight 0 lie outside the window; the clamp keeps their read legal.
        pairs.append(((index - start).clamp(0, length - 1), weight))
    return pairs


def sample_bilinear(feat: Tensor, coord: Tensor, frame: Frame, padding: str = 'zeros') -> Tensor:
    """Reads a map between its pixels.

    Args:
        feat: (B, C, h, w), the window of the grid that ``frame`` describes; it must hold every pixel that is read.
        coord: (B, Q, 2), (y, x) in [-1, 1].
        padding: 'zeros': taps outside the grid count as 0 (weights are not renormalised); 'border': they repeat the
            edge.

    Returns:
        Tensor: (B, Q, C).
    """
    rows = bilinear_taps(coord[..., 0], frame, 0, feat.shape[2], padding)
    cols = bilinear_taps(coord[..., 1], frame, 1, feat.shape[3], padding)
    out = torch.zeros((), dtype=feat.dtype, device=feat.device)
    for y, wy in rows:
        for x, wx in cols:
            out = out + (wy * wx).unsqueeze(-1).to(feat.dtype) * read_pixels(feat, y, x)
    return out


def upsample_bilinear(
    feat: Tensor, frame: Frame, size: tuple[int, int], rows=(0, None), cols=(0, None), padding: str = 'zeros'
) -> Tensor:
    """Reads a map at the pixel centres rows x cols of a finer grid: :func:`sample_bilinear`, one axis at a time.

    Args:
        feat: (B, C, h, w), the window of the grid that ``frame`` describes.

    Returns:
        Tensor: (B, C, num_rows, num_cols).
    """
    for axis, bounds in ((0, rows), (1, cols)):
        centers = pixel_centers(size[axis], *bounds, device=feat.device, dtype=torch.float32)
        out = torch.zeros((), dtype=feat.dtype, device=feat.device)
        for index, weight in bilinear_taps(centers, frame, axis, feat.shape[2 + axis], padding):
            shape = (-1, 1) if axis == 0 else (-1,)
            out = out + weight.to(feat.dtype).view(shape) * feat.index_select(2 + axis, index)
        feat = out
    return feat


def gather_grid(feat: Tensor, coord: Tensor, frame: Frame, grid_size: int) -> Tensor:
    """Reads the local grid around the pixel nearest to each query; pixels outside the image read as 0.

    Args:
        feat: (B, C, h, w), the window of the grid that ``frame`` describes; it must hold every pixel of the local
            grids.
        coord: (B, Q, 2), (y, x) in [-1, 1].
        grid_size: G, odd: side of the local grid in pixels.

    Returns:
        Tensor: (B, Q, G * G, C), y slow and x fast.
    """
    r = grid_size // 2
    padded = F.pad(feat, (r, r, r, r))
    offset = torch.arange(grid_size, device=feat.device)
    y = nearest_index(coord[..., 0], frame.size[0]).unsqueeze(-1) + offset - frame.origin[0]  # (B, Q, G)
    x = nearest_index(coord[..., 1], frame.size[1]).unsqueeze(-1) + offset - frame.origin[1]
    return read_pixels(padded, y.unsqueeze(-1), x.unsqueeze(-2)).flatten(2, 3)


def relative_coord(coord: Tensor, frame: Frame, grid_size: int) -> Tensor:
    """Distances from each query to the pixels of its local grid; one pixel of that grid is 2 units.

    Args:
        coord: (B, Q, 2), (y, x) in [-1, 1].

    Returns:
        Tensor: (B, Q, G, 2): [..., i, 0] is the distance in y to the grid's row i, [..., i, 1] in x to its column i.
    """
    return torch.stack([relative_axis(coord[..., axis], frame, grid_size, axis) for axis in (0, 1)], dim=-1)


def relative_axis(coord: Tensor, frame: Frame, grid_size: int, axis: int) -> Tensor:
    """:func:`relative_coord` along one axis (0 is y): coord (...) -> (..., G)."""
    r, n = grid_size // 2, frame.size[axis]
    center = nearest_index(coord, n).to(coord.dtype) * (2 / n) + (-1 + 1 / n)
    offset = torch.arange(-r, r + 1, device=coord.device, dtype=coord.dtype) * (2 / n)
    position = center.unsqueeze(-1) + offset
    return (coord.unsqueeze(-1) - position) * n
