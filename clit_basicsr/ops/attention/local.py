"""Local attention at any queries: the road of training. Picks the backend and feeds its kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops import backends, operators
from clit_basicsr.ops.attention import reference
from clit_basicsr.ops.attention.reference import PositionalBias
from clit_basicsr.ops.geometry.axes import axis_bias
from clit_basicsr.ops.geometry.coords import Frame, bilinear_taps, nearest_index, relative_axis


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
    backend = backends.select(backend, v, q=q, k=k, coord=coord, aggregation=aggregation)
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
    tables, nearest = [], []
    for axis in (0, 1):
        if bias is None:
            tables.append(v.new_zeros(*coord.shape[:2], grid_size, num_heads))
        else:
            tables.append(axis_bias(relative_axis(coord[..., axis], frame, grid_size, axis), bias, axis))
        nearest.append(nearest_index(coord[..., axis], frame.size[axis]) - frame.origin[axis])
    query = _sample(q, coord, frame)
    attention = operators.attention(query, channels_last(k), *tables, *nearest, backend)
    positions = grid_size * grid_size * v.shape[1]
    out = operators.attend_linear(attention, channels_last(v), weight[:, :positions], *nearest, backend) + weight_bias
    return out if cell is None else out + cell @ weight[:, positions:].t()


def _sample(feat: Tensor, coord: Tensor, frame: Frame) -> Tensor:
    """:func:`~clit_basicsr.ops.geometry.coords.sample_bilinear` in one pass, zeros outside: a query is a bag of four
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
