"""Local attention at any queries, as training needs it: selects the backend and feeds its kernels."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops import backends, operators
from clit_basicsr.ops.attention import reference
from clit_basicsr.ops.attention.reference import Head, Linear, PositionalBias
from clit_basicsr.ops.backends.contract import Call
from clit_basicsr.ops.geometry.axes import axis_bias
from clit_basicsr.ops.geometry.coords import Frame, nearest_index, relative_axis
from clit_basicsr.ops.geometry.sampling import bilinear_taps

# Up to this many queries packing the layer's weights for the CPU kernels would take longer than the layer itself.
FEW_QUERIES = 8


def local_attention(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    coord: Tensor,
    frame: Frame,
    weight: Tensor,
    weight_bias: Tensor,
    *,
    num_heads: int = 8,
    grid_size: int = 7,
    bias: PositionalBias | None = None,
    cell: Tensor | None = None,
    aggregation: str = 'flatten',
    backend: str | None = None,
) -> Tensor:
    """Local attention and the decoder's first linear layer: see
    :func:`clit_basicsr.ops.attention.reference.local_attention`.

    Args:
        backend: 'auto', 'reference', 'torch', 'cpu' or 'cuda'; None: the default
            (:func:`clit_basicsr.ops.use_backend`). The fast backends save q, k, v and the attention weights for the
            backward pass and make everything else again.

    Returns:
        Tensor: (B, Q, O).

    Raises:
        UserError: a backend asked for by name cannot run this call, with the cause.
    """
    backend = backends.select(backend, Call(v, q is not None and k is not None, coord, aggregation))
    if q is None or k is None or backend == 'reference':
        return reference.local_attention(
            q,
            k,
            v,
            coord,
            frame,
            weight,
            weight_bias,
            num_heads=num_heads,
            grid_size=grid_size,
            bias=bias,
            cell=cell,
            aggregation=aggregation,
        )
    nearest = [nearest_index(coord[..., axis], frame.size[axis]) - frame.origin[axis] for axis in (0, 1)]
    tables = bias_tables(coord, frame, Head(num_heads, grid_size, bias), v)
    maps = channels_last(k), channels_last(v)
    return attend(_sample(q, coord, frame), maps, tables, nearest, Linear(weight, weight_bias), cell, backend)


def bias_tables(coord: Tensor, frame: Frame, head: Head, like: Tensor) -> list[Tensor]:
    """The shares of y and x in the positional bias of every query, (B, Q, G, H) each; zeros without a bias."""
    if head.bias is None:
        return [like.new_zeros(*coord.shape[:2], head.grid_size, head.num_heads) for _ in range(2)]
    distances = (relative_axis(coord[..., axis], frame, head.grid_size, axis) for axis in (0, 1))
    return [axis_bias(distance, head.bias, axis) for axis, distance in enumerate(distances)]


def attend(
    query: Tensor,
    maps: tuple[Tensor, Tensor],
    tables: Sequence[Tensor],
    nearest: Sequence[Tensor],
    layer: Linear,
    cell: Tensor | None,
    backend: str,
) -> Tensor:
    """Equations (6) and (7) up to the first activation by the operators of a backend.

    Args:
        query: (B, Q, C), q at the queries.
        maps: k and v, (B, h, w, C) each.
        tables: from :func:`bias_tables`.
        nearest: rows and columns, (B, Q) each, of the pixels of the maps nearest to the queries.
        layer: the decoder's first layer, (O, G * G * C [+ 2]) and (O,).
        cell: (B, Q, 2), see :func:`local_attention`.

    Returns:
        Tensor: (B, Q, O).
    """
    k, v = maps
    attention = operators.attention(query, k, *tables, *nearest, backend)
    positions = tables[0].shape[2] ** 2 * v.shape[-1]
    weight = layer.weight[:, :positions]
    few = nearest[0].numel() <= FEW_QUERIES and v.device.type == 'cpu' and not torch.is_grad_enabled()
    if few:
        out = _attend_few(attention, v, weight, *nearest) + layer.bias
    else:
        out = operators.attend_linear(attention, v, weight, *nearest, backend) + layer.bias
    return out if cell is None else out + cell @ layer.weight[:, positions:].t()


def _attend_few(attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The operator ``attend_linear`` by the definition."""
    heads, grid = attention.shape[2], math.isqrt(attention.shape[3])
    batch, height, width, _ = v.shape
    offset = torch.arange(grid, device=v.device) - grid // 2
    rows, cols = (y.unsqueeze(-1) + offset).unsqueeze(-1), (x.unsqueeze(-1) + offset).unsqueeze(-2)
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)  # (B, Q, G, G)
    image = torch.arange(batch, device=v.device).view(-1, 1, 1, 1) * height
    index = (image + rows.clamp(0, height - 1)) * width + cols.clamp(0, width - 1)
    value = F.embedding(index, v.flatten(0, 2)) * inside.unsqueeze(-1)
    value = value.flatten(2, 3).unflatten(-1, (heads, -1)) * attention.transpose(2, 3).unsqueeze(-1)
    return F.linear(value.flatten(2), weight)


def _sample(feat: Tensor, coord: Tensor, frame: Frame) -> Tensor:
    """:func:`~clit_basicsr.ops.geometry.sampling.sample_bilinear` in one pass, zeros outside: a query is a bag of four
    pixels.
    """
    batch, _, height, width = feat.shape
    rows = bilinear_taps(coord[..., 0], frame, 0, height, 'zeros')
    cols = bilinear_taps(coord[..., 1], frame, 1, width, 'zeros')
    image = torch.arange(batch, device=feat.device).view(-1, 1) * height
    index = torch.stack([(image + y) * width + x for y, _ in rows for x, _ in cols], dim=-1).flatten(0, 1)  # (B * Q, 4)
    weight = torch.stack([wy * wx for _, wy in rows for _, wx in cols], dim=-1).flatten(0, 1).to(feat.dtype)
    pixels = channels_last(feat).flatten(0, 2)
    return F.embedding_bag(index, pixels, per_sample_weights=weight, mode='sum').unflatten(0, coord.shape[:2])


def channels_last(feat: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C), as the kernels take it; free where the memory already lies so."""
    return feat.permute(0, 2, 3, 1).contiguous()
