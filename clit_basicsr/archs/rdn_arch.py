"""RDN, the residual dense network, which the host lacks."""

import torch
from basicsr.archs.arch_util import Upsample
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """A convolution that appends its output to its input."""

    def __init__(self, num_in_ch: int, num_grow_ch: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(num_in_ch, num_grow_ch, 3, 1, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), dim=1)


class ResidualDenseBlock(nn.Module):
    """Dense layers, and a 1 x 1 convolution that brings their channels back to those of the input."""

    def __init__(self, num_feat: int, num_grow_ch: int, num_layer: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(DenseLayer(num_feat + i * num_grow_ch, num_grow_ch) for i in range(num_layer)))
        self.LFF = nn.Conv2d(num_feat + num_layer * num_grow_ch, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.LFF(self.convs(x)) + x


@ARCH_REGISTRY.register()
class RDN(nn.Module):
    """Residual dense network.

    Paper: Residual Dense Network for Image Super-Resolution (CVPR 2018).
    Ref git repo: https://github.com/sanghyun-son/EDSR-PyTorch, whose parameter names these are. The defaults are its
    configuration B; A has 20 blocks of 6 layers and 32 channels of growth.

    Args:
        num_in_ch (int): Channel number of inputs. Default: 3.
        num_out_ch (int): Channel number of outputs. Default: 3.
        num_feat (int): Channel number of intermediate features, G0. Default: 64.
        num_block (int): Number of residual dense blocks, D. Default: 16.
        num_layer (int): Layers of a block, C. Default: 8.
        num_grow_ch (int): Channels that a layer adds, G. Default: 64.
        upscale (int): Upsampling factor. Support 2^n and 3. Default: 4.
        img_range (float): Image range. Default: 1.
        rgb_mean (tuple[float]): Image mean in RGB orders. Default: (0, 0, 0).
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        num_layer: int = 8,
        num_grow_ch: int = 64,
        upscale: int = 4,
        img_range: float = 1.0,
        rgb_mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__()
        self.img_range = img_range
        self.mean = torch.tensor(rgb_mean).view(1, -1, 1, 1)
        self.SFENet1 = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.SFENet2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.RDBs = nn.ModuleList(ResidualDenseBlock(num_feat, num_grow_ch, num_layer) for _ in range(num_block))
        self.GFF = nn.Sequential(nn.Conv2d(num_block * num_feat, num_feat, 1), nn.Conv2d(num_feat, num_feat, 3, 1, 1))
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features (B, num_feat, h, w) of the normalised image (B, num_in_ch, h, w)."""
        shallow = self.SFENet1(x)
        feat = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            feat = block(feat)
            outputs.append(feat)
        return self.GFF(torch.cat(outputs, dim=1)) + shallow

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean.to(x)
        out = self.conv_last(self.upsample(self.forward_features((x - mean) * self.img_range)))
        return out / self.img_range + mean
