"""A dense grid of queries cut into pieces and tiles for the CUDA kernels: no kernel is launched here."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# The fields of clit_basicsr.ops.geometry.axes.Axis.
Axis = tuple[Tensor, ...]

# Products of one batch: cuBLAS's kernels may count them along an axis of their grid that ends at 65,535.
MOST_PRODUCTS = 1 << 15


class Line(NamedTuple):
    """One axis of a dense grid of queries in pieces, each the queries of a pixel or as many of them as fit.

    Attributes:
        axis: the fields of :class:`~clit_basicsr.ops.geometry.axes.Axis` behind ``nearest``.
        pixels: (pieces,), the pixel of each piece; ``pixel``: the same on the device.
        edges: (pieces + 1,), where the queries of each piece begin, and their number; ``begin``: the same on the
            device.
        most: the most queries of any piece.
    """

    axis: tuple[Tensor, ...]
    pixels: np.ndarray
    edges: np.ndarray
    pixel: Tensor
    begin: Tensor
    most: int

    @classmethod
    def make(cls, fields: Axis, edges: np.ndarray, pixels: np.ndarray) -> 'Line':
        _, taps, weights, bias = (t.contiguous() for t in fields)
        on_device = [torch.from_numpy(numbers).to(taps.device, non_blocking=True) for numbers in (pixels, edges)]
        return cls((taps, weights.float(), bias.float()), pixels, edges, *on_device, int(np.diff(edges).max()))

    @property
    def cut(self) -> bool:
        """Whether some pixel has several pieces, so that neighbouring pieces need not be neighbouring pixels."""
        return len(self.pixels) > self.pixels[-1] + 1 - self.pixels[0]

    def part(self, pieces: range) -> slice:
        """The queries of these pieces."""
        return slice(int(self.edges[pieces.start]), int(self.edges[pieces.stop]))

    def queries(self) -> tuple[Tensor, Tensor]:
        """Of each query, its piece and its place among that piece's queries."""
        query = torch.arange(int(self.edges[-1]), device=self.begin.device)
        piece = torch.searchsorted(self.begin, query, right=True) - 1
        return piece, query - self.begin[piece]

    def arguments(self, part: range | None = None) -> tuple[Tensor, ...]:
        """The axis, or some of its pieces, as the kernels take it."""
        if part is None:
            return *self.axis, self.pixel, self.begin
        return *self.axis, self.pixel[part.start : part.stop], self.begin[part.start : part.stop + 1]


def make_lines(rows: Axis, cols: Axis, room: int) -> tuple[Line, Line]:
    """The two axes in pieces, any two of which make at most ``room`` queries: whole pixels if possible, else rows
    of one.
    """
    # By numpy, whose calls on arrays of this size take a fraction of torch's.
    nearest_y, nearest_x = rows[0].numpy(), cols[0].numpy()
    step_x = max(1, min(room, int(np.diff(_edges(nearest_x)).max())))
    step_y = max(1, room // step_x)
    return Line.make(rows, *_pieces(nearest_y, step_y)), Line.make(cols, *_pieces(nearest_x, step_x))


def _edges(nearest: np.ndarray) -> np.ndarray:
    """Where the queries of each pixel begin, and their number. nearest: (n,), ascending."""
    return np.searchsorted(nearest, np.arange(nearest[0], nearest[-1] + 2))


def _pieces(nearest: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts an axis at every pixel, and within a pixel into equal pieces of ``step`` queries at most: edges
    (pieces + 1,) and pixel (pieces,). A pixel without queries has one piece.
    """
    edges, pixel = _edges(nearest), np.arange(nearest[0], nearest[-1] + 1)
    count = np.diff(edges)
    if count.max() <= step:
        return edges, pixel
    length = -(-count // np.maximum(-(-count // step), 1))
    pieces = np.maximum(-(-count // np.maximum(length, 1)), 1)
    place = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = np.repeat(edges[:-1], pieces) + place * np.repeat(length, pieces)
    return np.append(begin, edges[-1]), np.repeat(pixel, pieces)


def tile_size(y: Line, x: Line, count: int, any_pieces: bool) -> tuple[int, int]:
    """Width and height in pieces of a tile of ``count`` pieces.

    Args:
        any_pieces: whether a tile may have several pieces of a pixel; else it has neighbouring pixels or one piece.
    """
    count = max(1, count if any_pieces else min(count, MOST_PRODUCTS))
    width = 1 if not any_pieces and x.cut else min(len(x.pixels), count)
    return width, 1 if not any_pieces and y.cut else min(len(y.pixels), count // width)


def tiles(batch: int, y: Line, height: int, x: Line, width: int) -> Iterator[tuple[int, range, range]]:
    for b in range(batch):
        for top in range(0, len(y.pixels), height):
            for left in range(0, len(x.pixels), width):
                down = range(top, min(top + height, len(y.pixels)))
                yield b, down, range(left, min(left + width, len(x.pixels)))
