"""IPE: positions are encoded over the area of the HR pixel, not at its centre alone."""

import math
from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.archs.pixel_mlp import FeatureMLPNet
from clit_basicsr.base.errors import UserError


def integrated_encoding(dx: Tensor, size: Tensor, freqs: Tensor) -> Tensor:
    """Means of sin(f t) and cos(f t) over the interval of that size around dx, for each coordinate and frequency f.

    The mean of cos(f t) over a width s around x is cos(f x) sin(f s / 2) / (f s / 2), that of sin alike: frequencies
    that an HR pixel cannot show are damped.

    Args:
        dx: (..., 2), distance to the LR pixel in units of half a pixel.
        size: (..., 2), the HR pixel's size in the same units.
        freqs: (F,).

    Returns:
        Tensor: (..., 4 F): [sin(y f), sin(x f), cos(y f), cos(x f)], f fastest.
    """
    angle = (dx.unsqueeze(-1) * freqs).flatten(-2)
    # torch.sinc(t) is sin(pi t) / (pi t)
    damping = torch.sinc(size.unsqueeze(-1) * freqs / (2 * math.pi)).flatten(-2)
    return torch.cat((angle.sin() * damping, angle.cos() * damping), dim=-1)


@ARCH_REGISTRY.register()
class IPE(FeatureMLPNet):
    """LIIF whose MLP sees, in place of coordinate and cell, an encoding integrated over the HR pixel's area.

    Paper: Enhancing Multi-Scale Implicit Learning in Image Super-Resolution with Integrated Positional Encoding,
    arXiv 2112.05756.

    There is no published code. From the paper: LIIF as the base, with coordinate and cell replaced by the sines
    and cosines of the relative coordinate integrated over the pixel, which damps each by sinc(frequency * half the
    cell). Ours, where the paper leaves it open or we could not check it: 10 frequencies, powers of two from 1 on, in
    units of half an LR pixel; everything else as in LIIF.

    Args:
        encoder (dict): ``type`` and options of an encoder, e.g. ``{type: EDSR, num_feat: 64, num_block: 16}``.
        hidden_dims (list[int]): Widths of the MLP's hidden layers. Default: (256, 256, 256, 256).
        num_freqs (int): Number of frequencies 2^0, 2^1, ... Default: 10.
        local_ensemble (bool): Average the answers of the four LR pixels around a query. Default: True.
        feat_unfold (bool): A feature is the 3 x 3 features around its pixel. Default: True.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    freqs: Tensor

    def __init__(
        self,
        encoder: dict,
        hidden_dims: Sequence[int] = (256, 256, 256, 256),
        num_freqs: int = 10,
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        upscale: float = 4,
    ) -> None:
        super().__init__(encoder, local_ensemble, feat_unfold, upscale)
        if num_freqs < 1:
            raise UserError(f'num_freqs must be at least 1; got {num_freqs}.')
        self.register_buffer('freqs', 2.0 ** torch.arange(num_freqs), persistent=False)
        self.decoder = build_mlp(self.feature_dim + 4 * num_freqs, hidden_dims)

    def position(self, dx: Tensor, size: Tensor) -> Tensor:
        return integrated_encoding(dx, size, self.freqs)
