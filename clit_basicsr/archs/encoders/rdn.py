"""RDN as a trunk."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clit_basicsr.archs.encoders.layouts import SAME, Layout, count
from clit_basicsr.archs.encoders.trunk import (
    RAW,
    Normalization,
    PaperEncoder,
    Trunk,
    register_encoder,
)
from clit_basicsr.archs.rdn_arch import RDN
from clit_basicsr.base.errors import UserError

# MMagic's RDNNet, and https://github.com/yjn870/RDN-pytorch
RDN_MMAGIC: Layout = (
    ('sfe{i}.{p}', 'SFENet{i}.{p}'),
    ('rdbs.{i}.layers.{j}.conv.{p}', 'RDBs.{i}.convs.{j}.conv.0.{p}'),
    ('rdbs.{i}.lff.{p}', 'RDBs.{i}.LFF.{p}'),
    ('gff.{i}.{p}', 'GFF.{i}.{p}'),
)


@register_encoder
class RDNEncoder(Trunk, RDN):
    """RDN."""

    host = RDN
    layouts = (SAME, RDN_MMAGIC)
    normalization = RAW
    published_layout = SAME
    paper = PaperEncoder('RDN', {'num_feat': 64, 'num_block': 16, 'num_layer': 8, 'num_grow_ch': 64})

    def __init__(self, img_range: float = 1.0, rgb_mean=(0.0, 0.0, 0.0), **opt) -> None:
        super().__init__(**opt)
        self.set_up(('upsample', 'conv_last'), img_range, rgb_mean)
        self.out_channels = self.channels_of(opt)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(self.normalize(x))

    @classmethod
    def describe(cls, weights: dict[str, Tensor], hints: Mapping[str, Any]) -> dict[str, Any] | None:
        if 'SFENet1.weight' not in weights:
            return None
        return {
            'type': 'RDN',
            'num_feat': weights['SFENet1.weight'].shape[0],
            'num_block': count(weights, r'RDBs\.(\d+)\.'),
            'num_layer': count(weights, r'RDBs\.0\.convs\.(\d+)\.'),
            'num_grow_ch': weights['RDBs.0.convs.0.conv.0.weight'].shape[0],
        }

    @classmethod
    def published_spec(cls, options: dict[str, Any]) -> dict[str, Any]:
        configs = {(20, 6, 32): 'A', (16, 8, 64): 'B'}
        config = configs.get((options['num_block'], options['num_layer'], options['num_grow_ch']))
        if config is None:
            raise UserError('the published RDN has 20 blocks of 6 layers and growth 32 (A) or 16 of 8 and 64 (B).')
        return {'name': 'rdn', 'args': {'G0': options['num_feat'], 'RDNconfig': config}}

    @classmethod
    def checkpoint_normalization(cls, weights: dict[str, Tensor]) -> Normalization:
        if any(key.startswith('UPNet.') for key in weights):  # EDSR-PyTorch: 0 ... 255, no mean
            return Normalization(255, RAW.mean)
        return cls.normalization
