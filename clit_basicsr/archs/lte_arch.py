"""LTE, the local texture estimator."""

import math
from collections.abc import Callable, Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.implicit import ImplicitNet, expand_cell, in_pieces
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.archs.pixel_mlp import map_index
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.decoder import pack_sequential, runs_compiled
from clit_basicsr.ops.geometry.coords import numbers
from clit_basicsr.ops.geometry.ensemble import ensemble_neighbors
from clit_basicsr.ops.geometry.sampling import gather_grid

# (point, dx, phase) -> values
Values = Callable[[Tensor, Tensor, Tensor], Tensor]


@ARCH_REGISTRY.register()
class LTE(ImplicitNet):
    """Local Texture Estimator: every LR pixel says which frequencies its texture has, and how much of each.

    Paper: Local Texture Estimator for Implicit Representation Function (CVPR 2022).

    Args:
        encoder (dict): ``type`` and options of an encoder, e.g. ``{type: EDSR, num_feat: 64, num_block: 16}``.
        dim (int): Coefficients of a pixel; half as many frequencies (y, x). Default: 256.
        hidden_dims (list[int]): Widths of the MLP's hidden layers. Default: (256, 256, 256).
        local_ensemble (bool): Average the answers of the four LR pixels around a query. Default: True.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    image_skip = True

    def __init__(
        self,
        encoder: dict,
        dim: int = 256,
        hidden_dims: Sequence[int] = (256, 256, 256),
        local_ensemble: bool = True,
        upscale: float = 4,
    ) -> None:
        super().__init__(encoder, upscale)
        if dim < 2 or dim % 2:
            raise UserError(f'dim must be an even number of at least 2; got {dim}.')
        self.local_ensemble = local_ensemble
        self.coef = nn.Conv2d(self.encoder.out_channels, dim, 3, 1, 1)
        self.freq = nn.Conv2d(self.encoder.out_channels, dim, 3, 1, 1)
        self.phase = nn.Linear(2, dim // 2, bias=False)
        self.decoder = build_mlp(dim, hidden_dims)

    @property
    def reach(self) -> int:
        return 2  # the neighbour of the ensemble, and the convolutions

    def prepare_maps(self, feat: Features, scales) -> Tensor:
        """Coefficients (dim) and frequencies (dim / 2 of y, then of x), (B, 2 dim, h, w), channels last in memory, as
        they are read.
        """
        waves = self.freq(feat.z).unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return torch.cat((self.coef(feat.z), waves), dim=1).contiguous(memory_format=torch.channels_last)

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        feat = prepared.feat
        values = self._kernel(prepared) if runs_compiled(feat.z) else self._plain(prepared)

        def answer(coord: Tensor, cell: Tensor) -> Tensor:
            phase = self._phase(cell * numbers(feat.frame.size, cell), coord)
            out = torch.zeros_like(coord[..., :1])
            for point, dx, weight in ensemble_neighbors(coord, feat.frame, self.local_ensemble):
                out = out + weight * values(point, dx, phase)
            return out

        return in_pieces(answer, coord, cell, feat)

    def _plain(self, prepared: Prepared) -> Values:
        """Values (B, Q, 3) that the pixel nearest to each point gives, from point, dx and phase."""

        def values(point: Tensor, dx: Tensor, phase: Tensor) -> Tensor:
            local = gather_grid(prepared.maps, point, prepared.feat.frame, 1).squeeze(2)  # (B, Q, 2 dim)
            amplitude, waves = local.chunk(2, dim=-1)
            y, x = waves.chunk(2, dim=-1)  # (B, Q, dim / 2) each
            angle = math.pi * (y * dx[..., :1] + x * dx[..., 1:] + phase)
            return self.decoder(amplitude * torch.cat((angle.cos(), angle.sin()), dim=-1))

        return values

    def _kernel(self, prepared: Prepared) -> Values:
        """The same by the kernel."""
        decoder, feat = pack_sequential(self.decoder), prepared.feat
        rows = prepared.maps.permute(0, 2, 3, 1).flatten(0, 2)  # (B * h * w, 2 dim)
        return lambda point, dx, phase: decoder.texture(rows, map_index(feat, point), dx.to(rows.dtype), phase)

    def _phase(self, size: Tensor, coord: Tensor) -> Tensor:
        """``phase`` of the HR pixel's size, (B, Q or 1, dim / 2)."""
        size = size.unsqueeze(1) if size.dim() == 2 else expand_cell(size, coord)
        # Not a product of matrices: one size for all queries gives the bits that one for each gives.
        return size[..., :1] * self.phase.weight[:, 0] + size[..., 1:] * self.phase.weight[:, 1]
