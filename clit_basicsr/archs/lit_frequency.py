"""LIT's branch with the frequency block and the local ensemble, which the cascade does without."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clit_basicsr.archs.implicit import MAX_QUERIES, relative_cell
from clit_basicsr.archs.lit_branch import BranchInput, HeadSpec
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.archs.precision import SingleFrequencies
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops import PositionalBias
from clit_basicsr.ops.attention.reference import positional_bias
from clit_basicsr.ops.decoder import compiled
from clit_basicsr.ops.geometry.coords import Frame, relative_coord
from clit_basicsr.ops.geometry.ensemble import ensemble_neighbors
from clit_basicsr.ops.geometry.sampling import gather_grid, sample_bilinear


class FrequencyBlock(SingleFrequencies):
    """The spectrum of the features on the local grid, its phases shifted by the query's distance from each position.

    Source: sections 1 and 5 of the CLIT paper, and the authors' ``lit.py``.

    Args:
        in_dim (int): Channels of the features.
        dims (int): P, numbers per position of the grid: real and imaginary parts of P / 2 frequencies.
        scale (float): The frequencies are 2^linspace(0, scale, P / 4) - 1, for y and for x.
    """

    def __init__(self, in_dim: int, dims: int, scale: float) -> None:
        super().__init__()
        if dims < 4 or dims % 4:
            raise UserError(f'frequency_dims must be a multiple of 4; got {dims}.')
        self.conv = nn.Conv2d(in_dim, dims // 2, 3, 1, 1)
        self.register_buffer('freqs', 2 ** torch.linspace(0, scale, dims // 4) - 1, persistent=False)

    def forward(self, feat: Tensor, point: Tensor, dx: Tensor, frame: Frame) -> Tensor:
        """What a position of the grid adds to its value.

        Args:
            feat: (B, P / 2, h, w), what ``conv`` made of the features.
            point: (B, Q, 2), the point whose nearest pixel is the centre of the grid.
            dx: (B, Q, G, 2) from :func:`~clit_basicsr.ops.geometry.coords.relative_coord`.

        Returns:
            Tensor: (B, Q, G * G, P), real and imaginary parts interleaved.
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


