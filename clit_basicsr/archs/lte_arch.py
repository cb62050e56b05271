"""LTE, the local texture estimator."""

import math
from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.implicit import ImplicitNet, relative_cell
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.ensemble import ensemble_neighbors
from clit_basicsr.ops.geometry.sampling import gather_grid


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
        """Coefficients and frequencies, (B, 2 dim, h, w), channels last in memory, as they are read."""
        both = torch.cat((self.coef(feat.z), self.freq(feat.z)), dim=1)
        return both.contiguous(memory_format=torch.channels_last)

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        feat = prepared.feat
        phase = self.phase(relative_cell(cell, coord, feat.frame))  # (B, Q, dim / 2)
        out = torch.zeros_like(coord[..., :1])
        for point, dx, weight in ensemble_neighbors(coord, feat.frame, self.local_ensemble):
            amplitude, waves = (
                gather_grid(prepared.maps, point, feat.frame, 1).squeeze(2).chunk(2, dim=-1)
            )  # (B, Q, dim)
            waves = waves.unflatten(-1, (-1, 2))  # (B, Q, dim / 2, (y, x)); amplitude: (B, Q, dim)
            angle = math.pi * ((waves * dx.unsqueeze(2)).sum(dim=-1) + phase)
            out = out + weight * self.decoder(amplitude * torch.cat((angle.cos(), angle.sin()), dim=-1))
        return out
