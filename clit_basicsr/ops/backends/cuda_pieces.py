"""A dense grid of queries cut into pieces and tiles for the CUDA kernels: no kernel is launched here."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
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
        pixels: the pixel of each piece; ``pixel``: the same on the device.
        edges: where the queries of each piece begin, and their number; ``begin``: the same on the device.
        most: the most queries of any piece.
    """

    axis: tuple[Tensor, ...]
    pixels: list[int]
    edges: list[int]
    pixel: Tensor
    begin: Tensor
    most: int

    @classmethod
    def make(cls, fields: Axis, edges: list[int], pixels: list[int]) -> 'Line':
        _, taps, weights, bias = (t.contiguous() for t in fields)
        pixel, begin = (torch.tensor(numbers).to(taps.device, non_blocking=True) for numbers in (pixels, edges))
        most = max(b - a for a, b in pairwise(edges))
        return cls((taps, weights.float(), bias.float()), pixels, edges, pixel, begin, most)

    @property
    def cut(self) -> bool:
        """Whether some pixel has several pieces, so that neighbouring pieces need not be neighbouring pixels."""
        return len(self.pixels) > self.pixels[-1] + 1 - self.pixels[0]

    def part(self, pieces: range) -> slice:
        """The queries of these pieces."""
        return slice(self.edges[pieces.start], self.edges[pieces.stop])

    def queries(self) -> tuple[Tensor, Tensor]:
        """Of each query, its piece and its place among that piece's queries."""
        query = torch.arange(self.edges[-1], device=self.begin.device)
        piece = torch.searchsorted(self.begin, query, right=True) - 1
        return piece, query - self.begin[piece]

    def pieces(self, part: range) -> tuple[Tensor, Tensor]:
        return self.pixel[part.start : part.stop], self.begin[part.start : part.stop + 1]

    def arguments(self, part: range) -> tuple[Tensor, ...]:
        """The axis as the kernel dense_attention takes it."""
        return *self.axis, *self.pieces(part)


def make_lines(rows: Axis, cols: Axis, room: int) -> tuple[Line, Line]:
    """The two axes in pieces, any two of which make at most ``room`` queries: whole pixels if possible, else rows
    of one.
    """
    nearest_y, nearest_x = rows[0].tolist(), cols[0].tolist()
    most = max(Counter(nearest_x).values())
    step_x = max(1, min(room, most))
    step_y = max(1, room // step_x)
    return Line.make(rows, *_pieces(nearest_y, step_y)), Line.make(cols, *_pieces(nearest_x, step_x))


def _pieces(nearest: list[int], step: int) -> tuple[list[int], list[int]]:
    """Cuts an axis at every pixel, and within a pixel into equal pieces of ``step`` queries at most: (edges, pixel of
    each piece).
    """
    edges: list[int] = []
    pixels: list[int] = []
    for pixel in range(nearest[0], nearest[-1] + 1):
        start, stop = bisect_left(nearest, pixel), bisect_left(nearest, pixel + 1)
        begins = range(start, stop, -(-(stop - start) // -(-(stop - start) // step))) if stop > start else [start]
        edges += begins
        pixels += [pixel] * len(begins)
    return [*edges, len(nearest)], pixels


def tile_size(y: Line, x: Line, count: int) -> tuple[int, int]:
    """Width and height in pieces of a tile of ``count`` pieces: neighbouring pixels, or one piece of a pixel."""
    count = max(1, min(count, MOST_PRODUCTS))
    width = 1 if x.cut else min(len(x.pixels), count)
    return width, 1 if y.cut else count // width


def tiles(batch: int, y: Line, height: int, x: Line, width: int) -> Iterator[tuple[int, range, range]]:
    for b in range(batch):
        for top in range(0, len(y.pixels), height):
            for left in range(0, len(x.pixels), width):
                down = range(top, min(top + height, len(y.pixels)))
                yield b, down, range(left, min(left + width, len(x.pixels)))
