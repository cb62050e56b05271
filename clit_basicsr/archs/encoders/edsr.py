"""EDSR as a trunk."""

from collections.abc import Mapping
from typing import Any

from basicsr.archs.edsr_arch import EDSR
from torch import Tensor

from clit_basicsr.archs.encoders.layouts import SAME, Layout, count
from clit_basicsr.archs.encoders.trunk import DIV2K_MEAN, MeanShiftTrunk, Normalization, PaperEncoder, register_encoder

# https://github.com/sanghyun-son/EDSR-PyTorch, and those who use its networks: LIIF, LTE, CLIT.
EDSR_PYTORCH: Layout = (
    ('head.0.{p}', 'conv_first.{p}'),
    ('body.{i}.body.0.{p}', 'body.{i}.conv1.{p}'),
    ('body.{i}.body.2.{p}', 'body.{i}.conv2.{p}'),
    ('body.{n}.{p}', 'conv_after_body.{p}'),
)


@register_encoder
class EDSREncoder(MeanShiftTrunk, EDSR):
    """EDSR. ``img_range: 2, rgb_mean: [0.5, 0.5, 0.5]`` is the published (x - 0.5) / 0.5; pretrained ones have range
    255.
    """

    host = EDSR
    layouts = (SAME, EDSR_PYTORCH)
    normalization = Normalization(255, DIV2K_MEAN)
    mmagic_normalization = Normalization(1, DIV2K_MEAN)  # MMagic's EDSR, unlike all others, works on [0, 1]
    published_layout = EDSR_PYTORCH
    paper = PaperEncoder('EDSR-baseline', {'num_feat': 64, 'num_block': 16})

    def __init__(self, img_range: float = 255.0, rgb_mean=DIV2K_MEAN, **opt) -> None:
        super().__init__(num_in_ch=3, num_out_ch=3, **opt)
        self.set_up(('upsample', 'conv_last'), img_range, rgb_mean)
        self.out_channels = self.channels_of(opt)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(self.normalize(x))
        return self.conv_after_body(self.body(x)) + x

    @classmethod
    def describe(cls, weights: dict[str, Tensor], hints: Mapping[str, Any]) -> dict[str, Any] | None:
        if 'body.0.conv1.weight' not in weights or 'conv_after_body.weight' not in weights:
            return None
        options = {
            'type': 'EDSR',
            'num_feat': weights['conv_first.weight'].shape[0],
            'num_block': count(weights, r'body\.(\d+)\.'),
        }
        return options if hints.get('res_scale', 1) == 1 else {**options, 'res_scale': hints['res_scale']}

    @classmethod
    def published_spec(cls, options: dict[str, Any]) -> dict[str, Any]:
        sizes = {'n_resblocks': 'num_block', 'n_feats': 'num_feat', 'res_scale': 'res_scale'}
        return {'name': 'edsr-baseline', 'args': {theirs: options[ours] for theirs, ours in sizes.items()}}
