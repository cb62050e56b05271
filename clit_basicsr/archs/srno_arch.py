"""SRNO, the super-resolution neural operator."""

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.features import Prepared
from clit_basicsr.archs.galerkin import GalerkinNet
from clit_basicsr.archs.galerkin_block import HeadNorm
from clit_basicsr.archs.galerkin_sweeps import Chunk, Folded
from clit_basicsr.ops.geometry.ensemble import ensemble_neighbors
from clit_basicsr.ops.geometry.sampling import gather_grid


@ARCH_REGISTRY.register()
class SRNO(GalerkinNet):
    """Super-Resolution Neural Operator: the four features around a query, weighted, and two Galerkin blocks.

    Paper: Super-Resolution Neural Operator (CVPR 2023); the published code is followed.
    Ref git repo: https://github.com/2y7c3/Super-Resolution-Neural-Operator

    Args:
        encoder (dict): ``type`` and options of an encoder, e.g. ``{type: EDSR, num_feat: 64, num_block: 16}``.
        dim (int): Channels C of the blocks. Default: 256.
        num_heads (int): Heads of the attention. Default: 16.
        hidden_dim (int): Width of the last layer but one. Default: 256.
        rows (int | None): See :class:`clit_basicsr.archs.galerkin.GalerkinNet`. Default: None.
        max_scale (float | None): Scale whose HR pixel is the smallest that the decoder sees, 4 in the published
            code's ``--mcell``; None: no limit. Default: None.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    reach = 1  # LR pixels: the neighbours
    pixel = 2.0

    def __init__(
        self,
        encoder: dict,
        dim: int = 256,
        num_heads: int = 16,
        hidden_dim: int = 256,
        rows: int | None = None,
        max_scale: float | None = None,
        upscale: float = 4,
    ) -> None:
        super().__init__(encoder, dim, num_heads, HeadNorm, rows, max_scale, upscale)
        self.conv00 = nn.Linear(8 + 4 * self.encoder.out_channels + 2, dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, 3)

    def first(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        feat, z = prepared.feat, prepared.feat.z
        neighbors = ensemble_neighbors(coord, feat.frame)
        features = [gather_grid(z, one.coord, feat.frame, 1).squeeze(2) * one.weight.to(z.dtype) for one in neighbors]
        numbers = [*(one.dx for one in neighbors), *features, self.seen_cell(cell, coord, prepared)]
        return self.conv00(torch.cat([x.to(z.dtype) for x in numbers], dim=-1))

    def last(self, x: Tensor, prepared: Prepared, coord: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))

    def corner_maps(self, prepared: Prepared) -> tuple[Tensor, None]:
        return prepared.feat.z, None

    def folded(self, size: Tensor, means: list[Tensor]) -> 'FoldedSRNO':
        return FoldedSRNO(self, size, means)


class FoldedSRNO(Folded):
    """SRNO on a picture; see :meth:`GalerkinNet.folded`."""

    def __init__(self, net: SRNO, size: Tensor, means: list[Tensor]) -> None:
        dx, features, cell = net.conv00.weight.double().split((8, 4 * net.encoder.out_channels, 2), dim=1)
        dx = dx.unflatten(1, (2, 2, 2))  # side along y, side along x, axis of the distance
        constant = net.conv00.bias.double() + cell @ size.double()
        # x0 is linear in the four weighted features, dy (low, high), dx (low, high) and 1.
        x0 = torch.cat((features, dx[..., 0].sum(dim=2), dx[..., 1].sum(dim=1), constant.unsqueeze(1)), dim=1)
        end = net.fc1.weight.double(), net.fc1.bias.double()
        super().__init__(net.blocks, means, x0, end, size.dtype)
        self.fc2 = net.fc2

    def keys_values(self, chunk: Chunk) -> Tensor:
        own = torch.cat((chunk.weights, chunk.row, chunk.col, torch.ones_like(chunk.row[:1])))
        return self.run(chunk.linear(self.matrix, own))

    def values(self, chunk: Chunk) -> Tensor:
        return self.fc2(F.gelu(self.keys_values(chunk)))
