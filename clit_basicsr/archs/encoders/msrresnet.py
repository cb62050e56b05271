"""MSRResNet as a trunk."""

from collections.abc import Mapping
from typing import Any

from basicsr.archs.srresnet_arch import MSRResNet
from torch import Tensor

from clit_basicsr.archs.encoders.layouts import SAME, Layout, count
from clit_basicsr.archs.encoders.trunk import (
    RAW,
    Trunk,
    register_encoder,
)

# MMagic's MSRResNet
MSRRESNET_MMAGIC: Layout = (('conv_first.{p}', 'conv_first.{p}'), ('trunk_net.{rest}', 'body.{rest}'))


@register_encoder
class MSRResNetEncoder(Trunk, MSRResNet):
    """Modified SRResNet, up to its first upsampling layer."""

    host = MSRResNet
    layouts = (SAME, MSRRESNET_MMAGIC)
    normalization = RAW
    published_layout = None
    paper = None

    def __init__(self, img_range: float = 1.0, rgb_mean=(0.0, 0.0, 0.0), **opt) -> None:
        super().__init__(num_in_ch=3, num_out_ch=3, **opt)
        upsampler = [name for name, _ in self.named_children() if name.startswith('upconv')]
        self.set_up((*upsampler, 'pixel_shuffle', 'conv_hr', 'conv_last'), img_range, rgb_mean)
        self.out_channels = self.channels_of(opt)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.lrelu(self.conv_first(self.normalize(x))))

    @classmethod
    def describe(cls, weights: dict[str, Tensor], hints: Mapping[str, Any]) -> dict[str, Any] | None:
        if 'body.0.conv1.weight' not in weights or 'conv_after_body.weight' in weights:
            return None
        return {
            'type': 'MSRResNet',
            'num_feat': weights['conv_first.weight'].shape[0],
            'num_block': count(weights, r'body\.(\d+)\.'),
        }
