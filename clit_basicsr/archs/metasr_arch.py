"""Meta-SR: the filter of every HR pixel is predicted from its position and its size."""

from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from clit_basicsr.archs.features import Prepared
from clit_basicsr.archs.implicit import MAX_QUERIES, ImplicitNet, expand_cell
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.ops.geometry.coords import nearest_center
from clit_basicsr.ops.geometry.sampling import unfold_at


@ARCH_REGISTRY.register()
class MetaSR(ImplicitNet):
    """Meta-SR, as the LIIF repository has it: positions are those of the pixels' upper left corners.

    Paper: Meta-SR: A Magnification-Arbitrary Network for Super-Resolution (CVPR 2019).
    Ref git repo: https://github.com/yinboc/liif

    Args:
        encoder (dict): ``type`` and options of an encoder, e.g. ``{type: EDSR, num_feat: 64, num_block: 16}``.
        hidden_dims (list[int]): Widths of the hidden layers of the network that predicts filters. Default: (256,).
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    def __init__(self, encoder: dict, hidden_dims: Sequence[int] = (256,), upscale: float = 4) -> None:
        super().__init__(encoder, upscale)
        self.filter_net = build_mlp(3, hidden_dims, 9 * self.encoder.out_channels * 3)

    @property
    def reach(self) -> int:
        return 2  # the pixel of the corner is at most one away from that of the centre; the filter is 3 x 3

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        feat = prepared.feat
        cell = expand_cell(cell, coord)
        corner = coord - cell / 2
        point = (corner + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
        inputs = []
        for axis, n in enumerate(feat.frame.size):
            center = nearest_center(point[..., axis], n)
            inputs.append((corner[..., axis] - (center - 1 / n)) * (n / 2))  # 0 ... 1 within the LR pixel
        inputs.append(cell[..., 0] * (feat.frame.size[0] / 2))  # the inverse of the scale
        step = max(1, MAX_QUERIES // coord.shape[0])  # a filter is large: 27 C0 numbers for every query
        out = []
        for start in range(0, coord.shape[1], step):
            part = slice(start, start + step)
            filters = self.filter_net(torch.stack(inputs, dim=-1)[:, part]).unflatten(-1, (-1, 3))  # (B, Q, 9 C0, 3)
            z = unfold_at(feat.z, point[:, part], feat.frame, 3)  # (B, Q, 9 C0)
            out.append(torch.einsum('bqc,bqcd->bqd', z, filters))
        return torch.cat(out, dim=1)
