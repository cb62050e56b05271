"""``path: {pretrain_network_encoder: FILE}``: trunks that the host, the original repositories or MMagic have
trained.
"""

import os
from typing import NamedTuple

from torch import Tensor

from clit_basicsr.archs.encoders import layouts
from clit_basicsr.archs.encoders.trunk import BUFFERS, ENCODERS, Normalization, Trunk
from clit_basicsr.base.checkpoints import check_finite, read_checkpoint
from clit_basicsr.base.errors import UserError


class Pretrained(NamedTuple):
    """What :func:`load_pretrained` did.

    Attributes:
        options: the ``encoder`` block with the normalisation that goes with the weights; it belongs into the options
            that are saved with the network, and into those from which its EMA copy is built.
        dropped: keys of the file that the trunk does not have: the upsampler, usually.
        message: one line for the log.
    """

    options: dict
    dropped: list[str]
    message: str


def load_pretrained(encoder: Trunk, options: dict, path: str | os.PathLike, param_key: str | None = None) -> Pretrained:
    """Loads a trunk from the checkpoint of a network that contains it, every weight of it, and sets its normalisation.

    The file may be the host's (``params_ema`` or ``params``, with or without an upsampler), that of one of the original
    repositories of EDSR, RCAN, RDN, ESRGAN and SwinIR, MMagic's, a published implicit network or one of ours. The
    normalisation is that of the file's origin, unless the options say ``keep_normalization: true``; ``feat_scale``
    follows from it unless the options give it.

    Args:
        encoder: the trunk that was built from ``options``.
        options: the ``encoder`` block of an option file.
        path: the file.
        param_key: which part of the host's file to take. Default: params_ema, or else params.

    Raises:
        UserError: the file cannot be read, or a weight of the trunk is missing in it, has another shape or is not
            finite.
    """
    kind = options['type']
    own = ENCODERS[kind]
    weights, normalization = _trunk_weights(read_checkpoint(path), path, param_key, own)
    wanted = {
        key: value
        for key, value in encoder.state_dict().items()
        if not key.endswith(('attn_mask', 'relative_position_index')) and key not in BUFFERS
    }
    candidates = [layouts.rename(weights, layout) for layout in own.layouts]
    found, unknown = max(candidates, key=lambda pair: len(wanted.keys() & pair[0].keys()))
    missing = [key for key in wanted if key not in found]
    other = [
        key
        for key, own in wanted.items()
        if key in found and (found[key].shape != own.shape or not found[key].is_floating_point())
    ]
    if missing or other:
        raise UserError(f'{path} does not hold this {kind}: {_complaint(missing, other, found, wanted)}.')
    check_finite({key: found[key] for key in wanted}, f'the weights in {path}')
    encoder.load_state_dict({key: found[key] for key in wanted})
    if not options.get('keep_normalization'):
        img_range, mean = normalization or own.checkpoint_normalization(weights)
        encoder.set_normalization(img_range, mean, options.get('feat_scale'))
    dropped = sorted([*unknown, *(key for key in found if key not in encoder.state_dict())])
    img_range, scale = encoder.input_range.item(), encoder.feat_scale.item()
    mean = encoder.input_mean.flatten().tolist()
    message = (
        f'Encoder {kind} from {path}: {len(wanted)} weights loaded, input (x - {[round(v, 4) for v in mean]}) * '
        f'{img_range:g}, features times {scale:.4g}; dropped: {_shorten(dropped)}.'
    )
    normalized = {'img_range': img_range, 'rgb_mean': mean, 'feat_scale': scale}
    return Pretrained({**options, **normalized}, dropped, message)


def _trunk_weights(
    content: dict, path: str | os.PathLike, param_key: str | None, own: type[Trunk]
) -> tuple[dict[str, Tensor], Normalization | None]:
    """The weights in a file, prefixes removed, and the normalisation if the file itself shows it."""
    normalization: Normalization | None = None
    if param_key is not None and param_key not in content:
        raise UserError(f'{path} has no {param_key!r}; it has: {_shorten(list(content))}.')
    key = param_key or next((key for key in ('params_ema', 'params', 'state_dict', 'model') if key in content), None)
    weights = content if key is None else content[key]
    if key == 'model' and isinstance(weights, dict) and 'sd' in weights:  # LIIF, LTE, CLIT
        weights, normalization = weights['sd'], Normalization(2, (0.5, 0.5, 0.5))
    if not isinstance(weights, dict):
        raise UserError(f'{path} holds no weights under {key!r}.')
    weights = {name: value for name, value in weights.items() if isinstance(value, Tensor) and isinstance(name, str)}
    for prefix in ('module.', 'generator_ema.', 'generator.', 'encoder.'):
        inner = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if inner and prefix.startswith('generator'):  # MMagic's
            normalization = own.mmagic_normalization
        weights = inner or weights
    if 'input_range' in weights:
        # Ours; its shapes are those of every trunk.
        given, mean = weights['input_range'], weights.get('input_mean')
        if given.numel() != 1 or mean is None or mean.numel() != 3:
            raise UserError(f'{path} is damaged: input_range and input_mean in it are not a number and a colour.')
        check_finite({'input_range': given, 'input_mean': mean}, f'the weights in {path}')
        normalization = Normalization(given.item(), mean.flatten().tolist())
    return weights, normalization


def _complaint(missing: list[str], other: list[str], found: dict[str, Tensor], wanted: dict) -> str:
    parts = []
    if missing:
        parts.append(f'{len(missing)} weights are missing ({_shorten(missing)})')
    if other:
        key = other[0]
        parts.append(
            f'{len(other)} have another shape ({key} is {tuple(found[key].shape)}, not {tuple(wanted[key].shape)}); '
            'network_g:encoder must describe the network in the file'
        )
    return ', '.join(parts)


def _shorten(names: list[str], limit: int = 4) -> str:
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '') or 'nothing'
