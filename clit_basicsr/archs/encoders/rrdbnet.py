"""RRDBNet as a trunk."""

from collections.abc import Mapping
from typing import Any

from basicsr.archs.rrdbnet_arch import RRDBNet
from torch import Tensor

from clit_basicsr.archs.encoders.layouts import SAME, Layout, count
from clit_basicsr.archs.encoders.trunk import (
    RAW,
    Trunk,
    register_encoder,
)
from clit_basicsr.base.errors import UserError

# https://github.com/xinntao/ESRGAN
RRDB_ESRGAN: Layout = (
    ('conv_first.{p}', 'conv_first.{p}'),
    ('RRDB_trunk.{i}.RDB{j}.conv{n}.{p}', 'body.{i}.rdb{j}.conv{n}.{p}'),
    ('trunk_conv.{p}', 'conv_body.{p}'),
)


@register_encoder
class RRDBNetEncoder(Trunk, RRDBNet):
    """RRDBNet of ESRGAN, up to its first interpolation."""

    host = RRDBNet
    layouts = (SAME, RRDB_ESRGAN)
    normalization = RAW
    published_layout = None
    paper = None

    def __init__(self, img_range: float = 1.0, rgb_mean=(0.0, 0.0, 0.0), **opt) -> None:
        if opt.get('scale', 4) in (1, 2):
            raise UserError(
                f'network_g:encoder:scale {opt["scale"]} makes RRDBNet shrink the image before its first layer; only '
                'scale 4 can be an encoder.'
            )
        super().__init__(num_in_ch=3, num_out_ch=3, **opt)
        self.set_up(('conv_up1', 'conv_up2', 'conv_hr', 'conv_last', 'lrelu'), img_range, rgb_mean)
        self.out_channels = self.channels_of(opt)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(self.normalize(x))
        return x + self.conv_body(self.body(x))

    @classmethod
    def describe(cls, weights: dict[str, Tensor], hints: Mapping[str, Any]) -> dict[str, Any] | None:
        if 'body.0.rdb1.conv1.weight' not in weights:
            return None
        return {
            'type': 'RRDBNet',
            'num_feat': weights['conv_first.weight'].shape[0],
            'num_block': count(weights, r'body\.(\d+)\.'),
            'num_grow_ch': weights['body.0.rdb1.conv1.weight'].shape[0],
        }
