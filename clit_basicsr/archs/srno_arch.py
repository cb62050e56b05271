"""SRNO, the super-resolution neural operator."""

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.features import Prepared
from clit_basicsr.archs.galerkin import GalerkinBlock, GalerkinNet, HeadNorm
from clit_basicsr.archs.galerkin_sweeps import Chunk, key_value_layer, query_layer
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
        max_scale (float | None): Scale whose HR pixel is the smallest that the decoder is told of, 4 in the published
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


class FoldedSRNO:
    """SRNO on a picture, without forming x0, x1 and x2.

    Nothing non-linear stands between ``conv00`` and the layers that project x0, so with g1 = GELU(M1 x0 + m1) and g2 =
    GELU(M2 x1 + m2), x1 = x0 + o2 g1 and x2 = x1 + o2' g2 enter every layer P as (P conv00) + (P o2) g1 + (P o2') g2;
    the first term is made at LR resolution. Products of weights are made in float64.

    Args:
        net, size, means: see :meth:`GalerkinNet.folded`.
    """

    def __init__(self, net: SRNO, size: Tensor, means: list[Tensor]) -> None:
        self.net, self.known, self.like = net, len(means), size
        weight, channels = net.conv00.weight.double(), net.encoder.out_channels
        dx, features, cell = weight.split((8, 4 * channels, 2), dim=1)
        dy, dx = dx.unflatten(1, (2, 2, 2))[..., 0].sum(dim=2), dx.unflatten(1, (2, 2, 2))[..., 1].sum(dim=1)
        constant = net.conv00.bias.double() + cell @ size.double()
        x0 = torch.cat((features, dy, dx, constant.unsqueeze(1)), dim=1)  # of corners, dy low and high, dx, 1
        layers = [query_layer(block, mean) for block, mean in zip(net.blocks, means, strict=False)]
        if self.known < len(net.blocks):
            layers.append(key_value_layer(net.blocks[self.known]))
        else:
            layers.append((net.fc1.weight.double(), net.fc1.bias.double()))
        # All layers after each other, what they add up being what the blocks before have added to x0.
        self.maps, self.steps = [], []
        added: list[tuple[Tensor, Tensor]] = []
        for i, (matrix, bias) in enumerate(layers):
            on_x0 = matrix @ x0
            on_x0[:, -1] += bias + sum((matrix @ b for _, b in added), start=torch.zeros_like(bias))
            self.maps.append(on_x0.to(size.dtype))
            self.steps.append([(matrix @ w).t().to(size.dtype).contiguous() for w, _ in added])
            if i < self.known:
                out = net.blocks[i].out2
                added.append((out.weight.double(), out.bias.double()))

    @property
    def block(self) -> GalerkinBlock:
        return self.net.blocks[self.known]

    def keys_values(self, chunk: Chunk) -> Tensor:
        return self._run(chunk)

    def values(self, chunk: Chunk) -> Tensor:
        return self.net.fc2(F.gelu(self._run(chunk)))

    def _run(self, chunk: Chunk) -> Tensor:
        """The last of the layers, (Q, O)."""
        own = torch.cat((chunk.weights, chunk.row, chunk.col, torch.ones_like(chunk.row[:1])))
        sizes = [len(matrix) for matrix in self.maps]
        parts = chunk.linear(torch.cat(self.maps), own).split(sizes, dim=1)
        hidden: list[Tensor] = []
        for part, matrices in zip(parts, self.steps, strict=True):
            for g, matrix in zip(hidden, matrices, strict=True):
                part = torch.addmm(part, g, matrix)
            hidden.append(F.gelu(part) if len(hidden) < self.known else part)
        return hidden[-1]
