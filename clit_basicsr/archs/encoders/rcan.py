"""RCAN as a trunk."""

from collections.abc import Mapping
from typing import Any

from basicsr.archs.rcan_arch import RCAN
from torch import Tensor

from clit_basicsr.archs.encoders.layouts import SAME, Layout, count
from clit_basicsr.archs.encoders.trunk import DIV2K_MEAN, MeanShiftTrunk, Normalization, register_encoder

# https://github.com/yulunzhang/RCAN
RCAN_PYTORCH: Layout = (
    ('head.0.{p}', 'conv_first.{p}'),
    ('body.{i}.body.{j}.body.0.{p}', 'body.{i}.residual_group.{j}.rcab.0.{p}'),
    ('body.{i}.body.{j}.body.2.{p}', 'body.{i}.residual_group.{j}.rcab.2.{p}'),
    ('body.{i}.body.{j}.body.3.conv_du.0.{p}', 'body.{i}.residual_group.{j}.rcab.3.attention.1.{p}'),
    ('body.{i}.body.{j}.body.3.conv_du.2.{p}', 'body.{i}.residual_group.{j}.rcab.3.attention.3.{p}'),
    ('body.{i}.body.{n}.{p}', 'body.{i}.conv.{p}'),
    ('body.{m}.{p}', 'conv_after_body.{p}'),
)


@register_encoder
class RCANEncoder(MeanShiftTrunk, RCAN):
    """RCAN, normalised as EDSR. Its attention looks at the whole image: tiles change the features everywhere a
    little.
    """

    host = RCAN
    layouts = (SAME, RCAN_PYTORCH)
    normalization = Normalization(255, DIV2K_MEAN)
    published_layout = RCAN_PYTORCH
    paper = None

    def __init__(self, img_range: float = 255.0, rgb_mean=DIV2K_MEAN, **opt) -> None:
        super().__init__(num_in_ch=3, num_out_ch=3, **opt)
        self.set_up(('upsample', 'conv_last'), img_range, rgb_mean)
        self.out_channels = self.channels_of(opt)

    @property
    def reach(self) -> int | None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(self.normalize(x))
        return self.conv_after_body(self.body(x)) + x

    @classmethod
    def describe(cls, weights: dict[str, Tensor], hints: Mapping[str, Any]) -> dict[str, Any] | None:
        if 'body.0.residual_group.0.rcab.0.weight' not in weights:
            return None
        squeezed = weights['body.0.residual_group.0.rcab.3.attention.1.weight']
        return {
            'type': 'RCAN',
            'num_feat': squeezed.shape[1],
            'num_group': count(weights, r'body\.(\d+)\.residual_group\.'),
            'num_block': count(weights, r'body\.0\.residual_group\.(\d+)\.'),
            'squeeze_factor': squeezed.shape[1] // squeezed.shape[0],
        }

    @classmethod
    def published_spec(cls, options: dict[str, Any]) -> dict[str, Any]:
        sizes = {
            'n_resgroups': 'num_group',
            'n_resblocks': 'num_block',
            'n_feats': 'num_feat',
            'reduction': 'squeeze_factor',
        }
        return {'name': 'rcan', 'args': {theirs: options[ours] for theirs, ours in sizes.items()}}
