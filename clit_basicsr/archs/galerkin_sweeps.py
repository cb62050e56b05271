"""Pictures of the networks with Galerkin blocks: each sweep over a picture, in chunks of queries that share LR pixels.

All queries between the same four LR pixels - a cell - read the same four features. What is linear in them is therefore
made at LR resolution: with A_j f_j for the four pixels of a cell, a query's share is a row of nine numbers (four
weights, two numbers of its row, two of its column, 1) times a matrix of nine rows. A chunk is a rectangle of cells.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.galerkin_block import GalerkinBlock
from clit_basicsr.archs.implicit import Tiles
from clit_basicsr.archs.sizes import lr_range
from clit_basicsr.ops.geometry.coords import Bounds, Piece, in_larger, pixel_centers
from clit_basicsr.ops.geometry.ensemble import axis_neighbors, opposite_areas

# Queries of a chunk, on a processor and on a GPU: what is made of them stays in the cache, or fills the device.
CPU_CHUNK, GPU_CHUNK = 2048, 65536
# HR pixels per side of the blocks whose maps are made together: bounds the memory.
BLOCK = 256
# Of an axis, see AxisCells.alike: cells at the edges of a picture have fewer queries than all others at whole scales.
MOST_STRETCHES = 3
# Features of tiles are kept from sweep to sweep up to this size; if they are larger, each sweep encodes anew.
KEPT_BYTES = 2**29


class OnCells(Protocol):
    """What :func:`chunks` needs of a network; see :class:`clit_basicsr.archs.galerkin.GalerkinNet`."""

    pixel: float

    @property
    def reach(self) -> int: ...

    def prepare_maps(self, feat: Features, scales) -> Any: ...

    def corner_maps(self, prepared: Prepared) -> tuple[Tensor, Tensor | None]: ...

    def axis_table(self, low: Tensor, n: int) -> list[Tensor]: ...


class KeptTiles:
    """Tiles that are asked for several times, whose features are kept if there are few."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.kept: list[tuple[Features, Piece]] | None = []
        self.whole = False

    def __call__(self) -> Iterator[tuple[Features, Piece]]:
        if self.whole and self.kept is not None:
            yield from self.kept
            return
        for feat, piece in self.tiles():
            if self.kept is not None:
                self.kept.append((feat, piece))
                maps = {id(one): one.nbytes for feat, _ in self.kept for one in (feat.z, feat.lq)}
                self.kept = None if sum(maps.values()) > KEPT_BYTES else self.kept
            yield feat, piece
        self.whole = True


class Chunk(NamedTuple):
    """Queries of a rectangle of cells, n of a cell, all of them or, where cells have fewer, some repeated.

    Attributes:
        corners: (4, cells, C), the features at the four pixels: (low, low), (low, high), (high, low), (high, high).
        statistics: (4, cells, S), other numbers of these pixels, or None.
        weights: (4, cells, n), their shares.
        row, col: per query (cells, n), numbers of its row and of its column: (2, ...) each, or more.
        valid: which of the cells * n queries are no repetitions; None: all.
        rows, cols: HR pixels of the valid queries.
        coord: (1, Q, 2), their places in the frame of the features.
    """

    corners: Tensor
    statistics: Tensor | None
    weights: Tensor
    row: Tensor
    col: Tensor
    valid: Tensor | None
    rows: Tensor
    cols: Tensor
    coord: Tensor

    def linear(self, matrix: Tensor, own: Tensor) -> Tensor:
        """What is linear in the corners and in numbers of each query: (Q, O), for the valid queries.

        Args:
            matrix: (O, 4 C + P): what is applied to the four weighted corners, and to the P numbers.
            own: (4 + P, cells, n), the factors of the four corners, and the P numbers of each query.
        """
        channels, count = self.corners.shape[-1], self.corners.shape[1]
        parts = matrix[:, : 4 * channels].unflatten(1, (4, channels)).permute(1, 2, 0)  # (4, C, O)
        maps = matrix.new_empty(count, len(own), len(matrix))
        maps[:, 4:] = matrix[:, 4 * channels :].t()
        for corner, part, target in zip(self.corners, parts, maps.unbind(1), strict=False):
            torch.mm(corner, part, out=target)
        out = (own.permute(1, 2, 0) @ maps).flatten(0, 1)
        return out if self.valid is None else out.index_select(0, self.valid)


