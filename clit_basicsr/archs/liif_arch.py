"""LIIF, the local implicit image function."""

from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.archs.pixel_mlp import FeatureMLPNet


@ARCH_REGISTRY.register()
class LIIF(FeatureMLPNet):
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
        super().__init__(encoder, local_ensemble, feat_unfold, upscale)
        self.cell = cell
        self.decoder = build_mlp(self.feature_dim + (4 if cell else 2), hidden_dims)

    def position(self, dx: Tensor, size: Tensor) -> Tensor:
        return torch.cat((dx, size), dim=-1) if self.cell else dx
