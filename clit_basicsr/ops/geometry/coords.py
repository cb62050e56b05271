"""Where pixels are.

Every grid of n pixels spans [-1, 1]; coordinates are (y, x). The order of the floating-point operations below is part
of the definition: the algebraically equal ``-1 + (2 i + 1) / n`` moves ties (x1.5, x2.5, x3.5 have many) to another
pixel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import register_fake

from clit_basicsr.ops.registration import operator


class Frame(NamedTuple):
    """The part of an image-sized grid that a map covers, so that a map cut into windows is read at the same places.

    Attributes:
        size: (h, w) of the whole grid, in pixels.
        origin: (y, x) of the map's first pixel in that grid.
    """

    size: tuple[int, int]
    origin: tuple[int, int] = (0, 0)


# Apple's GPUs have no double precision.
WITHOUT_DOUBLE = ('mps',)
# The first pixel along an axis, and one past the last.
Bounds = tuple[int, int]


class Piece(NamedTuple):
    """The part of an enlarged picture that is asked for.

    Attributes:
        size: (H, W) of the whole picture, in HR pixels.
        rows, cols: the HR pixels of the part.
    """

    size: tuple[int, int]
    rows: Bounds
    cols: Bounds

    def place(self, rows: slice, cols: slice) -> tuple[slice, slice]:
        """Where some rows and columns of the picture stand in the part."""
        y, x = self.rows[0], self.cols[0]
        return slice(rows.start - y, rows.stop - y), slice(cols.start - x, cols.stop - x)


def pixel_centers(n: int, start: int = 0, stop: int | None = None, *, device=None, dtype=torch.float32) -> Tensor:
    """Centres of the pixels start ... stop - 1 of a grid of n pixels, (stop - start,), in [-1, 1]."""
    index = torch.arange(start, n if stop is None else stop, device=device, dtype=dtype)
    return centers_of(index, n) if torch.compiler.is_compiling() else _centers(index, n)


def make_coord(size: tuple[int, int], rows=(0, None), cols=(0, None), *, device=None, dtype=torch.float32) -> Tensor:
    """(y, x) centres of the pixels rows x cols of a grid of that size, row by row: (num_rows * num_cols, 2)."""
    y = pixel_centers(size[0], *rows, device=device, dtype=dtype)
    x = pixel_centers(size[1], *cols, device=device, dtype=dtype)
    return torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1).flatten(0, 1)


def numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """A vector of these numbers, of the dtype and on the device of ``like``. It is made there: the host neither waits
    nor copies anything, which a CUDA graph could not repeat.
    """
    return torch.stack([like.new_full((), value) for value in values])


def exact(coord: Tensor) -> Tensor:
    """Coordinates in double precision; on the CPU where their device has none. ``.to(coord)`` brings results back."""
    return (coord.cpu() if coord.device.type in WITHOUT_DOUBLE else coord).double()


def in_larger(coord: Tensor, ratio: Tensor | float) -> Tensor:
    """Coordinates of the same places in an image that goes on downwards and to the right.

    Args:
        coord: (..., 2) or of one axis, in [-1, 1].
        ratio: the sides of the image in units of those of the larger one, as :func:`exact` gives numbers.
    """
    return ((exact(coord) + 1) * ratio - 1).to(coord)


def nearest_index(coord: Tensor, n: int) -> Tensor:
    """Index of the pixel whose centre is nearest to coord, on a grid of n; ties go to the even index."""
    return nearest_pixel(coord.detach(), n) if torch.compiler.is_compiling() else _nearest(coord, n)


def _nearest(coord: Tensor, n: int) -> Tensor:
    return (((coord + 1) * n - 1) / 2).round().long().clamp(0, n - 1)


def _centers(index: Tensor, n: int) -> Tensor:
    return index * (2 / n) + (-1 + 1 / n)


# The same as operators, which torch.compile leaves as they are: of their parts it would make one kernel, in which a
# product and a sum are rounded once, not twice, and ties would move.


@operator
def nearest_pixel(coord: Tensor, n: int) -> Tensor:
    """See :func:`nearest_index`."""
    return _nearest(coord, n)


@register_fake(nearest_pixel)
def _(coord, n):
    return coord.new_empty(coord.shape, dtype=torch.int64)


@operator
def centers_of(index: Tensor, n: int) -> Tensor:
    """Centres of pixels, see :func:`pixel_centers`; index (...) in floating point."""
    return _centers(index, n)


@register_fake(centers_of)
def _(index, n):
    return index.new_empty(index.shape)


def nearest_center(coord: Tensor, n: int) -> Tensor:
    """Centre of the pixel nearest to coord, on a grid of n pixels; the shape and dtype of coord."""
    return nearest_index(coord, n).to(coord.dtype) * (2 / n) + (-1 + 1 / n)


def relative_coord(coord: Tensor, frame: Frame, grid_size: int, point: Tensor | None = None) -> Tensor:
    """Distances from each query to the pixels of its local grid; one pixel of that grid is 2 units.

    Args:
        coord: (B, Q, 2), (y, x) in [-1, 1].
        grid_size: G, odd: side of the local grid in pixels.
        point: (B, Q, 2), the points whose nearest pixels are the centres of the local grids; None: the queries.

    Returns:
        Tensor: (B, Q, G, 2): [..., i, 0] is the distance in y to the grid's row i, [..., i, 1] in x to its column i.
    """
    point = coord if point is None else point
    distances = [relative_axis(coord[..., axis], frame, grid_size, axis, point[..., axis]) for axis in (0, 1)]
    return torch.stack(distances, dim=-1)


def relative_axis(coord: Tensor, frame: Frame, grid_size: int, axis: int, point: Tensor | None = None) -> Tensor:
    """:func:`relative_coord` along one axis (0 is y): coord and point (...) -> (..., G)."""
    r, n = grid_size // 2, frame.size[axis]
    center = nearest_center(coord if point is None else point, n)
    offset = torch.arange(-r, r + 1, device=coord.device, dtype=coord.dtype) * (2 / n)
    position = center.unsqueeze(-1) + offset
    return (coord.unsqueeze(-1) - position) * n
