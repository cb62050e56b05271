"""The convolutional trunks: EDSR, RCAN, RRDBNet and MSRResNet of the host, and RDN."""

from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srresnet_arch import MSRResNet
from torch import Tensor

from clit_basicsr.archs.encoders.trunk import Trunk
from clit_basicsr.archs.rdn_arch import RDN
from clit_basicsr.base.errors import UserError

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class EDSREncoder(Trunk, EDSR):
    """EDSR. ``img_range: 2, rgb_mean: [0.5, 0.5, 0.5]`` is the published (x - 0.5) / 0.5; pretrained ones have range
    255.
    """

    host = EDSR

    def __init__(self, img_range: float = 255.0, rgb_mean=DIV2K_MEAN, **opt) -> None:
        super().__init__(num_in_ch=3, num_out_ch=3, **opt)
        self.set_up(('upsample', 'conv_last'), img_range, rgb_mean)
        self.out_channels = opt.get('num_feat', 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(self.normalize(x))
        return self.conv_after_body(self.body(x)) + x


class RCANEncoder(Trunk, RCAN):
    """RCAN, normalised as EDSR. Its attention looks at the whole image: tiles change the features everywhere a
    little.
    """

    host = RCAN

    def __init__(self, img_range: float = 255.0, rgb_mean=DIV2K_MEAN, **opt) -> None:
        super().__init__(num_in_ch=3, num_out_ch=3, **opt)
        self.set_up(('upsample', 'conv_last'), img_range, rgb_mean)
        self.out_channels = opt.get('num_feat', 64)

    @property
    def reach(self) -> int | None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(self.normalize(x))
        return self.conv_after_body(self.body(x)) + x


class RDNEncoder(Trunk, RDN):
    """RDN."""

    host = RDN

    def __init__(self, img_range: float = 1.0, rgb_mean=(0.0, 0.0, 0.0), **opt) -> None:
        super().__init__(**opt)
        self.set_up(('upsample', 'conv_last'), img_range, rgb_mean)
        self.out_channels = opt.get('num_feat', 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(self.normalize(x))


class RRDBNetEncoder(Trunk, RRDBNet):
    """RRDBNet of ESRGAN, up to its first interpolation."""

    host = RRDBNet

    def __init__(self, img_range: float = 1.0, rgb_mean=(0.0, 0.0, 0.0), **opt) -> None:
        if opt.get('scale', 4) in (1, 2):
            raise UserError(
                f'network_g:encoder:scale {opt["scale"]} makes RRDBNet shrink the image before its first layer; only '
                'scale 4 can be an encoder.'
            )
        super().__init__(num_in_ch=3, num_out_ch=3, **opt)
        self.set_up(('conv_up1', 'conv_up2', 'conv_hr', 'conv_last', 'lrelu'), img_range, rgb_mean)
        self.out_channels = opt.get('num_feat', 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(self.normalize(x))
        return x + self.conv_body(self.body(x))


class MSRResNetEncoder(Trunk, MSRResNet):
    """Modified SRResNet, up to its first upsampling layer."""

    host = MSRResNet

    def __init__(self, img_range: float = 1.0, rgb_mean=(0.0, 0.0, 0.0), **opt) -> None:
        super().__init__(num_in_ch=3, num_out_ch=3, **opt)
        upsampler = [name for name, _ in self.named_children() if name.startswith('upconv')]
        self.set_up((*upsampler, 'pixel_shuffle', 'conv_hr', 'conv_last'), img_range, rgb_mean)
        self.out_channels = opt.get('num_feat', 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.lrelu(self.conv_first(self.normalize(x))))
