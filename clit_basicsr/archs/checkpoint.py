"""Networks from options, and checkpoints that know their options."""

import inspect
import json
import os
import pickle
import re
from copy import deepcopy

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.safetensors_file import read_safetensors, write_safetensors

SAFETENSORS = '.safetensors'


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
    if path.endswith(SAFETENSORS):
        return _read_safetensors(path)
    if not os.path.isfile(path):
        raise UserError(f'there is no checkpoint {path}.')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        # Of torch's paragraphs the one about this file; the others advise to run what is in it.
        text = re.split('WeightsUnpickler error:|trusted source\\.', str(error))[-1].split('Check the documentation')[0]
        reason = ' '.join(text.split())[:200]
        raise UserError(
            f'{path} is no checkpoint of tensors and plain values, so it is not loaded: {reason}'
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f'{path} cannot be read as a checkpoint; it is damaged or cut off.') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a checkpoint.')
    return content


def _read_safetensors(path: str) -> dict:
    tensors, metadata = read_safetensors(path)
    content: dict = {'params': tensors}
    for key, text in metadata.items():
        if key != 'format':
            try:
                content[key] = json.loads(text)
            except ValueError:
                content[key] = text  # another program's
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


def save_checkpoint(path: str, content: dict) -> None:
    """Writes a checkpoint; a partial file of that name never exists.

    Args:
        path: ending in .safetensors: the weights that a network answers with (``params_ema``, or else ``params``), and
            all plain values as JSON in the metadata; otherwise the host's format.
        content: ``params`` and, if there are any, ``params_ema``, key -> tensor; ``network_g``, type and options; plain
            values beside them as wanted.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f'there is no folder {folder} to write {os.path.basename(path)} into.')
    if path.endswith(SAFETENSORS):
        left_out = ('params', 'params_ema', 'published_unused')
        metadata = {key: json.dumps(plain(value)) for key, value in content.items() if key not in left_out}
        write_safetensors(path, content.get('params_ema') or content['params'], {'format': 'pt', **metadata})
        return
    if 'network_g' in content:
        content = {**content, 'network_g': plain(content['network_g'])}
    temporary = f'{path}.tmp'
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: str, param_key: str = 'params_ema') -> nn.Module:
    """The network of a checkpoint that holds its options, in evaluation mode, on the CPU.

    Args:
        path: what ``train`` or ``convert`` saved.
        param_key: 'params_ema' (the averaged weights, or ``params`` where there are none) or 'params'.

    Raises:
        UserError: the file cannot be read, holds no options, or weights that are not those of the network.
    """
    content = read_checkpoint(path)
    if 'network_g' not in content:
        hint = (
            'convert it first (basicsr convert)'
            if 'model' in content
            else 'those that basicsr train and basicsr convert write do'
        )
        raise UserError(f'{path} does not say which network it is of (no network_g in it); {hint}.')
    key = param_key if param_key in content else 'params'
    if key not in content:
        raise UserError(f'{path} holds no weights (neither params nor params_ema).')
    net = build_network(content['network_g'])
    weights = {name.removeprefix('module.'): value for name, value in content[key].items()}
    load_weights(net, weights, f'the weights in {path}')
    return net.eval()


def plain(value):
    """The same options in dicts, lists, texts, numbers, booleans and None: what JSON and ``weights_only`` know."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise UserError(f'an option of type {type(value).__name__} cannot be saved with a network.')
