"""LIT, the local implicit transformer: one model for every scale from 1 to about 4."""

from collections.abc import Sequence
from typing import cast

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.implicit import (
    MAX_QUERIES,
    Features,
    ImplicitNet,
    LocalAttention,
    relative_cell,
    skip_connection,
)
from clit_basicsr.archs.lit_dense import fill
from clit_basicsr.archs.lit_frequency import FrequencyBranch
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops import PositionalBias, backends, local_attention
from clit_basicsr.ops.attention.reference import attention_weights
from clit_basicsr.ops.geometry.coords import Frame, nearest_index
from clit_basicsr.ops.upsampled import Upsampling, upsample, upsampled_conv


class PositionEncoder(nn.Module):
    """Equations (4) and (5): the positional bias B = FC(gamma(dx)) of every head.

    Args:
        num_heads (int): H.
        encoding (str): The frequencies of gamma. 'paper': 2^0 ... 2^9. 'published' (the authors' code):
            2^linspace(0, 10, 16) - 1.
    """

    freqs: Tensor

    def __init__(self, num_heads: int, encoding: str = 'paper') -> None:
        super().__init__()
        if encoding == 'paper':
            freqs = 2.0 ** torch.arange(10)
        elif encoding == 'published':
            freqs = 2 ** torch.linspace(0, 10, 16) - 1
        else:
            raise UserError(f"position_encoding must be 'paper', 'published' or ~ (none); got {encoding!r}.")
        self.register_buffer('freqs', freqs, persistent=False)
        self.proj = nn.Linear(4 * len(freqs), num_heads)

    def forward(self) -> PositionalBias:
        """The parameters as the attention takes them."""
        return PositionalBias(self.freqs, self.proj.weight, self.proj.bias)


