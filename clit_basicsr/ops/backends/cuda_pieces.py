"""A dense grid of queries cut into pieces and tiles for the CUDA kernels: no kernel is launched here."""

from collections.abc import Iterator
from typing import NamedTuple

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
        pixels: (pieces,), the pixel of each piece, on the CPU; ``pixel``: the same on the device.
        edges: (pieces + 1,), where the queries of each piece begin, and their number, on the CPU; ``begin``: the
            same on the device.
        most: the most queries of any piece.
    """

    axis: tuple[Tensor, ...]
    pixels: Tensor
    edges: Tensor
    pixel: Tensor
    begin: Tensor
    most: int

    @classmethod
    def make(cls, fields: Axis, edges: Tensor, pixels: Tensor, most: int) -> 'Line':
        _, taps, weights, bias = (t.contiguous() for t in fields)
        pixel, begin = (numbers.to(taps.device, non_blocking=True) for numbers in (pixels, edges))
        return cls((taps, weights.float(), bias.float()), pixels, edges, pixel, begin, most)

    @property
    def cut(self) -> bool:
        """Whether some pixel has several pieces, so that neighbouring pieces need not be neighbouring pixels."""
        return self.pixels.shape[0] > int(self.pixels[-1] + 1 - self.pixels[0])

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
    edges_y, edges_x = _edges(rows[0]), _edges(cols[0])
    count_y, count_x = edges_y.diff(), edges_x.diff()
    step_x = max(1, min(room, int(count_x.max())))
    step_y = max(1, room // step_x)
    y, x = _pieces(edges_y, count_y, rows[0][:1], step_y), _pieces(edges_x, count_x, cols[0][:1], step_x)
    return Line.make(rows, *y), Line.make(cols, *x)


def _edges(nearest: Tensor) -> Tensor:
    """Where the queries of each pixel begin, and their number. nearest: (n,), ascending, on the CPU."""
    return torch.searchsorted(nearest.contiguous(), torch.arange(int(nearest[0]), int(nearest[-1]) + 2))


def _pieces(edges: Tensor, count: Tensor, first: Tensor, step: int) -> tuple[Tensor, Tensor, int]:
    """Cuts each pixel's queries into equal pieces of ``step`` at most; a pixel without queries is one piece.

    Args:
        edges, count: (pixels + 1,), where the queries of each pixel begin, and (pixels,), how many they are.
        first: (1,), the first pixel.

    Returns:
        edges (pieces + 1,), pixel of each piece (pieces,), the most queries of any.
    """
    pixel, most = first + torch.arange(count.shape[0]), int(count.max())
    if most <= step:
        return edges, pixel, most
    length = -(-count // (-(-count // step)).clamp(min=1))
    pieces = (-(-count // length.clamp(min=1))).clamp(min=1)
    place = torch.arange(int(pieces.sum())) - torch.repeat_interleave(pieces.cumsum(0) - pieces, pieces)
    begin = torch.repeat_interleave(edges[:-1], pieces) + place * torch.repeat_interleave(length, pieces)
    return torch.cat((begin, edges[-1:])), torch.repeat_interleave(pixel, pieces), int(length.max())


def tile_size(y: Line, x: Line, count: int, any_pieces: bool) -> tuple[int, int]:
    """Width and height in pieces of a tile of ``count`` pieces.

    Args:
        any_pieces: whether a tile may have several pieces of a pixel; else it has neighbouring pixels or one piece.
    """
    count = max(1, count if any_pieces else min(count, MOST_PRODUCTS))
    width = 1 if not any_pieces and x.cut else min(x.pixels.shape[0], count)
    return width, 1 if not any_pieces and y.cut else min(y.pixels.shape[0], count // width)


def tiles(batch: int, y: Line, height: int, x: Line, width: int) -> Iterator[tuple[int, range, range]]:
    for b in range(batch):
        for top in range(0, y.pixels.shape[0], height):
            for left in range(0, x.pixels.shape[0], width):
                down = range(top, min(top + height, y.pixels.shape[0]))
                yield b, down, range(left, min(left + width, x.pixels.shape[0]))