class FrequencyMaps(NamedTuple):
    """q, k, v and what the frequency block makes of the features, (B, C, h, w) each; None for what is switched off."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor
    frequency: Tensor | None


class FrequencyBranch(nn.Module):
    """Local attention, frequency block and decoder over one feature map.

    Args:
        spec (HeadSpec): See :class:`clit_basicsr.archs.lit_branch.HeadSpec`.
        in_dim (int): Channels of the features.
    """

    def __init__(self, spec: HeadSpec, in_dim: int) -> None:
        super().__init__()
        self.spec, self.grid_size = spec, spec.window
        self.conv_q = nn.Conv2d(in_dim, spec.dim, 3, 1, 1) if spec.local_attention else None
        self.conv_k = nn.Conv2d(in_dim, spec.dim, 3, 1, 1) if spec.local_attention else None
        self.conv_v = nn.Conv2d(in_dim, spec.dim, 3, 1, 1)
        self.frequency_block = None
        if spec.frequency_dims:
            self.frequency_block = FrequencyBlock(in_dim, spec.frequency_dims, spec.frequency_scale)
        self.decoder = build_mlp(spec.decoder_inputs, spec.hidden_dims, activation=nn.GELU)

    def backend(self, z: Tensor, coord: Tensor | None = None) -> str:
        """Only plain torch implements this branch."""
        return 'reference'

    def prepare(self, z: Tensor) -> FrequencyMaps:
        """What :class:`~clit_basicsr.archs.lit_branch.BranchInput` holds as ``maps``."""
        q, k = (None if conv is None else conv(z) for conv in (self.conv_q, self.conv_k))
        frequency = None if self.frequency_block is None else self.frequency_block.conv(z)
        return FrequencyMaps(q, k, self.conv_v(z), frequency)

    def forward(self, source: BranchInput, coord: Tensor, cell: Tensor, bias: PositionalBias | None) -> Tensor:
        """Values at the queries, in the decoder's units, see :func:`clit_basicsr.archs.implicit.to_image`.

        Args:
            coord: (B, Q, 2).
            cell: (B, 2) or (B, Q, 2).

        Returns:
            Tensor: (B, Q, 3).
        """
        maps = source.maps or self.prepare(source.z)
        size = relative_cell(cell, coord, source.frame) if self.spec.cell else coord[..., :0]
        decoder = compiled(self.decoder, source.z)
        step = max(1, MAX_QUERIES // coord.shape[0])
        out = []
        for start in range(0, coord.shape[1], step):
            part = slice(start, start + step)
            # The local grids of all queries of a training batch would take gigabytes: they are made again for the
            # backward pass.
            arguments = (*maps, coord[:, part], size[:, part], bias, source.frame, decoder)
            if torch.is_grad_enabled():
                out.append(checkpoint(self._answer, *arguments, use_reentrant=False))
            else:  # checkpoint would import torch._dynamo
                out.append(self._answer(*arguments))
        return torch.cat(out, dim=1)

    def attention(self, source: BranchInput, coord: Tensor, bias: PositionalBias | None) -> Tensor:
        """Equation (6) at the queries, (B, Q, H, G, G).

        Raises:
            UserError: the branch has no local attention, or has four local grids for each query.
        """
        if self.conv_q is None or self.conv_k is None:
            raise UserError('the network was built with local_attention: false, so it has no weights to show.')
        if self.spec.local_ensemble:
            raise UserError('with local_ensemble four local grids answer each query, so no single map can be shown.')
        dx = relative_coord(coord, source.frame, self.grid_size)
        weights = self._attention(self.conv_q(source.z), self.conv_k(source.z), coord, dx, bias, source.frame)
        return weights.transpose(2, 3).unflatten(3, (self.grid_size, self.grid_size))

    def _answer(self, *arguments: Any) -> Tensor:
        """:meth:`forward` for some of the queries; tensors as separate arguments, which ``checkpoint`` needs."""
        *tensors, coord, cell, bias, frame, decoder = arguments
        q, k, v, f = FrequencyMaps(*tensors)
        out = torch.zeros_like(coord[..., :1])
        for point, _, weight in ensemble_neighbors(coord, frame, self.spec.local_ensemble):
            dx = relative_coord(coord, frame, self.grid_size, point)
            value = gather_grid(v, point, frame, self.grid_size)  # (B, Q, G * G, C)
            if q is not None and k is not None:
                weights = self._attention(q, k, point, dx, bias, frame)
                value = value * weights.repeat_interleave(q.shape[1] // self.spec.num_heads, dim=-1)
            if self.spec.aggregation == 'sum':
                value = value.sum(dim=2, keepdim=True)
            if self.frequency_block is not None and f is not None:
                value = torch.cat((value, self.frequency_block(f, point, dx, frame)), dim=-1)
            out = out + weight * decoder(torch.cat((value.flatten(2), cell), dim=-1))
        return out

    def _attention(
        self, q: Tensor, k: Tensor, point: Tensor, dx: Tensor, bias: PositionalBias | None, frame: Frame
    ) -> Tensor:
        """Equation (6): (B, Q, G * G, H)."""
        # With the ensemble a pixel answers, with its own q; without it the query, whose q lies between the pixels'.
        if self.spec.local_ensemble:
            query = gather_grid(q, point, frame, 1).squeeze(2)
        else:
            query = sample_bilinear(q, point, frame)
        query = query.unflatten(-1, (self.spec.num_heads, -1))
        key = gather_grid(k, point, frame, self.grid_size).unflatten(-1, (self.spec.num_heads, -1))
        logits = torch.einsum('bqhc,bqghc->bqgh', query, key) / key.shape[-1] ** 0.5
        if bias is not None:
            logits = logits + positional_bias(dx, bias)
        return F.softmax(logits, dim=2)