class Folded:
    """A network on a picture; see :meth:`clit_basicsr.archs.galerkin.GalerkinNet.folded`. x0, x1, x2 are never formed.

    Nothing non-linear stands between what makes x0 and the layers that project it, so with g1 = GELU(M1 x0 + m1) and g2
    = GELU(M2 x1 + m2), x1 = x0 + o2 g1 and x2 = x1 + o2' g2 enter a layer P as (P X) u + (P o2) g1 + (P o2') g2, where
    x0 = X u. Products of weights are made in float64.

    Args:
        blocks: all of the network.
        means: of the first blocks, (H, d, d) each.
        x0: X (C, K), float64; the last of the K numbers u is 1.
        end: weight and bias, float64, of the layer that x2 goes into; it is the one that makes k and v of the next
            block where a block's mean is not known.
        dtype: to compute in.
    """

    def __init__(
        self,
        blocks: Sequence[GalerkinBlock],
        means: list[Tensor],
        x0: Tensor,
        end: tuple[Tensor, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.known = len(means)
        self.block = blocks[self.known] if self.known < len(blocks) else None
        layers = [query_layer(block, mean) for block, mean in zip(blocks, means, strict=False)]
        layers.append(end if self.block is None else key_value_layer(self.block))
        maps, self.steps = [], []
        outs = [(block.out2.weight.double(), block.out2.bias.double()) for block in blocks[: self.known]]
        for i, (matrix, bias) in enumerate(layers):
            before = outs[:i]
            on_x0 = matrix @ x0
            on_x0[:, -1] += bias + sum((matrix @ b for _, b in before), start=torch.zeros_like(bias))
            maps.append(on_x0.to(dtype))
            self.steps.append([(matrix @ weight).t().to(dtype).contiguous() for weight, _ in before])
        self.sizes = [len(matrix) for matrix in maps]
        self.matrix = torch.cat(maps)  # (O, K): all that u is multiplied with

    def run(self, product: Tensor) -> Tensor:
        """The last layer's result from ``matrix`` u, (Q, O), which is overwritten."""
        hidden: list[Tensor] = []
        for part, matrices in zip(product.split(self.sizes, dim=1), self.steps, strict=True):
            for g, matrix in zip(hidden, matrices, strict=True):
                part = part.addmm_(g, matrix)
            hidden.append(F.gelu(part) if len(hidden) < self.known else part)
        return hidden[-1]

    def keys_values(self, chunk: Chunk) -> Tensor:
        """k and v (Q, 2 C) of the next block, see :func:`key_value_layer`."""
        raise NotImplementedError

    def values(self, chunk: Chunk) -> Tensor:
        """The decoder's values, (Q, 3)."""
        raise NotImplementedError


class Sums:
    """The sum of k^T v over a picture, in float64 across chunks.

    Norms are applied to the sums: with k = g k' + b, k' normalised and g, b the norm's own, the sum of k^T v follows
    from those of k'^T v', k' and v'.
    """

    def __init__(self, folded: Folded) -> None:
        self.folded, self.count = folded, 0
        self.products: Tensor | float = 0.0
        self.sums: Tensor | float = 0.0

    def add(self, chunk: Chunk) -> None:
        block = self.folded.block
        assert block is not None
        t = self.folded.keys_values(chunk).view(len(chunk.rows), 2, block.num_heads, -1)
        t /= block.k_norm.spread(t)
        self.count += len(t)
        k, v = t.unbind(1)  # (Q, H, d)
        self.products = self.products + (k.permute(1, 2, 0) @ v.transpose(0, 1)).double()
        self.sums = self.sums + (t.new_ones(1, len(t)) @ t.flatten(1)).double().view(2, block.num_heads, -1)

    def mean(self) -> Tensor:
        """(H, d, d), float64."""
        block = self.folded.block
        assert block is not None and isinstance(self.products, Tensor) and isinstance(self.sums, Tensor)
        norms = block.k_norm, block.v_norm
        (gk, gv), (bk, bv) = (
            [getattr(norm, name).double().view(-1, 1, self.products.shape[-1]) for norm in norms]
            for name in ('weight', 'bias')
        )  # (H or 1, 1, d)
        k, v = (one.unsqueeze(1) / self.count for one in self.sums)  # (H, 1, d)
        column = [x.transpose(1, 2) for x in (gk, bk, k)]
        mean = column[0] * gv * (self.products / self.count)
        return mean + column[0] * column[2] * bv + column[1] * (gv * v) + column[1] * bv


def key_value_layer(block: GalerkinBlock) -> tuple[Tensor, Tensor]:
    """Weight (2 C, C) and bias (2 C,), float64, of k and v of all heads, minus the mean over each head's channels."""
    out = []
    for x in (block.qkv.weight, block.qkv.bias):
        heads = x.double().unflatten(0, (block.num_heads, 3, -1))[:, 1:].transpose(0, 1)  # (2, H, d, ...)
        out.append((heads - heads.mean(dim=2, keepdim=True)).flatten(0, 2))
    return out[0], out[1]


def query_layer(block: GalerkinBlock, mean: Tensor) -> tuple[Tensor, Tensor]:
    """o1(x + q KV) as one layer of x: weight (C, C) and bias (C,), float64. ``mean``: (H, d, d)."""
    weight, bias = (
        x.double().unflatten(0, (block.num_heads, 3, -1))[:, 0].flatten(0, 1)
        for x in (block.qkv.weight, block.qkv.bias)
    )
    o1 = block.out1.weight.double()
    attention = o1 @ torch.block_diag(*mean.double().transpose(1, 2))
    return o1 + attention @ weight, attention @ bias + block.out1.bias.double()


class AxisCells(NamedTuple):
    """One axis of a block of a picture, cut where the pixels on both sides change.

    Attributes:
        low, high: (cells,), the pixels on both sides, counted in the window.
        members: (cells, m), places in the block; the last one is repeated where there are fewer than m.
        inside: (cells, m), whether a member is no repetition.
        table: (2 or more, n), numbers of each place: distances to the low and to the high pixel, and the network's own.
        coord: (n,), in the frame of the features.
        first: the block's first HR pixel.
    """

    low: Tensor
    high: Tensor
    members: Tensor
    inside: Tensor
    table: Tensor
    coord: Tensor
    first: int

    @classmethod
    def of(cls, net: OnCells, axis: int, feat: Features, n_hr: int, bounds: Bounds) -> 'AxisCells':
        """HR pixels bounds[0] ... bounds[1] - 1 of an axis of n_hr. All is made on the CPU, in eager fp32."""
        n, coord = feat.frame.size[axis], pixel_centers(n_hr, *bounds)
        if feat.image_size != feat.frame.size:
            coord = in_larger(coord, feat.image_size[axis] / n)
        low, high = axis_neighbors(coord, n, net.pixel)
        table = torch.stack((low.dx, high.dx, *net.axis_table(low.dx, n)))
        cell = low.nearest * (n + 1) + high.nearest
        start = torch.cat(
            (torch.tensor([0]), (cell[1:] != cell[:-1]).nonzero().flatten() + 1, torch.tensor([len(cell)]))
        )
        places = start[:-1, None] + torch.arange(int((start[1:] - start[:-1]).max()))
        inside = places < start[1:, None]
        members = torch.minimum(places, start[1:, None] - 1)
        origin, first = feat.frame.origin[axis], start[:-1]
        return cls(low.nearest[first] - origin, high.nearest[first] - origin, members, inside, table, coord, bounds[0])

    def part(self, start: int, stop: int) -> 'AxisCells':
        """Cells start ... stop - 1."""
        low, high, members, inside = (x[start:stop] for x in (self.low, self.high, self.members, self.inside))
        return self._replace(low=low, high=high, members=members, inside=inside)

    def alike(self) -> list['AxisCells']:
        """The axis in stretches of cells with equally many members, or whole where those would be short."""
        count = self.inside.sum(dim=1)
        start = torch.cat((torch.tensor([0]), (count.diff() != 0).nonzero().flatten() + 1)).tolist()
        if len(start) > MOST_STRETCHES:
            return [self]
        parts = [self.part(*bounds) for bounds in pairwise([*start, len(count)])]
        most = [int(one.inside.sum(dim=1).max()) for one in parts]
        return [
            one._replace(members=one.members[:, :n], inside=one.inside[:, :n])
            for one, n in zip(parts, most, strict=True)
        ]


@torch.no_grad()
def chunks(net: OnCells, feat: Features, piece: Piece) -> Iterator[Chunk]:
    """All queries of a piece of a picture, exactly once; ``feat``: of one image, in single precision at least."""
    size, reach = piece.size, net.reach if feat.image_size == feat.frame.size else net.reach + 1
    for y0 in range(*piece.rows, BLOCK):
        for x0 in range(*piece.cols, BLOCK):
            rows, cols = (y0, min(y0 + BLOCK, piece.rows[1])), (x0, min(x0 + BLOCK, piece.cols[1]))
            window = feat.crop(
                lr_range(feat.image_size[0], size[0], *rows, reach), lr_range(feat.image_size[1], size[1], *cols, reach)
            )
            axes = (
                AxisCells.of(net, 0, window, size[0], rows),
                AxisCells.of(net, 1, window, size[1], cols),
            )
            yield from _block(net, window, *axes)


def _block(net: OnCells, feat: Features, y: AxisCells, x: AxisCells) -> Iterator[Chunk]:
    maps, statistics = net.corner_maps(Prepared(feat, net.prepare_maps(feat, None)))
    maps = maps[0].permute(1, 2, 0).contiguous()  # (h, w, C)
    limit = CPU_CHUNK if maps.device.type == 'cpu' else GPU_CHUNK
    for row in y.alike():
        for col in x.alike():
            cells = max(1, limit // (row.members.shape[1] * col.members.shape[1]))
            cols = math.ceil(len(col.low) / math.ceil(len(col.low) / cells))  # of equal size, as far as possible
            rows = max(1, cells // cols)
            for top in range(0, len(row.low), rows):
                for left in range(0, len(col.low), cols):
                    yield _chunk(maps, statistics, row.part(top, top + rows), col.part(left, left + cols))


def _chunk(maps: Tensor, statistics: Tensor | None, y: AxisCells, x: AxisCells) -> Chunk:
    device = maps.device
    index = [
        (row.unsqueeze(1) * maps.shape[1] + col).flatten().to(device, non_blocking=True)
        for row in (y.low, y.high)
        for col in (x.low, x.high)
    ]
    corners = torch.stack([maps.flatten(0, 1).index_select(0, one) for one in index])
    if statistics is not None:
        statistics = torch.stack([statistics.index_select(0, one) for one in index])
    # (cells of y, cells of x, members of y, members of x)
    shape = (len(y.low), len(x.low), y.members.shape[1], x.members.shape[1])
    row = y.table[:, y.members].unsqueeze(2).unsqueeze(-1)
    col = x.table[:, x.members].unsqueeze(1).unsqueeze(3)
    weights = torch.stack(opposite_areas((row[0], row[1]), (col[0], col[1])))
    row, col = (t.expand(-1, *shape) for t in (row, col))
    row, col, weights = (t.reshape(len(t), shape[0] * shape[1], -1) for t in (row, col, weights))
    inside = (y.inside[:, None, :, None] & x.inside[None, :, None, :]).flatten()
    places = [t.expand(shape).flatten()[inside] for t in (y.members[:, None, :, None], x.members[None, :, None, :])]
    coord = torch.stack((y.coord[places[0]], x.coord[places[1]]), dim=-1).unsqueeze(0)
    row, col, weights = (t.to(maps, non_blocking=True) for t in (row, col, weights))
    valid = None if bool(inside.all()) else inside.nonzero().flatten().to(device, non_blocking=True)
    rows, cols = (
        (place + axis.first).to(device, non_blocking=True) for place, axis in zip(places, (y, x), strict=True)
    )
    return Chunk(corners, statistics, weights, row, col, valid, rows, cols, coord.to(device, non_blocking=True))
