"""Encoders: the trunks of super-resolution networks of the host, without their upsamplers.

To add an encoder: one file here with a class decorated with ``register_encoder``, which states what
:class:`~clit_basicsr.archs.encoders.trunk.Trunk` lists, its import below, and its host network in the tests.
"""

from copy import deepcopy
from inspect import signature
from typing import Any

from clit_basicsr.archs.encoders import edsr, msrresnet, rcan, rdn, rrdbnet, swinir  # noqa: F401  they register
from clit_basicsr.archs.encoders.pretrained import Pretrained, load_pretrained
from clit_basicsr.archs.encoders.trunk import COMMON_OPTIONS, ENCODERS, RawPixels, Trunk
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.option_types import options_of


def build_encoder(opt: dict) -> Trunk:
    """Builds an encoder from the ``encoder`` block of an option file: ``type`` and the options of the host's network.

    In addition, for every type: ``img_range`` and ``rgb_mean`` (the input is (x - mean) * range), ``feat_scale`` (a
    factor for the features; ~: 2 / img_range where that is less than 1), ``frozen`` (the weights stay as they are;
    default: false) and ``keep_normalization`` (see :func:`load_pretrained`).

    Raises:
        UserError: the type is not among :data:`ENCODERS`, or an option is not one of the host's.
    """
    opt = deepcopy(dict(opt))
    kind = opt.pop('type', None)
    if kind not in ENCODERS:
        raise UserError(f'network_g:encoder:type is {kind!r}; it must be one of: {", ".join(ENCODERS)}.')
    accepted = encoder_options(kind)
    for key in opt:
        if key not in accepted:
            raise UserError(f'network_g:encoder has no option {key!r} for {kind}; it takes: {", ".join(accepted)}.')
    # A block of the host's own option file may be copied here: images have three channels, and there is no upsampler.
    for key in ('num_in_ch', 'num_out_ch', 'in_chans'):
        if opt.pop(key, 3) != 3:
            raise UserError(f'network_g:encoder:{key} must be 3: images are RGB.')
    feat_scale, frozen = opt.pop('feat_scale', None), opt.pop('frozen', False)
    opt.pop('keep_normalization', None)  # read when a pretrained trunk is loaded
    encoder = ENCODERS[kind](**opt)
    if feat_scale is not None:
        encoder.feat_scale.fill_(feat_scale)
    if frozen:
        encoder.freeze()
    return encoder


def encoder_types(kind: str) -> dict[str, Any]:
    """The type of each option of an encoder, as far as it is known; see :func:`encoder_options`."""
    return options_of(ENCODERS[kind].host)[0] | options_of(ENCODERS[kind])[0] | COMMON_OPTIONS


def encoder_options(kind: str) -> tuple[str, ...]:
    """The names of the options that an encoder of that type takes."""
    names = [*signature(ENCODERS[kind].host).parameters, *signature(ENCODERS[kind]).parameters, *COMMON_OPTIONS]
    return tuple(dict.fromkeys(name for name in names if name not in ('opt', 'kwargs')))


__all__ = [
    'ENCODERS',
    'Pretrained',
    'RawPixels',
    'Trunk',
    'build_encoder',
    'encoder_options',
    'encoder_types',
    'load_pretrained',
]
