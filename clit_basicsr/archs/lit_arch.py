"""LIT, the local implicit transformer: one model for every scale from 1 to about 4."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.features import Features, LocalAttention, Prepared
from clit_basicsr.archs.implicit import ImplicitNet, to_image
from clit_basicsr.archs.lit_branch import BranchInput, HeadSpec, LITBranch, PositionEncoder
from clit_basicsr.archs.lit_frequency import FrequencyBranch
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops import PositionalBias
from clit_basicsr.ops.geometry.coords import Piece, nearest_index
from clit_basicsr.ops.geometry.sampling import upsample_bilinear
from clit_basicsr.ops.upsampled import Upsampling

# The skip connection is made for some HR pixels at a time, which bounds the memory: rows on a CPU; pixels on a GPU,
# where each part takes the host some 70 launches.
SKIP_ROWS, GPU_SKIP_PIXELS = 64, 1 << 22


class PreparedMaps(NamedTuple):
    """What LIT and CLIT derive from features.

    Attributes:
        z: (B, C, h, w), after the first convolution.
        branches: what each branch derives from z, see :meth:`LITBranch.prepare` and ``prepare_upsampled``.
    """

    z: Tensor
    branches: list[Any]


class LITBase(ImplicitNet):
    """What LIT and CLIT have in common: the first convolution, the bias encoder and one or several branches."""

    # Equation (9): weight of the sum of the earlier branches.
    residual_weight: float = 0.75
    image_skip = True

    def __init__(self, encoder: dict, spec: HeadSpec, num_branches: int, upscale: float) -> None:
        super().__init__(encoder, upscale)
        if num_branches < 1:
            raise UserError(f'num_branches must be at least 1; got {num_branches}.')
        channels = self.encoder.out_channels
        self.conv_in: nn.Module = nn.Conv2d(channels, spec.dim, 3, 1, 1) if spec.first_conv else nn.Identity()
        self.position_encoder = None
        if spec.local_attention and spec.position_encoding is not None:
            self.position_encoder = PositionEncoder(spec.num_heads, spec.position_encoding)
        plain = spec.first_conv and not spec.frequency_dims and not spec.local_ensemble
        self.branches = nn.ModuleList(
            LITBranch(spec) if plain else FrequencyBranch(spec, spec.dim if spec.first_conv else channels)
            for _ in range(num_branches)
        )

    @property
    def num_branches(self) -> int:  # type: ignore[override]
        return len(self.branches)

    @property
    def num_trained_branches(self) -> int:
        """Branches that :meth:`upscale` uses: fewer than all in a checkpoint from an early stage of training."""
        return self.num_branches

    @property
    def reach(self) -> int:
        # Local grid or bilinear tap, the convolutions for q, k, v, the upsampling's tap, the first convolution.
        return max(self.branches[0].grid_size // 2, 1) + 4

    def prepare(self, feat: Features, scales=None) -> Prepared:
        z, branches = self.prepare_maps(feat, scales)
        active = self.num_trained_branches if scales is None else len(self._grids(feat, scales))
        branches = [*branches, *(branch.prepare_upsampled(z) for branch in self.branches[1:active])]
        return Prepared(feat, PreparedMaps(z, branches), scales)

    def prepare_maps(self, feat: Features, scales) -> PreparedMaps:
        # What later branches need depends on the number of queries.
        z = self.conv_in(feat.z)
        return PreparedMaps(z, [self.branches[0].prepare(z)])

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        bias, out = self._bias(), cast(Tensor, 0.0)
        for branch, source in zip(self.branches, self._inputs(prepared), strict=False):
            # a branch that learns nothing, as it is frozen, takes the faster path without gradients
            with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(branch, source.z, coord, cell, bias)):
                own = branch(source, coord, cell, bias)
            out = own + self.residual_weight * out  # equation (9)
        return out

    @torch.no_grad()
    def attention(self, feat: Features | Prepared, coord: Tensor, cell: Tensor, scales=None) -> list[LocalAttention]:
        prepared, coord, cell = self._in_frame(feat, coord, cell, scales)
        own, found = prepared.feat, []
        prepared = prepared._replace(maps=PreparedMaps(self.conv_in(own.z), []))
        for branch, source in zip(self.branches, self._inputs(prepared), strict=False):
            weights, size = branch.attention(source, coord, self._bias()), source.target.size
            center = torch.stack([nearest_index(coord[..., axis], size[axis]) for axis in (0, 1)], dim=-1)
            found.append(LocalAttention(weights, size, center))
        return found

    def _bias(self) -> PositionalBias | None:
        return None if self.position_encoder is None else self.position_encoder()

    def _grids(self, feat: Features, scales) -> list[Upsampling | None]:
        """The grid of every active branch; None is the features' own."""
        return [None]

    def _inputs(self, prepared: Prepared) -> list[BranchInput]:
        """What every active branch works on."""
        grids = self._grids(prepared.feat, prepared.scales)
        maps = [*prepared.maps.branches, *[None] * (len(grids) - len(prepared.maps.branches))]
        frame = prepared.feat.frame
        return [BranchInput(prepared.maps.z, frame, grid, own) for grid, own in zip(grids, maps, strict=False)]

    def _fill(self, out: Tensor, feat: Features, piece: Piece, scales) -> None:
        backend = self.branches[0].backend(feat.z)
        if backend == 'reference' or feat.image_size != feat.frame.size:
            super()._fill(out, feat, piece, scales)
            return
        out.zero_()
        for branch, grid in zip(self.branches, self._grids(feat, scales), strict=False):
            out *= self.residual_weight  # equation (9), summed up in the result itself
            for one, own in zip(out, feat.images(), strict=True):
                source = branch.rows(BranchInput(own.z, own.frame, grid), self.conv_in, backend)
                branch.add_piece(one, source, piece, self._bias())
        width = max(1, piece.cols[1] - piece.cols[0])
        height = SKIP_ROWS if out.device.type == 'cpu' else max(SKIP_ROWS, GPU_SKIP_PIXELS // width)
        for start in range(*piece.rows, height):
            rows = start, min(start + height, piece.rows[1])
            skip = upsample_bilinear(feat.lq, feat.frame, piece.size, rows, piece.cols, padding='border')
            part = out[..., rows[0] - piece.rows[0] : rows[1] - piece.rows[0], :]
            part.copy_(to_image(part, skip))


def _learns(branch: nn.Module, *inputs: Tensor | PositionalBias | None) -> bool:
    """Whether any parameter or input of a branch requires a gradient."""
    tensors = [tensor for one in inputs for tensor in (one if isinstance(one, tuple) else (one,))]
    return any(tensor is not None and tensor.requires_grad for tensor in (*tensors, *branch.parameters()))


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
        position_encoding (str | dict | None): Frequencies of the positional bias: 'paper'; 'published'; a block
            ``{scale, dims}``, those of a published checkpoint with other hyper-parameters, see
            :class:`clit_basicsr.archs.lit_branch.PositionEncoder`; None: no bias. Default: 'paper'.
        local_attention (bool): False: the value at the nearest LR pixel alone (Table 3, -a). Default: True.
        cell (bool): Whether the decoder sees the size of the HR pixel (Table 3, -c). Default: True.
        aggregation (str): 'flatten' keeps the weighted values of all G x G positions, as the paper does; 'sum' adds
            them up. Default: 'flatten'.
        frequency_dims (int): P, numbers per position that the frequency block adds (Table 3, -f is 0); 0: no frequency
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
        position_encoding: str | dict | None = 'paper',
        local_attention: bool = True,
        cell: bool = True,
        aggregation: str = 'flatten',
        frequency_dims: int = 0,
        frequency_scale: float = 6,
        local_ensemble: bool = False,
        first_conv: bool = True,
        upscale: float = 4,
    ) -> None:
        spec = HeadSpec(
            dim=dim,
            num_heads=num_heads,
            grid_size=grid_size,
            hidden_dims=hidden_dims,
            position_encoding=position_encoding,
            local_attention=local_attention,
            cell=cell,
            aggregation=aggregation,
            frequency_dims=frequency_dims,
            frequency_scale=frequency_scale,
            local_ensemble=local_ensemble,
            first_conv=first_conv,
        )
        super().__init__(encoder, spec, num_branches=1, upscale=upscale)
