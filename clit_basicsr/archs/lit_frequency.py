"""LIT's branch with the frequency block and the local ensemble, which the cascade does without."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clit_basicsr.archs.implicit import MAX_QUERIES, relative_cell
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops import PositionalBias
from clit_basicsr.ops.attention.reference import positional_bias
from clit_basicsr.ops.geometry.coords import Frame, gather_grid, nearest_index, sample_bilinear
from clit_basicsr.ops.geometry.ensemble import ensemble_neighbors


class FrequencyBlock(nn.Module):
    """The spectrum of the features on the local grid, its phases shifted by the query's distance from each position.

    Source: sections 1 and 5 of the CLIT paper, and the authors' ``lit.py``.

    Args:
        in_dim (int): Channels of the features.
        dims (int): P, numbers per position of the grid: real and imaginary parts of P / 2 frequencies.
        scale (float): The frequencies are 2^linspace(0, scale, P / 4) - 1, for y and for x.
    """

    freqs: Tensor

    def __init__(self, in_dim: int, dims: int, scale: float) -> None:
        super().__init__()
        if dims < 4 or dims % 4:
            raise UserError(f'frequency_dims must be a multiple of 4; got {dims}.')
        self.conv = nn.Conv2d(in_dim, dims // 2, 3, 1, 1)
        self.register_buffer('freqs', 2 ** torch.linspace(0, scale, dims // 4) - 1, persistent=False)

    def forward(self, feat: Tensor, point: Tensor, dx: Tensor, frame: Frame) -> Tensor:
        """What a position of the grid tells beside its value.

        Args:
            feat: (B, P / 2, h, w), what ``conv`` made of the features.
            point: (B, Q, 2), the point whose nearest pixel is the centre of the grid.
            dx: (B, Q, G, 2) from :func:`grid_distances`.

        Returns:
            Tensor: (B, Q, G * G, P), real and imaginary parts in turns.
        """
        grid = dx.shape[2]
        local = gather_grid(feat, point, frame, grid).unflatten(2, (grid, grid))  # (B, Q, G, G, P / 2)
        spectrum = torch.fft.fft2(local.float(), dim=(2, 3), norm='ortho')
        y = dx[..., 0].unsqueeze(3).unsqueeze(-1) * self.freqs  # (B, Q, G, 1, P / 4)
        x = dx[..., 1].unsqueeze(2).unsqueeze(-1) * self.freqs  # (B, Q, 1, G, P / 4)
        shape = (*spectrum.shape[:-1], len(self.freqs))
        angle = torch.cat((y.expand(shape), x.expand(shape)), dim=-1)
        shifted = spectrum * torch.complex(angle.cos(), angle.sin())
        return torch.view_as_real(shifted).flatten(4).flatten(2, 3)


def grid_distances(coord: Tensor, point: Tensor, frame: Frame, grid_size: int) -> Tensor:
    """As :func:`relative_coord`, from ``coord`` to the grid around the pixel nearest to ``point``: (B, Q, G, 2)."""
    r = grid_size // 2
    distances = []
    for axis, n in enumerate(frame.size):
        center = nearest_index(point[..., axis], n).to(coord.dtype) * (2 / n) + (-1 + 1 / n)
        offset = torch.arange(-r, r + 1, device=coord.device, dtype=coord.dtype) * (2 / n)
        distances.append((coord[..., axis, None] - (center.unsqueeze(-1) + offset)) * n)
    return torch.stack(distances, dim=-1)


class FrequencyBranch(nn.Module):
    """Local attention, frequency block and decoder over one feature map.

    Args:
        in_dim (int): Channels of the features.
        dim (int): Channels C of q, k and v.
        num_heads, grid_size, hidden_dims, local_attention, cell, aggregation, frequency_dims, frequency_scale,
            local_ensemble: See :class:`clit_basicsr.archs.lit_arch.LIT`.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        num_heads: int,
        grid_size: int,
        hidden_dims: Sequence[int],
        local_attention: bool,
        cell: bool,
        aggregation: str,
        frequency_dims: int,
        frequency_scale: float,
        local_ensemble: bool,
    ) -> None:
        super().__init__()
        if frequency_dims and aggregation != 'flatten':
            raise UserError('the frequency block needs aggregation: flatten.')
        self.num_heads, self.grid_size = num_heads, grid_size if local_attention else 1
        self.cell, self.aggregation, self.local_ensemble = cell, aggregation, local_ensemble
        self.conv_q = nn.Conv2d(in_dim, dim, 3, 1, 1) if local_attention else None
        self.conv_k = nn.Conv2d(in_dim, dim, 3, 1, 1) if local_attention else None
        self.conv_v = nn.Conv2d(in_dim, dim, 3, 1, 1)
        self.frequency_block = FrequencyBlock(in_dim, frequency_dims, frequency_scale) if frequency_dims else None
        positions = 1 if aggregation == 'sum' else self.grid_size**2
        self.decoder = build_mlp(
            positions * (dim + frequency_dims) + (2 if cell else 0), hidden_dims, activation=nn.GELU
        )

    def backend(self, z: Tensor, coord: Tensor | None = None) -> str:
        """Plain torch alone knows this branch."""
        return 'reference'

    def forward(self, z: Tensor, frame: Frame, coord: Tensor, cell: Tensor, bias: PositionalBias | None) -> Tensor:
        """Values at the queries, in units of the published domain (x - 0.5) / 0.5, without the skip connection.

        Args:
            z: (B, in_dim, h, w), features: the window of their grid that ``frame`` describes.
            coord: (B, Q, 2).
            cell: (B, 2) or (B, Q, 2).

        Returns:
            Tensor: (B, Q, 3).
        """
        convs = (self.conv_q, self.conv_k, self.conv_v, self.frequency_block and self.frequency_block.conv)
        maps = [None if conv is None else conv(z) for conv in convs]
        size = relative_cell(cell, coord, frame) if self.cell else coord[..., :0]
        step = max(1, MAX_QUERIES // coord.shape[0])
        out = []
        for start in range(0, coord.shape[1], step):
            part = slice(start, start + step)
            # The local grids of all queries of a training batch would take gigabytes: they are made again for the
            # backward pass.
            out.append(checkpoint(self._answer, *maps, coord[:, part], size[:, part], bias, frame, use_reentrant=False))
        return torch.cat(out, dim=1)

    def attention(self, z: Tensor, frame: Frame, coord: Tensor, bias: PositionalBias | None, _: None = None) -> Tensor:
        """Equation (6) at the queries, (B, Q, H, G, G).

        Raises:
            UserError: the branch has no local attention, or asks four local grids for each query.
        """
        if self.conv_q is None or self.conv_k is None:
            raise UserError('the network was built with local_attention: false; there are no weights to show.')
        if self.local_ensemble:
            raise UserError('with local_ensemble four local grids answer each query; there is no one map to show.')
        dx = grid_distances(coord, coord, frame, self.grid_size)
        weights = self._attention(self.conv_q(z), self.conv_k(z), coord, dx, bias, frame)
        return weights.transpose(2, 3).unflatten(3, (self.grid_size, self.grid_size))

    def _answer(
        self,
        q: Tensor | None,
        k: Tensor | None,
        v: Tensor,
        f: Tensor | None,
        coord: Tensor,
        cell: Tensor,
        bias: PositionalBias | None,
        frame: Frame,
    ) -> Tensor:
        out = torch.zeros_like(coord[..., :1])
        for point, _, weight in ensemble_neighbors(coord, frame, self.local_ensemble):
            dx = grid_distances(coord, point, frame, self.grid_size)
            value = gather_grid(v, point, frame, self.grid_size)  # (B, Q, G * G, C)
            if q is not None and k is not None:
                weights = self._attention(q, k, point, dx, bias, frame)
                value = value * weights.repeat_interleave(q.shape[1] // self.num_heads, dim=-1)
            if self.aggregation == 'sum':
                value = value.sum(dim=2, keepdim=True)
            if self.frequency_block is not None and f is not None:
                value = torch.cat((value, self.frequency_block(f, point, dx, frame)), dim=-1)
            out = out + weight * self.decoder(torch.cat((value.flatten(2), cell), dim=-1))
        return out

    def _attention(
        self, q: Tensor, k: Tensor, point: Tensor, dx: Tensor, bias: PositionalBias | None, frame: Frame
    ) -> Tensor:
        """Equation (6): (B, Q, G * G, H)."""
        # With the ensemble a pixel answers, with its own q; without it the query, whose q lies between the pixels'.
        query = gather_grid(q, point, frame, 1).squeeze(2) if self.local_ensemble else sample_bilinear(q, point, frame)
        key = gather_grid(k, point, frame, self.grid_size).unflatten(-1, (self.num_heads, -1))
        logits = torch.einsum('bqhc,bqghc->bqgh', query.unflatten(-1, (self.num_heads, -1)), key) / key.shape[-1] ** 0.5
        if bias is not None:
            logits = logits + positional_bias(dx, bias)
        return F.softmax(logits, dim=2)
