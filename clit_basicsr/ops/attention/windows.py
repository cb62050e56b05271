"""Local attention on upsampled features at few queries: of the upsampled maps only what the queries read is made.

Convolution and upsampling commute: a pixel of conv3x3(upsample(z)) is the sum over the nine taps of the products
W_tap z, made at the resolution of z and interpolated bilinearly. The products are made once, for every scale; a query
then needs G x G pixels of k and v, however fine the upsampled grid is.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops.attention.local import attend, bias_tables
from clit_basicsr.ops.attention.reference import Head, Linear
from clit_basicsr.ops.geometry.axes import upsampling_taps
from clit_basicsr.ops.geometry.coords import Frame, nearest_index
from clit_basicsr.ops.geometry.sampling import bilinear_taps
from clit_basicsr.ops.upsampled import Conv, Upsampling

# Bytes of the products that the queries of one pass read: bounds the memory, does not change the result.
PASS_BYTES = 32 << 20


class TapProducts(NamedTuple):
    """The products of q, k and v at the resolution of the features: 27 C numbers per LR pixel, whatever the scale.

    Attributes:
        products: (B, h, w, 3, 3, 3 C), y tap, x tap, then the channels of q, k and v.
        bias: (3 C,).
    """

    products: Tensor
    bias: Tensor

    @classmethod
    def make(cls, z: Tensor, convs: Sequence[Conv]) -> 'TapProducts':
        """From features (B, C, h, w) and the convolutions of q, k and v."""
        weight = torch.cat([conv.weight for conv in convs])  # (3 C, C, 3, 3)
        taps = weight.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None]  # one 1 x 1 convolution for all taps
        products = F.conv2d(z, taps).permute(0, 2, 3, 1).unflatten(-1, (3, 3, len(weight)))
        return cls(products.contiguous(), torch.cat([conv.bias for conv in convs]))


def window_attention(
    maps: TapProducts,
    upsampling: Upsampling,
    coord: Tensor,
    head: Head,
    layer: Linear,
    cell: Tensor | None,
    backend: str,
) -> Tensor:
    """:func:`~clit_basicsr.ops.attention.local.local_attention` on q, k and v of the upsampled features.

    Args:
        maps: from :meth:`TapProducts.make`.
        upsampling: the fine grid.
        coord, cell, layer: see :func:`~clit_basicsr.ops.attention.local.attend`.

    Returns:
        Tensor: (B, Q, O).
    """
    batch, _, width = maps.products.shape[:3]
    flat = coord.flatten(0, 1)  # (B * Q, 2)
    image = torch.arange(batch, device=coord.device).repeat_interleave(coord.shape[1])
    lengths = maps.products.shape[1:3]
    spans = [_span(upsampling, axis, head.grid_size, lengths[axis]) for axis in (0, 1)]
    step = max(1, PASS_BYTES // (4 * math.prod(spans) * maps.products[0, 0, 0].numel()))
    table = maps.products.flatten(0, 2).flatten(1)  # a row for each LR pixel
    out = []
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        y, x = (_axis_windows(flat[part, i], upsampling, i, head.grid_size, (lengths[i], spans[i])) for i in (0, 1))
        row = image[part, None] * lengths[0] + y.pixels  # (m, n)
        index = row.unsqueeze(2) * width + x.pixels.unsqueeze(1)
        products = F.embedding(index, table).unflatten(-1, maps.products.shape[3:])  # (m, n, n, 3, 3, 3 C)
        query, k, v = _interpolate(products, maps.bias, y, x, head.grid_size)
        tables = bias_tables(flat[None, part], upsampling.target, head, query)
        own = None if cell is None else cell.flatten(0, 1)[None, part]
        out.append(attend(query, (k, v), tables, _middles(len(query[0]), head.grid_size, flat), layer, own, backend))
    return torch.cat(out, dim=1).view(*coord.shape[:2], -1)


class _AxisWindows(NamedTuple):
    """One axis of the windows of m queries.

    Attributes:
        pixels: (m, n), the LR pixels that a window reads.
        matrix: (m, P, 3, n), from their products to the P fine pixels around the nearest, tap by tap.
        inside: (m, P), 1 for fine pixels inside the grid, 0 outside, where k and v are 0.
        query: (m, 3, n), the same for q at the query itself; ``query_inside``: (m,), its weight inside the grid.
    """

    pixels: Tensor
    matrix: Tensor
    inside: Tensor
    query: Tensor
    query_inside: Tensor


def _span(upsampling: Upsampling, axis: int, grid_size: int, length: int) -> int:
    """The most LR pixels that a window reads along an axis."""
    distance = (2 * max(grid_size // 2, 1) + 2) * upsampling.source.size[axis] / upsampling.target.size[axis]
    return min(length, math.ceil(distance + 1e-3) + 2)  # so that rounding cannot lose the last tap


def _axis_windows(
    coord: Tensor, upsampling: Upsampling, axis: int, grid_size: int, sizes: tuple[int, int]
) -> _AxisWindows:
    """coord: (m,). sizes: LR pixels of the map, and of a window."""
    (length, span), n_fine = sizes, upsampling.target.size[axis]
    r = max(grid_size // 2, 1)  # q is interpolated between neighbours, also where the local grid is one pixel
    nearest = nearest_index(coord, n_fine).unsqueeze(-1)
    fine = nearest + torch.arange(-r, r + 1, device=coord.device)  # (m, P)
    inside = ((fine >= 0) & (fine < n_fine)).to(coord.dtype)
    taps = fine.unsqueeze(-1) + torch.arange(-1, 2, device=coord.device)  # (m, P, 3)
    index, weight = upsampling_taps(taps, axis, upsampling.source, length, n_fine, upsampling.padding)
    first = index.flatten(1).amin(1).view(-1, 1, 1, 1)
    place = (index - first).clamp(max=span - 1)
    matrix = weight.new_zeros(*taps.shape, span).scatter_add_(-1, place, weight * inside[..., None, None])
    (low, w0), (high, w1) = bilinear_taps(coord, Frame(upsampling.target.size), axis, n_fine, 'zeros')
    pair = torch.stack((low, high), dim=1) - nearest + r  # (m, 2), places among the fine pixels
    weights = torch.stack((w0, w1), dim=1)
    both = matrix.gather(1, pair[..., None, None].expand(-1, -1, *matrix.shape[2:]))
    pixels = (first.view(-1, 1) + torch.arange(span, device=coord.device)).clamp(max=length - 1)
    return _AxisWindows(pixels, matrix, inside, (both * weights[..., None, None]).sum(1), weights.sum(1))


def _interpolate(
    products: Tensor, bias: Tensor, y: _AxisWindows, x: _AxisWindows, grid_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q (1, m, C) at the queries; k and v of their windows side by side in one map, (1, G, m * G, C) each."""
    channels = len(bias) // 3
    query_y, query_x, rows, cols = (t.to(products.dtype) for t in (y.query, x.query, y.matrix, x.matrix))
    partial = torch.einsum('mtj,mjitsc->misc', query_y, products[..., :channels])
    query = torch.einsum('msi,misc->mc', query_x, partial)
    query = query + (y.query_inside * x.query_inside).unsqueeze(1).to(query.dtype) * bias[:channels]
    first = rows.shape[1] // 2 - grid_size // 2
    grid = slice(first, first + grid_size)
    partial = torch.einsum('mgtj,mjitsc->mgisc', rows[:, grid], products[..., channels:])
    maps = torch.einsum('mhsi,mgisc->gmhc', cols[:, grid], partial)
    inside = y.inside[:, grid].t().unsqueeze(2) * x.inside[:, grid]  # (G, m, G)
    maps = (maps + inside.unsqueeze(-1).to(maps.dtype) * bias[channels:]).flatten(1, 2).unsqueeze(0)
    k, v = (part.contiguous() for part in maps.chunk(2, dim=-1))
    return query.unsqueeze(0), k, v


def _middles(count: int, grid_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the middle of each window in the map of :func:`_interpolate`, (1, m) each."""
    x = torch.arange(count, device=like.device).unsqueeze(0) * grid_size + grid_size // 2
    return torch.full_like(x, grid_size // 2), x
