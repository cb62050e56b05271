"""Options of networks, complete with their defaults, and in what two blocks ``network_g`` differ."""

from __future__ import annotations

import inspect
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

from clit_basicsr.archs.encoders import ENCODERS
from clit_basicsr.archs.lit_branch import PUBLISHED_ENCODING
from clit_basicsr.base.option_types import plain

# Options of an encoder that a test may have otherwise than the training: buffers saved with the weights, how these are
# trained, the layers behind the trunk, what masks are prepared for, and how tests pad images.
FREE_IN_ENCODER = (
    *('img_range', 'rgb_mean', 'feat_scale', 'keep_normalization', 'frozen', 'drop_path_rate', 'use_checkpoint'),
    *('num_in_ch', 'num_out_ch', 'in_chans', 'upscale', 'upsampler', 'img_size', 'padding'),
)
# The same of a network: how its weights begin, at which scale a plain ``net(lq)`` answers, how pictures are tested.
FREE = ('init', 'upscale', 'rows', 'max_scale')
LONGEST = 60  # characters of a value in a message


def defaults_of(cls: type) -> dict[str, Any]:
    """The options of a class that have a default, with it."""
    parameters = inspect.signature(cls).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def encoder_defaults(kind: str) -> dict[str, Any]:
    """The same of an encoder, with those of the host's network."""
    return defaults_of(ENCODERS[kind].host) | defaults_of(ENCODERS[kind])


def with_defaults(network_g: dict) -> dict:
    """The options of a network, those that were left out at their defaults."""
    return defaults_of(ARCH_REGISTRY.get(network_g['type'])) | network_g


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def differing_options(asked: dict, held: dict) -> list[str]:
    """What would make a network of the one block answer otherwise than one of the other with the same weights.

    Args:
        asked, held: ``network_g`` of an option file and of a file of weights, which is not trusted.

    Returns:
        A line for each option: 'residual_weight: 0.75 instead of 1'; nothing if a type is not known.
    """
    if not all(isinstance(one.get('type'), str) and one['type'] in ARCH_REGISTRY for one in (asked, held)):
        return []
    if asked['type'] != held['type']:
        return [f'type: {asked["type"]} instead of {held["type"]}']
    ours, theirs = (_canonical(block) for block in (asked, held))
    return [
        f'{key}: {_shown(ours, key)} instead of {_shown(theirs, key)}' for key in ours if ours[key] != theirs.get(key)
    ]


def _canonical(network_g: dict) -> dict[str, Any]:
    """Options that answers depend on, one form of each; those of the encoder as 'encoder:num_feat'."""
    options = {key: value for key, value in with_defaults(network_g).items() if key not in (*FREE, 'encoder')}
    if options.get('position_encoding') == 'published':
        options['position_encoding'] = dict(PUBLISHED_ENCODING)
    encoder = network_g.get('encoder')
    if isinstance(encoder, dict) and isinstance(encoder.get('type'), str) and encoder['type'] in ENCODERS:
        complete = encoder_defaults(encoder['type']) | encoder
        options |= {f'encoder:{key}': value for key, value in complete.items() if key not in FREE_IN_ENCODER}
    return {key: plain(value, repr) for key, value in options.items()}


def _shown(options: dict, key: str) -> str:
    text = ' '.join(str(options[key]).split()) if key in options else 'left out'
    text = {'None': '~', 'True': 'true', 'False': 'false'}.get(text, text)
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'
