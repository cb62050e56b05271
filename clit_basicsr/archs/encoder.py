"""Encoders: the trunks of the host's own super-resolution networks, without their upsamplers."""

from copy import deepcopy
from inspect import signature

from basicsr.archs.edsr_arch import EDSR
from torch import Tensor, nn

from clit_basicsr.errors import UserError


class EDSREncoder(EDSR):
    """The host's EDSR up to its upsampler, under the host's own option and parameter names.

    Input (B, 3, h, w), RGB in [0, 1]; output (B, num_feat, h, w). The input is normalised by EDSR's own options:
    ``img_range: 2, rgb_mean: [0.5, 0.5, 0.5]`` is the published (x - 0.5) / 0.5.
    """

    def __init__(self, **opt) -> None:
        super().__init__(num_in_ch=3, num_out_ch=3, **opt)
        del self.upsample, self.conv_last
        self.out_channels = self.conv_after_body.out_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first((x - self.mean.to(x)) * self.img_range)
        return self.conv_after_body(self.body(x)) + x


ENCODERS: dict[str, type[nn.Module]] = {'EDSR': EDSREncoder}


def build_encoder(opt: dict) -> nn.Module:
    """Builds an encoder from the ``encoder`` block of an option file: ``type`` and the options of the host's network.

    Raises:
        UserError: the type is not among :data:`ENCODERS`, or an option is not one of the host's.
    """
    opt = deepcopy(dict(opt))
    kind = opt.pop('type', None)
    if kind not in ENCODERS:
        raise UserError(f'network_g:encoder:type is {kind!r}; it must be one of: {", ".join(ENCODERS)}.')
    accepted = signature(ENCODERS[kind].__mro__[1]).parameters
    for key in opt:
        if key not in accepted:
            raise UserError(f'network_g:encoder has no option {key!r} for {kind}; it takes: {", ".join(accepted)}.')
    return ENCODERS[kind](**opt)
