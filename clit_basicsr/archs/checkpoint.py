"""Checkpoints that know the options of their network."""

import json
import os

from torch import Tensor, nn

from clit_basicsr.archs.networks import build_from_file, build_network, check_fit  # noqa: F401  the second is public here
from clit_basicsr.base.checkpoints import SAFETENSORS, check_finite, read_checkpoint, weights_in, write_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import temporary_name
from clit_basicsr.base.option_types import plain
from clit_basicsr.base.safetensors_file import write_safetensors


def load_weights(net: nn.Module, weights: dict[str, Tensor], source: str = 'the weights') -> None:
    """Loads weights, every one of them.

    Raises:
        UserError: keys, shapes or types are not those of the network, or values are not finite.
    """
    check_fit(net, weights, source)
    # After the shapes: a file may hold one number as a tensor of any size.
    check_finite(weights, source)
    trained, branches = getattr(net, 'num_trained_branches', 1), getattr(net, 'num_branches', 1)
    if not 1 <= trained <= branches:
        raise UserError(f'{source} do not fit {type(net).__name__}: {trained} of its {branches} branches are trained.')


def save_checkpoint(path: str | os.PathLike, content: dict) -> None:
    """Writes a checkpoint; a partial file of that name never exists.

    Args:
        path: ending in .safetensors: the weights that a network answers with (``params_ema``, or else ``params``), and
            all plain values as JSON in the metadata; any other name: the host's format.
        content: ``params`` and, if there are any, ``params_ema``, key -> tensor; ``network_g``, type and options; any
            other plain values.
    """
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f'folder {folder} does not exist, so {os.path.basename(path)} cannot be written into it.')
    if path.endswith(SAFETENSORS):
        left_out = ('params', 'params_ema', 'published_unused')
        metadata = {key: json.dumps(plain(value)) for key, value in content.items() if key not in left_out}
        write_safetensors(path, content.get('params_ema') or content['params'], {'format': 'pt', **metadata})
        return
    if 'network_g' in content:
        content = {**content, 'network_g': plain(content['network_g'])}
    with temporary_name(path) as temporary:
        write_checkpoint(content, temporary)


def load_checkpoint(path: str | os.PathLike, param_key: str = 'params_ema') -> nn.Module:
    """The network of a checkpoint that holds its options, in evaluation mode, on the CPU.

    Args:
        path: what ``train`` or ``convert`` saved.
        param_key: 'params_ema' (the averaged weights, or ``params`` where there are none) or 'params'.

    Raises:
        UserError: the file cannot be read, holds no options, names a network that is not of this package, or weights
            that are not those of the network or not finite.
    """
    content = read_checkpoint(path)
    if 'optimizers' in content:
        raise UserError(f'{path} is a training state, without weights; give models/net_g_*.pth of the same experiment.')
    if 'network_g' not in content:
        hint = (
            'convert it first (basicsr convert)'
            if 'model' in content
            else 'those that basicsr train and basicsr convert write do'
        )
        raise UserError(f'{path} does not say which network it belongs to (it has no network_g); {hint}.')
    key = param_key if param_key in content else 'params'
    if key not in content:
        raise UserError(f'{path} holds no weights (neither params nor params_ema).')
    weights = {name.removeprefix('module.'): value for name, value in weights_in(content, key, path).items()}
    net = build_from_file(content['network_g'], weights, path)
    load_weights(net, weights, f'the weights in {path}')
    return net.eval()
