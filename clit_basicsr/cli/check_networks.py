"""The blocks ``network_*`` of an option file: keys, types and sizes, before any network is made."""

from __future__ import annotations

import copy
import inspect
from typing import Any, get_args

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest
from clit_basicsr.base.option_types import check_block, check_keys, check_number, joined, options_of
from clit_basicsr.hosts.basicsr.plugin import is_ours

# Options that are whole numbers; the host's classes have no annotations.
COUNTS = (
    *('num_feat', 'num_block', 'num_group', 'num_grow_ch', 'squeeze_factor', 'embed_dim', 'depths', 'num_heads'),
    *('window_size', 'img_size', 'patch_size', 'num_layer', 'growth', 'widths'),
)
MAY_BE_0 = ('frequency_dims',)
MOST_COUNTED, MOST_CHANNELS = 1000, 100_000


def check_network(block: dict, where: str, cls: type) -> Any:
    """Returns the network, built on the meta device; None for the host's."""
    options, required = options_of(cls)
    values = {key: value for key, value in block.items() if key != 'type'}
    if not is_ours(cls):
        if not any(one.kind is one.VAR_KEYWORD for one in inspect.signature(cls).parameters.values()):
            check_keys(values, where, options)
        missing = [key for key in required if key in options and key not in values]
        if missing:
            raise UserError(f'{where}:{missing[0]} is missing')
        check_sizes(values, where, options)
        return None
    check_block(values, where, options, required)
    check_sizes(values, where, options)
    if isinstance(values.get('tail'), dict):
        check_sizes(values['tail'], joined(where, 'tail'), {})
    if values.get('encoder') is not None:
        check_encoder(values['encoder'], joined(where, 'encoder'))
    try:  # what depends on several options only the network can check
        return build_without_values(cls, values)
    except (UserError, TypeError) as error:
        raise UserError(f'{where}: {error}') from error


def drop_options_of_other_decoders(opt: dict, where: str, cls: type) -> None:
    """One line changes the decoder: options that belong to another one of this package are taken out, with a warning.

    Args:
        opt: all options; the warning goes to its list ``warnings``, from which the model logs it.
    """
    from basicsr.utils.registry import ARCH_REGISTRY

    if not is_ours(cls):
        return
    own = options_of(cls)[0]
    decoders = [one for _, one in ARCH_REGISTRY if is_ours(one)]
    others = {key for one in decoders for key in options_of(one)[0]} - own.keys()
    unused = [key for key in opt[where] if key in others and key != 'type']
    for key in unused:
        del opt[where][key]
    if unused:
        line = f'{where}: {opt[where]["type"]} has no {", ".join(unused)} (options of other decoders): not used.'
        opt.setdefault('warnings', []).append(line)


def check_sizes(values: dict, where: str, options: dict[str, Any]) -> None:
    """Numbers of channels, layers and blocks: from 1 to what a machine can hold."""
    for key, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        annotation = options.get(key)
        if annotation is int or get_args(annotation)[:1] == (int,) or key in COUNTS:
            for number in numbers if value is not None else ():
                counted = (key.startswith('num_') or key == 'depths') and key != 'num_components'
                most = MOST_COUNTED if counted else MOST_CHANNELS
                check_number(number, joined(where, key), 0 if key in MAY_BE_0 else 1, most + 1, whole=True)


def build_without_values(cls: type, options: dict) -> Any:
    """A network on the meta device; on the CPU if it reads values while it is built, as SwinIR does."""
    import torch

    try:
        with torch.device('meta'):
            return cls(**copy.deepcopy(options))
    except (RuntimeError, NotImplementedError):
        return cls(**copy.deepcopy(options))


def check_encoder(block: dict, where: str) -> None:
    """Keys as `build_encoder` takes them, types as the host's network has them."""
    from clit_basicsr.archs.encoders import ENCODERS, encoder_options, encoder_types

    kind = block.get('type')
    if kind not in ENCODERS:
        raise UserError(f'{where}:type: {kind!r} is not a known encoder; the nearest is {nearest(kind, ENCODERS)!r}')
    hints = encoder_types(kind)
    check_block(block, where, {'type': str} | {key: hints.get(key, Any) for key in encoder_options(kind)})
    check_sizes(block, where, hints)
