"""Bicubic interpolation as a network without parameters: the first row of every table."""

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from clit_basicsr.archs.implicit import Features, ImplicitNet
from clit_basicsr.ops.geometry.coords import read_pixels, sampling_position


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5, as in MATLAB's imresize; torch's own interpolation has a = -0.75."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


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

    def decode(self, feat: Features, coord: Tensor, cell: Tensor, scales) -> Tensor:
        taps = []
        for axis in (0, 1):
            n, start = feat.frame.size[axis], feat.frame.origin[axis]
            position = sampling_position(coord[..., axis], n).unsqueeze(-1)
            index = position.floor() + torch.arange(-1, 3, device=coord.device)  # (B, Q, 4)
            weight = cubic(position - index)
            mirrored = index.long() % (2 * n)
            mirrored = torch.where(mirrored < n, mirrored, 2 * n - 1 - mirrored)
            taps.append(((mirrored - start).clamp(0, feat.z.shape[2 + axis] - 1), weight))
        (y, wy), (x, wx) = taps
        values = read_pixels(feat.z, y.unsqueeze(-1), x.unsqueeze(-2))  # (B, Q, 4, 4, 3)
        return torch.einsum('bqi,bqj,bqijc->bqc', wy, wx, values)
