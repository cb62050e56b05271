"""UltraSR: LIIF whose coordinates, periodically encoded, enter every layer."""

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.pixel_mlp import FeatureMLPNet
from clit_basicsr.archs.precision import SingleFrequencies
from clit_basicsr.base.errors import UserError


class ResidualMLP(nn.Module):
    """Hidden layers of one width with skip connections; the encoded position is appended to the input of each."""

    def __init__(self, in_dim: int, position_dim: int, dim: int, num_hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_dim + position_dim, dim)
        self.hidden = nn.ModuleList(nn.Linear(dim + position_dim, dim) for _ in range(num_hidden - 1))
        self.last = nn.Linear(dim + position_dim, 3)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        x = F.relu(self.first(torch.cat((x, position), dim=-1)))
        for layer in self.hidden:
            x = x + F.relu(layer(torch.cat((x, position), dim=-1)))
        return self.last(torch.cat((x, position), dim=-1))


@ARCH_REGISTRY.register()
class UltraSR(SingleFrequencies, FeatureMLPNet):
    """LIIF with a residual MLP; the periodically encoded coordinates enter every one of its layers.

    Paper: UltraSR: Spatial Encoding is a Missing Key for Implicit Image Function-based Arbitrary-Scale
    Super-Resolution, arXiv 2103.12716.

    There is no published code. From the paper: LIIF as the base (unfolded features, cell, local ensemble), a residual
    MLP, a periodic encoding of the relative coordinates that enters every hidden layer. Ours, where the paper leaves
    it open: sines and cosines of the frequencies 2^0 ... 2^(num_freqs - 1) * pi / 2 in units of half an LR pixel, so
    that the lowest has two LR pixels for its period; the encoding appended to each layer's input, the last one's too;
    the coordinates themselves and the cell appended as well.

    Args:
        encoder (dict): ``type`` and options of an encoder, e.g. ``{type: EDSR, num_feat: 64, num_block: 16}``.
        dim (int): Width of the hidden layers. Default: 256.
        num_hidden (int): Number of hidden layers. Default: 5.
        num_freqs (int): Number of frequencies. Default: 10.
        local_ensemble (bool): Average the answers of the four LR pixels around a query. Default: True.
        feat_unfold (bool): A feature is the 3 x 3 features around its pixel. Default: True.
        cell (bool): Whether the MLP sees the size of the HR pixel. Default: True.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    residual = True
    decoder: ResidualMLP

    def __init__(
        self,
        encoder: dict,
        dim: int = 256,
        num_hidden: int = 5,
        num_freqs: int = 10,
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        cell: bool = True,
        upscale: float = 4,
    ) -> None:
        super().__init__(encoder, local_ensemble, feat_unfold, upscale)
        if num_hidden < 1 or num_freqs < 1:
            raise UserError(f'num_hidden and num_freqs must be at least 1; got {num_hidden} and {num_freqs}.')
        self.cell = cell
        self.register_buffer('freqs', torch.pi / 2 * 2.0 ** torch.arange(num_freqs), persistent=False)
        self.decoder = ResidualMLP(self.feature_dim, 2 + 4 * num_freqs + (2 if cell else 0), dim, num_hidden)

    def linear_layers(self) -> list[nn.Module]:
        return [self.decoder.first, *self.decoder.hidden, self.decoder.last]

    def position(self, dx: Tensor, size: Tensor) -> Tensor:
        angle = (dx.unsqueeze(-1) * self.freqs).flatten(-2)  # (B, Q, 2 F)
        return torch.cat((dx, angle.sin(), angle.cos(), *([size] if self.cell else [])), dim=-1)

    def values(self, z: Tensor, position: Tensor) -> Tensor:
        return self.decoder(z, position)
