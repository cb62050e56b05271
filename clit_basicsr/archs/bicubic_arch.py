"""Bicubic interpolation as a network without parameters: the first row of every table."""

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.ops.geometry.mirror import mirror_index
from clit_basicsr.ops.geometry.resize import cubic
from clit_basicsr.ops.geometry.sampling import read_pixels, sampling_position


@ARCH_REGISTRY.register()
class Bicubic(ImplicitNet):
    """MATLAB's bicubic enlargement: kernel with a = -0.5, edges mirrored with the edge pixel repeated.

    Source: Keys, Cubic Convolution Interpolation for Digital Image Processing (1981); MATLAB's imresize for the
        borders.

    Args:
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    def __init__(self, upscale: float = 4) -> None:
        super().__init__(None, upscale)

    @property
    def reach(self) -> int:
        return 2

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        feat = prepared.feat
        taps = []
        for axis in (0, 1):
            n, start = feat.frame.size[axis], feat.frame.origin[axis]
            position = sampling_position(coord[..., axis], n).unsqueeze(-1)
            index = position.floor() + torch.arange(-1, 3, device=coord.device)  # (B, Q, 4)
            weight = cubic(position - index)
            mirrored = mirror_index(index.long(), n)
            taps.append(((mirrored - start).clamp(0, feat.z.shape[2 + axis] - 1), weight))
        (y, wy), (x, wx) = taps
        values = read_pixels(feat.z, y.unsqueeze(-1), x.unsqueeze(-2))  # (B, Q, 4, 4, 3)
        wy, wx = wy.to(values), wx.to(values)  # other than single precision is the image's own
        return torch.einsum('bqi,bqj,bqijc->bqc', wy, wx, values)

    def finish(self, out: Tensor, feat: Features, coord: Tensor) -> Tensor:
        return out  # interpolated pixels are an image already
