"""Local implicit attention in plain torch: the readable definition that every faster backend is tested against.

Equations (1)-(7) of "Cascaded Local Implicit Transformer for Arbitrary-Scale Super-Resolution" (CVPR 2023).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops.geometry.coords import Frame, relative_coord
from clit_basicsr.ops.geometry.sampling import gather_grid, sample_bilinear


class PositionalBias(NamedTuple):
    """Parameters of the positional bias B = FC(gamma(dx)).

    Attributes:
        freqs: (F,), the frequencies of the encoding gamma.
        weight: (H, 4 F), the fully connected layer; its inputs are [sin(y f), sin(x f), cos(y f), cos(x f)], f fastest.
        bias: (H,).
    """

    freqs: Tensor
    weight: Tensor
    bias: Tensor


class Head(NamedTuple):
    """The attention's shape and its positional bias.

    Attributes:
        num_heads: H; head i owns the channels i C / H ... (i + 1) C / H - 1.
        grid_size: G, odd: side of the local grid in pixels.
        bias: parameters of the positional bias; None for none.
    """

    num_heads: int
    grid_size: int
    bias: PositionalBias | None


class Linear(NamedTuple):
    """A linear layer: weight (O, I) and bias (O,)."""

    weight: Tensor
    bias: Tensor


def positional_bias(dx: Tensor, params: PositionalBias) -> Tensor:
    """Equations (4) and (5): one value per position and head from the relative coordinates.

    Args:
        dx: (B, Q, G, 2) from :func:`relative_coord`.

    Returns:
        Tensor: (B, Q, G * G, H), y slow and x fast.
    """
    grid = dx.shape[-2]
    y = dx[..., 0].unsqueeze(-1).expand(*dx.shape[:-1], grid)  # (B, Q, G, G): the row's distance, for each column
    x = dx[..., 1].unsqueeze(-2).expand(*dx.shape[:-2], grid, grid)
    angle = (torch.stack((y, x), dim=-1).unsqueeze(-1) * params.freqs).flatten(-2).flatten(2, 3)  # (B, Q, G * G, 2 F)
    return F.linear(torch.cat((angle.sin(), angle.cos()), dim=-1), params.weight, params.bias)


def attention_weights(
    q: Tensor, k: Tensor, coord: Tensor, frame: Frame, num_heads: int, grid_size: int, bias: PositionalBias | None
) -> Tensor:
    """Equation (6): softmax over the local grid of q k^T / sqrt(C / H) + B.

    q is read bilinearly at the query, k at the pixels of the grid; outside the image k = 0, but the position keeps its
    bias.

    Returns:
        Tensor: (B, Q, G * G, H).
    """
    query = sample_bilinear(q, coord, frame).unflatten(-1, (num_heads, -1))  # (B, Q, H, C / H)
    key = gather_grid(k, coord, frame, grid_size).unflatten(-1, (num_heads, -1))  # (B, Q, G * G, H, C / H)
    logits = torch.einsum('bqhc,bqghc->bqgh', query, key) / query.shape[-1] ** 0.5
    if bias is not None:
        logits = logits + positional_bias(relative_coord(coord, frame, grid_size), bias)
    return logits.softmax(dim=2)


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
) -> Tensor:
    """Local attention and the decoder's first linear layer: equations (1)-(7) up to the first activation.

    Args:
        q, k, v: (B, C, h, w), the window of the feature grid that ``frame`` describes. Without q and k there is no
            attention and v is read at the nearest pixel (G = 1).
        coord: (B, Q, 2), HR pixel centres (y, x) in [-1, 1].
        weight, weight_bias: (O, G * G * C [+ 2]), (O,): the first layer of the decoder ('sum': (O, C [+ 2])).
        num_heads: H; head i owns the channels i C / H ... (i + 1) C / H - 1.
        bias: parameters of the positional bias; None for none.
        cell: (B, Q, 2), HR pixel size relative to the feature grid, 2 / (H_hr, W_hr) * (h, w); None if the decoder has
            no cell.
        aggregation: 'flatten' keeps the attention-weighted values of all positions, z in R^(G G x C), as the paper has
            it; 'sum' adds them up.

    Returns:
        Tensor: (B, Q, O).
    """
    if q is None or k is None:
        z = gather_grid(v, coord, frame, 1).flatten(2)
    else:
        attention = attention_weights(q, k, coord, frame, num_heads, grid_size, bias)
        value = gather_grid(v, coord, frame, grid_size).unflatten(-1, (num_heads, -1))  # (B, Q, G * G, H, C / H)
        z = attention.unsqueeze(-1) * value
        z = z.sum(dim=2).flatten(2) if aggregation == 'sum' else z.flatten(2)
    if cell is not None:
        z = torch.cat((z, cell), dim=-1)
    return F.linear(z, weight, weight_bias)