class LITBranch(nn.Module):
    """Local attention and decoder over one feature map: equations (1)-(3), (6), (7). CLIT stacks several.

    Args:
        dim (int): Channels C of the features, of q, k and v.
        num_heads, grid_size, hidden_dims, local_attention, cell, aggregation: See :class:`LIT`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: int,
        hidden_dims: Sequence[int],
        local_attention: bool,
        cell: bool,
        aggregation: str,
    ) -> None:
        super().__init__()
        self.num_heads, self.grid_size = num_heads, grid_size if local_attention else 1
        self.cell, self.aggregation = cell, aggregation
        self.conv_q = nn.Conv2d(dim, dim, 3, 1, 1) if local_attention else None
        self.conv_k = nn.Conv2d(dim, dim, 3, 1, 1) if local_attention else None
        self.conv_v = nn.Conv2d(dim, dim, 3, 1, 1)
        positions = 1 if aggregation == 'sum' else self.grid_size**2
        self.decoder = build_mlp(positions * dim + (2 if cell else 0), hidden_dims, activation=nn.GELU)

    def backend(self, z: Tensor, coord: Tensor | None = None) -> str:
        """The backend of :mod:`clit_basicsr.ops` that answers this branch's queries."""
        q = None if self.conv_q is None else z
        return backends.select(None, z, q=q, k=q, coord=coord, aggregation=self.aggregation)

    def project(self, z: Tensor, upsampling: Upsampling | None, backend: str) -> tuple[Tensor | None, ...]:
        """q, k and v, (B, C, h, w) each, on the finer grid if there is one; q, k are None without local attention."""
        convs = (self.conv_q, self.conv_k, self.conv_v)
        if upsampling is not None and backend != 'reference':
            return tuple(
                upsampled_conv(z, conv.weight, cast(Tensor, conv.bias), upsampling, backend)
                for conv in cast(tuple[nn.Conv2d, ...], convs)
            )
        z = z if upsampling is None else upsample(z, upsampling)
        return tuple(None if conv is None else conv(z) for conv in convs)

    def forward(
        self,
        z: Tensor,
        frame: Frame,
        coord: Tensor,
        cell: Tensor,
        bias: PositionalBias | None,
        upsampling: Upsampling | None = None,
    ) -> Tensor:
        """Values at the queries, in units of the published domain (x - 0.5) / 0.5, without the skip connection.

        Args:
            z: (B, C, h, w), features: the window of their grid that ``frame`` describes.
            coord: (B, Q, 2).
            cell: (B, 2) or (B, Q, 2).
            upsampling: the finer grid that the branch works on, where it is not that of z.

        Returns:
            Tensor: (B, Q, 3).
        """
        backend = self.backend(z, coord)
        q, k, v = self.project(z, upsampling, backend)
        frame = frame if upsampling is None else upsampling.target
        size = relative_cell(cell, coord, frame) if self.cell else None
        first_layer = cast(nn.Linear, self.decoder[0])
        # With gradients the fast backends bound their memory themselves.
        whole = backend != 'reference' and torch.is_grad_enabled()
        step = coord.shape[1] if whole else max(1, MAX_QUERIES // coord.shape[0])
        out = []
        for start in range(0, coord.shape[1], step):
            part = slice(start, start + step)
            first = local_attention(
                q,
                k,
                cast(Tensor, v),
                coord[:, part],
                frame,
                first_layer.weight,
                first_layer.bias,
                num_heads=self.num_heads,
                grid_size=self.grid_size,
                bias=bias,
                cell=None if size is None else size[:, part],
                aggregation=self.aggregation,
                backend=backend,
            )
            out.append(self.decoder[1:](first))
        return torch.cat(out, dim=1)

    def attention(
        self,
        z: Tensor,
        frame: Frame,
        coord: Tensor,
        bias: PositionalBias | None,
        upsampling: Upsampling | None = None,
    ) -> Tensor:
        """Equation (6) at the queries, (B, Q, H, G, G), by the readable definition; arguments as for :meth:`forward`.

        Raises:
            UserError: the branch has no local attention.
        """
        q, k, _ = self.project(z, upsampling, 'reference')
        if q is None or k is None:
            raise UserError('the network was built with local_attention: false; there are no weights to show.')
        frame = frame if upsampling is None else upsampling.target
        weights = attention_weights(q, k, coord, frame, self.num_heads, self.grid_size, bias)
        return weights.transpose(2, 3).unflatten(3, (self.grid_size, self.grid_size))


class LITBase(ImplicitNet):
    """What LIT and CLIT have in common: the first convolution, the bias encoder and one or several branches."""

    # Equation (9): weight of the branch before.
    residual = 0.75

    def __init__(
        self,
        encoder: dict,
        num_branches: int,
        dim: int,
        num_heads: int,
        grid_size: int,
        hidden_dims: Sequence[int],
        position_encoding: str | None,
        local_attention: bool,
        cell: bool,
        aggregation: str,
        upscale: float,
        first_conv: bool = True,
    ) -> None:
        super().__init__(encoder, upscale)
        if grid_size < 1 or grid_size % 2 == 0:
            raise UserError(f'grid_size must be an odd number of at least 1; got {grid_size}.')
        if num_heads < 1 or dim % num_heads:
            raise UserError(f'dim must be a multiple of num_heads; got dim {dim}, num_heads {num_heads}.')
        if num_branches < 1:
            raise UserError(f'num_branches must be at least 1; got {num_branches}.')
        if aggregation not in ('flatten', 'sum'):
            raise UserError(f"aggregation must be 'flatten' or 'sum'; got {aggregation!r}.")
        self.conv_in: nn.Module = nn.Conv2d(self.encoder.out_channels, dim, 3, 1, 1) if first_conv else nn.Identity()
        self.position_encoder = None
        if local_attention and position_encoding is not None:
            self.position_encoder = PositionEncoder(num_heads, position_encoding)
        self.branches = nn.ModuleList(
            LITBranch(dim, num_heads, grid_size, hidden_dims, local_attention, cell, aggregation)
            for _ in range(num_branches)
        )

    @property
    def reach(self) -> int:
        # Local grid or bilinear tap, the convolutions for q, k, v, the upsampling's tap, the first convolution.
        return max(self.branches[0].grid_size // 2, 1) + 4

    @torch.no_grad()
    def attention(self, feat: Features, coord: Tensor, cell: Tensor, scales=None) -> list[LocalAttention]:
        coord, cell, scales = self._in_frame(feat, coord, cell, scales)
        z1, found = self.conv_in(feat.z), []
        for branch, grid in zip(self.branches, self._grids(feat, scales), strict=False):
            weights = branch.attention(z1, feat.frame, coord, self._bias(), grid)
            size = feat.frame.size if grid is None else grid.target.size
            center = torch.stack([nearest_index(coord[..., axis], size[axis]) for axis in (0, 1)], dim=-1)
            found.append(LocalAttention(weights, size, center))
        return found

    def _bias(self) -> PositionalBias | None:
        return None if self.position_encoder is None else self.position_encoder()

    def _grids(self, feat: Features, scales) -> list[Upsampling | None]:
        """The grid of every active branch; None is the features' own."""
        return [None]

    def _fill(self, out: Tensor, feat: Features, size, rows: tuple[int, int], cols: tuple[int, int], scales) -> None:
        backend = self.branches[0].backend(feat.z)
        if backend == 'reference' or feat.image != feat.frame.size:
            super()._fill(out, feat, size, rows, cols, scales)
        else:
            fill(out, feat, size, rows, cols, self, self._grids(feat, scales), backend)


@ARCH_REGISTRY.register()
class LIT(LITBase):
    """Local Implicit Transformer: attention over a local grid of LR features, a decoder for the RGB value of any point.

    Paper: Cascaded Local Implicit Transformer for Arbitrary-Scale Super-Resolution (CVPR 2023), equations (1)-(7).

    A CLIT with one branch is the same network; a checkpoint of one loads in the other.

    Args:
        encoder (dict): ``type`` and options of a network of the host, e.g. ``{type: EDSR, num_block: 16}``.
        dim (int): Channels C of q, k and v. Default: 256.
        num_heads (int): Heads H of the attention. Default: 8.
        grid_size (int): Side G of the local grid, odd. Default: 7.
        hidden_dims (list[int]): Widths of the decoder's hidden layers. Default: (256, 256, 256, 256).
        position_encoding (str | None): Frequencies of the positional bias, 'paper' or 'published'; None: no bias.
            Default: 'paper'.
        local_attention (bool): False: the value at the nearest LR pixel alone (Table 3, -a). Default: True.
        cell (bool): Whether the decoder sees the size of the HR pixel (Table 3, -c). Default: True.
        aggregation (str): 'flatten' keeps the weighted values of all G x G positions, as the paper does; 'sum' adds
            them up. Default: 'flatten'.
        frequency_dims (int): P, numbers per position that the frequency block adds (Table 3, -f is 0); 0: no such
            block. Default: 0.
        frequency_scale (float): The block's frequencies are 2^linspace(0, frequency_scale, P / 4) - 1. Default: 6.
        local_ensemble (bool): Average the answers of the four LR pixels around a query (Table 3). Default: False.
        first_conv (bool): Whether a convolution to C channels comes first; the authors' ``lit.py`` has none. Default:
            True.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    def __init__(
        self,
        encoder: dict,
        dim: int = 256,
        num_heads: int = 8,
        grid_size: int = 7,
        hidden_dims: Sequence[int] = (256, 256, 256, 256),
        position_encoding: str | None = 'paper',
        local_attention: bool = True,
        cell: bool = True,
        aggregation: str = 'flatten',
        frequency_dims: int = 0,
        frequency_scale: float = 6,
        local_ensemble: bool = False,
        first_conv: bool = True,
        upscale: float = 4,
    ) -> None:
        super().__init__(
            encoder,
            1,
            dim,
            num_heads,
            grid_size,
            hidden_dims,
            position_encoding,
            local_attention,
            cell,
            aggregation,
            upscale,
            first_conv,
        )
        if frequency_dims or local_ensemble or not first_conv:
            branch = FrequencyBranch(
                dim if first_conv else self.encoder.out_channels,
                dim,
                num_heads,
                grid_size,
                hidden_dims,
                local_attention,
                cell,
                aggregation,
                frequency_dims,
                frequency_scale,
                local_ensemble,
            )
            self.branches = nn.ModuleList([branch])

    def decode(self, feat: Features, coord: Tensor, cell: Tensor, scales) -> Tensor:
        out = self.branches[0](self.conv_in(feat.z), feat.frame, coord, cell, self._bias())
        return skip_connection(feat, coord) + 0.5 * out
