"""UltraSR: LIIF whose coordinates, periodically encoded, enter every layer."""

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.implicit import ImplicitNet, in_pieces, relative_cell
from clit_basicsr.archs.pixel_mlp import feature_mlp, fewer_pixels, first_products
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.ensemble import ensemble_neighbors


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
class UltraSR(ImplicitNet):
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

    freqs: Tensor

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
        super().__init__(encoder, upscale)
        if num_hidden < 1 or num_freqs < 1:
            raise UserError(f'num_hidden and num_freqs must be at least 1; got {num_hidden} and {num_freqs}.')
        self.local_ensemble, self.cell = local_ensemble, cell
        self.grid_size = 3 if feat_unfold else 1
        self.register_buffer('freqs', torch.pi / 2 * 2.0 ** torch.arange(num_freqs), persistent=False)
        position_dim = 2 + 4 * num_freqs + (2 if cell else 0)
        self.decoder = ResidualMLP(self.encoder.out_channels * self.grid_size**2, position_dim, dim, num_hidden)

    @property
    def reach(self) -> int:
        return 2  # the neighbour of the ensemble, and the neighbour that unfolding adds

    def prepare_maps(self, feat: Features, scales) -> Tensor | None:
        return first_products(self.decoder.first, feat, self.grid_size)

    def pays_to_prepare(self, feat: Features, coord: Tensor) -> bool:
        return fewer_pixels(feat, coord, 4 if self.local_ensemble else 1)

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        feat = prepared.feat
        layers = [self.decoder.first, *self.decoder.hidden, self.decoder.last]
        mlp = feature_mlp(layers, feat, prepared.maps, self.grid_size, self.decoder, residual=True)

        def answer(coord: Tensor, cell: Tensor) -> Tensor:
            size = relative_cell(cell, coord, feat.frame) if self.cell else coord[..., :0]
            out = torch.zeros_like(coord[..., :1])
            for point, dx, weight in ensemble_neighbors(coord, feat.frame, self.local_ensemble):
                angle = (dx.unsqueeze(-1) * self.freqs).flatten(-2)  # (B, Q, 2 F)
                out = out + weight * mlp(point, torch.cat((dx, angle.sin(), angle.cos(), size), dim=-1))
            return out

        return in_pieces(answer, coord, cell, feat)
