"""LIIF, the local implicit image function."""

from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.implicit import ImplicitNet, in_pieces, relative_cell
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.archs.pixel_mlp import feature_mlp, fewer_pixels, first_products
from clit_basicsr.ops.geometry.ensemble import ensemble_neighbors


@ARCH_REGISTRY.register()
class LIIF(ImplicitNet):
    """Local Implicit Image Function: an MLP over the nearest feature, the distance to it and the pixel size.

    Paper: Learning Continuous Image Representation with Local Implicit Image Function (CVPR 2021).

    Args:
        encoder (dict): ``type`` and options of an encoder, e.g. ``{type: EDSR, num_feat: 64, num_block: 16}``.
        hidden_dims (list[int]): Widths of the MLP's hidden layers. Default: (256, 256, 256, 256).
        local_ensemble (bool): Average the answers of the four LR pixels around a query. Default: True.
        feat_unfold (bool): A feature is the 3 x 3 features around its pixel. Default: True.
        cell (bool): Whether the MLP sees the size of the HR pixel. Default: True.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    def __init__(
        self,
        encoder: dict,
        hidden_dims: Sequence[int] = (256, 256, 256, 256),
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        cell: bool = True,
        upscale: float = 4,
    ) -> None:
        super().__init__(encoder, upscale)
        self.local_ensemble, self.cell = local_ensemble, cell
        self.grid_size = 3 if feat_unfold else 1
        self.decoder = build_mlp(self.encoder.out_channels * self.grid_size**2 + (4 if cell else 2), hidden_dims)

    @property
    def reach(self) -> int:
        return 2  # the neighbour of the ensemble, and the neighbour that unfolding adds

    def prepare_maps(self, feat: Features, scales) -> Tensor | None:
        return first_products(self.decoder[0], feat, self.grid_size)

    def pays_to_prepare(self, feat: Features, coord: Tensor) -> bool:
        return fewer_pixels(feat, coord, 4 if self.local_ensemble else 1)

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        feat = prepared.feat
        mlp = feature_mlp(list(self.decoder)[::2], feat, prepared.maps, self.grid_size, self._values)

        def answer(coord: Tensor, cell: Tensor) -> Tensor:
            size = [relative_cell(cell, coord, feat.frame)] if self.cell else []
            out = torch.zeros_like(coord[..., :1])
            for point, dx, weight in ensemble_neighbors(coord, feat.frame, self.local_ensemble):
                out = out + weight * mlp(point, torch.cat((dx, *size), dim=-1))
            return out

        return in_pieces(answer, coord, cell, feat)

    def _values(self, z: Tensor, position: Tensor) -> Tensor:
        return self.decoder(torch.cat((z, position), dim=-1))
