"""Networks from options, and checkpoints that know their options."""

import inspect
import os
import pickle
from copy import deepcopy

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.errors import UserError


def build_network(network_g: dict) -> nn.Module:
    """Builds a network from the ``network_g`` block of an option file.

    Raises:
        UserError: the type is unknown, or it has no such option.
    """
    options = deepcopy(dict(network_g))
    kind = options.pop('type', None)
    if kind not in ARCH_REGISTRY:
        raise UserError(f'network_g:type {kind!r} is no network that is known here.')
    network = ARCH_REGISTRY.get(kind)
    accepted = inspect.signature(network).parameters
    for key in options:
        if key not in accepted and 'kwargs' not in accepted:
            raise UserError(f'network_g has no option {key!r} for {kind}; it takes: {", ".join(accepted)}.')
    return network(**options)


def read_checkpoint(path: str) -> dict:
    """The content of a checkpoint: tensors and plain values, never code.

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than tensors and plain values.
    """
    if not os.path.isfile(path):
        raise UserError(f'there is no checkpoint {path}.')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'{path} is no checkpoint of tensors and plain values, so it is not loaded: {reason}'
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f'{path} cannot be read as a checkpoint; it is damaged or cut off.') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a checkpoint.')
    return content


def load_weights(net: nn.Module, weights: dict[str, Tensor], source: str = 'the weights') -> None:
    """Loads weights, every one of them.

    Raises:
        UserError: keys or shapes are not those of the network.
    """
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shown = ' '.join(' '.join(lines).split())[:300]
        raise UserError(f'{source} do not fit {type(net).__name__}: {shown}') from error
