"""HIIF, the hierarchical encoding based implicit image function."""

from typing import cast

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.galerkin import GalerkinNet
from clit_basicsr.archs.galerkin_block import LayerNorm
from clit_basicsr.archs.galerkin_sweeps import Chunk, Folded
from clit_basicsr.ops.geometry.ensemble import axis_neighbors, ensemble_neighbors
from clit_basicsr.ops.geometry.sampling import gather_grid

# Bits of a query's place in its LR pixel, one pair (y, x) for each perceptron.
LEVELS = 6


class NormedMLP(nn.Module):
    """fc2(GELU(fc1(LayerNorm(z)))), no residual."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.fc1, self.fc2 = nn.Linear(in_dim, hidden_dim), nn.Linear(hidden_dim, out_dim)

    def forward(self, z: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(z))))


@ARCH_REGISTRY.register()
class HIIF(GalerkinNet):
    """Hierarchical Encoding based Implicit Image Function: places enter bit by bit, around two Galerkin blocks.

    Paper: HIIF: Hierarchical Encoding based Implicit Image Function for Continuous Super-resolution (CVPR 2025); the
    published code is followed.

    Args:
        encoder (dict): ``type`` and options of an encoder, e.g. ``{type: EDSR, num_feat: 64, num_block: 16}``.
        dim (int): Channels C of the features and of the blocks. Default: 256.
        num_heads (int): Heads of the attention. Default: 16.
        hidden_dim (int): Width of the perceptrons' hidden layers. Default: 256.
        rows (int | None): HR rows of a strip with sums of its own, 300 in the published tests (100 on DIV2K at x2);
            None: the picture as a whole. Default: None.
        max_scale (float | None): Scale whose HR pixel is the smallest that the decoder sees; None: no limit.
            Default: 4, as in the published tests.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    reach = 2  # LR pixels: the neighbours, and the convolution
    pixel = 1.0

    def __init__(
        self,
        encoder: dict,
        dim: int = 256,
        num_heads: int = 16,
        hidden_dim: int = 256,
        rows: int | None = None,
        max_scale: float | None = 4,
        upscale: float = 4,
    ) -> None:
        super().__init__(encoder, dim, num_heads, LayerNorm, rows, max_scale, upscale)
        self.freq = nn.Conv2d(self.encoder.out_channels, dim, 3, 1, 1)
        sizes = [(4 * dim + 4, dim), *[(dim + 2, dim)] * (LEVELS - 2), (dim + 2, 3)]
        self.mlps = nn.ModuleList(NormedMLP(a, hidden_dim, b) for a, b in sizes)

    def prepare_maps(self, feat: Features, scales) -> Tensor:
        return self.freq(feat.z)

    def first(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        frame, f = prepared.feat.frame, prepared.maps
        neighbors = ensemble_neighbors(coord, frame, pixel=self.pixel)
        features = [gather_grid(f, one.coord, frame, 1).squeeze(2) * one.weight.to(f.dtype) for one in neighbors]
        numbers = [*features, self.seen_cell(cell, coord, prepared), self._bits(coord, prepared)[0]]
        return self.mlps[0](torch.cat([x.to(f.dtype) for x in numbers], dim=-1))

    def last(self, x: Tensor, prepared: Prepared, coord: Tensor) -> Tensor:
        for mlp, pair in zip(self.mlps[1:], self._bits(coord, prepared)[1:], strict=True):
            x = mlp(torch.cat((x, pair.to(x.dtype)), dim=-1))
        return x

    def _bits(self, coord: Tensor, prepared: Prepared) -> list[Tensor]:
        """Pairs (B, Q, 2), y first, one for each level."""
        axes = [
            bits(axis_neighbors(coord[..., axis], n, self.pixel)[0].dx, n)
            for axis, n in enumerate(prepared.feat.frame.size)
        ]
        return [torch.stack(pair, dim=-1) for pair in zip(*axes, strict=True)]

    def corner_maps(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """f, and of each LR pixel the mean over its channels and the sum of squares around it."""
        f = prepared.maps
        rows = f[0].flatten(1)  # (C, h * w)
        mean = rows.mean(dim=0)
        return f, torch.stack((mean, (rows - mean).square().sum(dim=0)), dim=1)

    def axis_table(self, low: Tensor, n: int) -> list[Tensor]:
        return bits(low, n)

    def folded(self, size: Tensor, means: list[Tensor]) -> 'FoldedHIIF':
        return FoldedHIIF(self, size, means)


def bits(low: Tensor, n: int) -> list[Tensor]:
    """The first binary digits of the place between the pixels, 0 or 1, the shape of ``low`` each.

    They depend on the rounding of fp32: on pixel centres the place is a dyadic number, or 0, to within 1e-7 n. Another
    order of operations gives other pictures than the published code's.

    Args:
        low: distance to the lower of the two pixels, in pixels, fp32; not positive on the half pixel at the image's
            upper or left edge, where the published code adds 1 / n to its amount.
        n: pixels of the axis.
    """
    place = torch.where(low > 0, low, 1 / n - low)
    place = (place - 1e-9).clamp(0, 1)
    return [(place * 2 ** (level + 1)).floor() % 2 for level in range(LEVELS)]


class FoldedHIIF(Folded):
    """HIIF on a picture; see :meth:`GalerkinNet.folded`.

    LayerNorm of the first perceptron's input z: its mean and variance follow from those of the four features, and
    fc1(LayerNorm(z)) = (W' z - mean W' 1) / deviation + constant, W' = W diag(gamma), is linear in z, mean and 1.
    """

    def __init__(self, net: HIIF, size: Tensor, means: list[Tensor]) -> None:
        first, self.net, self.size = cast(NormedMLP, net.mlps[0]), net, size
        dim = first.fc2.out_features
        fc2 = first.fc2.weight.double(), first.fc2.bias.double()
        end = torch.eye(dim, dtype=torch.float64, device=size.device), fc2[1].new_zeros(dim)
        super().__init__(net.blocks, means, torch.cat((fc2[0], fc2[1].unsqueeze(1)), dim=1), end, size.dtype)
        self.bias, self.weight = self.matrix[:, -1].contiguous(), self.matrix[:, :-1].t().contiguous()
        weight = first.fc1.weight.double() * first.norm.weight.double()
        features, cell, bit = weight.split((4 * dim, 2, 2), dim=1)
        constant = first.fc1.bias.double() + first.fc1.weight.double() @ first.norm.bias.double()
        columns = (cell @ size.double(), weight.sum(dim=1), constant)
        # Of the four features, the bits (y, x), 1 and the mean, all over the deviation, and of 1.
        self.fc1 = torch.cat((features, bit, torch.stack(columns, dim=1)), dim=1).to(size.dtype)

    def keys_values(self, chunk: Chunk) -> Tensor:
        hidden = F.gelu(chunk.linear(self.fc1, self._own(chunk)))
        return self.run(torch.addmm(self.bias, hidden, self.weight))

    def values(self, chunk: Chunk) -> Tensor:
        x = self.keys_values(chunk)
        pairs = torch.stack((chunk.row[2:], chunk.col[2:]), dim=-1).flatten(1, 2)  # (LEVELS, cells * n, 2)
        pairs = pairs if chunk.valid is None else pairs.index_select(1, chunk.valid)
        for mlp, pair in zip(self.net.mlps[1:], pairs[1:], strict=True):
            x = mlp(torch.cat((x, pair.to(x.dtype)), dim=1))
        return x

    def _own(self, chunk: Chunk) -> Tensor:
        """Factors of the columns of ``fc1``, (9, cells, n)."""
        assert chunk.statistics is not None
        dim, weights = chunk.corners.shape[-1], chunk.weights
        mean, square = (one.unsqueeze(-1) for one in chunk.statistics.unbind(-1))  # (4, cells, 1)
        others = torch.stack((*self.size.view(2, 1, 1).expand(2, *weights.shape[1:]), chunk.row[2], chunk.col[2]))
        count = 4 * dim + len(others)
        middle = (dim * (weights * mean).sum(dim=0) + others.sum(dim=0)) / count
        spread = (weights.square() * square + dim * (weights * mean - middle).square()).sum(dim=0)
        spread = (spread + (others - middle).square().sum(dim=0)) / count
        inverse = (spread + self.net.mlps[0].norm.eps).rsqrt()
        scaled = torch.stack((chunk.row[2], chunk.col[2], torch.ones_like(middle), -middle)) * inverse
        return torch.cat((weights * inverse, scaled, torch.ones_like(scaled[:1])))
