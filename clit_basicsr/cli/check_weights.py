"""The weights that a run begins with, read before anything is created: the host looks at them after it has moved an
earlier run of the same name aside.
"""

from __future__ import annotations

import warnings
from typing import Any

from clit_basicsr.archs.encoders import Trunk, build_encoder, load_pretrained
from clit_basicsr.archs.network_options import differing_options
from clit_basicsr.base.errors import UserError
from clit_basicsr.hosts.basicsr.resume import load_weights, weights_of


def check_weights(opt: dict, net: Any, resuming: bool) -> None:
    """Refuses weights that the network cannot take, and random ones in a test.

    Args:
        net: network_g, on whatever device, whose values may change; None if it is the host's.
        resuming: whether a training continues with weights of its own.
    """
    path = opt['path']
    untrained = path.pop('untrained_network_g', False)  # the host would make a folder of it
    file = path.get('pretrain_network_g')
    if file and not resuming:
        check_fit(opt, net, file)
    elif path.get('pretrain_network_encoder') and not resuming and isinstance(getattr(net, 'encoder', None), Trunk):
        block = opt['network_g']['encoder']
        load_pretrained(build_encoder(block), dict(block), path['pretrain_network_encoder'])
    if opt['is_train'] or file or untrained:
        return
    if net is None or any(True for _ in net.parameters()):
        raise UserError(
            'path:pretrain_network_g is missing: a test without a checkpoint would measure random weights (path: '
            '{untrained_network_g: true} does, for benchmarks)'
        )


def check_fit(opt: dict, net: Any, file: str) -> None:
    """Raises UserError for a file that cannot be read, or is of another network; it names the options that differ."""
    content, _, weights = weights_of(file, opt['path'].get('param_key_g', 'params'))
    if net is None or not opt['path'].get('strict_load_g', True):
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*copying from a non-meta parameter')
            load_weights(net, weights, file)
    except UserError as error:
        held = content.get('network_g')
        lines = differing_options(opt['network_g'], held) if isinstance(held, dict) else []
        if not lines:
            raise
        raise UserError(
            f'{file} does not fit the network {type(net).__name__}; in the file, network_g has other options: '
            f'{"; ".join(lines)}'
        ) from error
