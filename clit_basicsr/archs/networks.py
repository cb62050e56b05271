"""Networks from options: those of an option file, which its user has chosen, and those of a file of weights."""

import inspect
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from clit_basicsr.archs.encoders import ENCODERS, encoder_types
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.option_types import check_type, options_of

# Bounds on what a file may describe, next to the weights in it: room for layers that an encoder builds and removes.
LEAST_COUNT, MOST_LAYERS, SPARE_TENSORS, SPARE_NUMBERS = 1024, 16, 200, 50_000_000
# What constructors raise upon options that contradict each other; the host's do not check theirs.
UNFIT = (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AssertionError, AttributeError)


def build_network(network_g: dict) -> nn.Module:
    """Builds a network from the ``network_g`` block of an option file: one of ours or of the host.

    Raises:
        UserError: the type is not known, or does not have an option.
    """
    network, options = _class_and_options(network_g)
    return network(**options)


def build_from_file(network_g: Any, weights: dict[str, Tensor], path: str | os.PathLike) -> nn.Module:
    """Builds the network that a file of weights says it is of, from ``network_g`` in it.

    The file is not trusted: the network is one of this package, its options have the types of an option file, and
    before any memory is allocated it is built on the meta device and compared with the weights. (Networks of the host
    may read or download files in their constructors.)

    Raises:
        UserError: the network is not one of this package, an option is not valid, or weights and network do not fit.
    """
    try:
        network, options = _outlined(network_g, weights)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    return network(**options)


def _outlined(network_g: Any, weights: dict[str, Tensor]) -> tuple[type[nn.Module], dict[str, Any]]:
    """Class and options of a network that has been built without memory, and has the shapes of the weights."""
    if not isinstance(network_g, dict) or not isinstance(network_g.get('type'), str):
        raise UserError('network_g in it names no type of network, so it is not a checkpoint of one.')
    network, options = _class_and_options(network_g)
    if not network.__module__.startswith('clit_basicsr.'):
        raise UserError(
            f'it is of {network_g["type"]}, a network of BasicSR for one scale only; from a file only networks of '
            f'this package are built ({", ".join(_own_networks())}); name others in an option file.'
        )
    _check_types(network, options)
    _check_numbers(options, 'network_g', _largest_count(weights))
    try:
        with _nothing_allocated(), _bounded(weights):
            outline = network(**deepcopy(options))
    except UserError:
        raise
    except UNFIT as error:
        reason = ' '.join(str(error).split())[:150]
        raise UserError(f'network_g in it does not describe a {network.__name__}: {reason}') from error
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*copying from a non-meta parameter')
        check_fit(outline, weights, 'the weights')
    return network, options


def check_fit(net: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Loads weights, every one of them, or raises UserError if keys, shapes or types are not those of the network."""
    for key, own in net.state_dict().items():
        if key in weights and weights[key].is_floating_point() != own.is_floating_point():
            raise UserError(
                f'{source} do not fit {type(net).__name__}: {key} is {weights[key].dtype}, not {own.dtype}.'
            )
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shown = ' '.join(' '.join(lines).split())[:300]
        raise UserError(f'{source} do not fit {type(net).__name__}: {shown}') from error


def _class_and_options(network_g: dict) -> tuple[type[nn.Module], dict[str, Any]]:
    options = deepcopy(dict(network_g))
    kind = options.pop('type', None)
    if kind not in ARCH_REGISTRY:
        raise UserError(f'network_g:type {kind!r} is not a known network.')
    network = ARCH_REGISTRY.get(kind)
    accepted = inspect.signature(network).parameters
    for key in options:
        if key not in accepted and 'kwargs' not in accepted:
            raise UserError(f'network_g has no option {key!r} for {kind}; it takes: {", ".join(accepted)}.')
    return network, options


def _own_networks() -> list[str]:
    return sorted(name for name, network in ARCH_REGISTRY if network.__module__.startswith('clit_basicsr.'))


def _check_types(network: type[nn.Module], options: dict[str, Any]) -> None:
    """Raises UserError for an option of another type than an option file may give it, or one that is missing."""
    types, required = options_of(network)
    for key in required:
        if key not in options:
            raise UserError(f'network_g:{key} is missing')
    for key, value in options.items():
        check_type(value, f'network_g:{key}', types[key])
    encoder = options.get('encoder')
    if not isinstance(encoder, dict):
        return
    check_type(encoder.get('type'), 'network_g:encoder:type', str)
    if encoder['type'] not in ENCODERS:
        return  # the encoder's own error
    hints = encoder_types(encoder['type'])
    for key, value in encoder.items():
        if key != 'type':
            check_type(value, f'network_g:encoder:{key}', hints.get(key, Any))


def _check_numbers(value: Any, where: str, most: int) -> None:
    """Raises UserError for numbers and lists too large for the weights that the file holds."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(item, f'{where}:{key}', most)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_numbers(item, where, most)
        if len(value) > most or sum(item for item in value if isinstance(item, int)) > MOST_LAYERS * most:
            raise UserError(f'{where} has more or larger entries than the weights in the file can be of.')
    elif isinstance(value, int | float) and not abs(value) <= most:  # false for NaN too
        raise UserError(
            f'{where} is {value:.4g}, too much for the weights in the file; it is damaged or was made to exhaust the '
            'memory.'
        )


def _largest_count(weights: dict[str, Tensor]) -> int:
    """No option of a network with these weights is a larger number: the most tensors, channels or pixels of a side."""
    sides = [side for value in weights.values() if _stored(value) == value.numel() for side in value.shape]
    return max([LEAST_COUNT, len(weights), *sides])


def _stored(value: Tensor) -> int:
    """How many numbers of a tensor are in the file: an expanded one repeats them."""
    return min(value.numel(), value.untyped_storage().nbytes() // value.element_size())


@contextmanager
def _bounded(weights: dict[str, Tensor]) -> Iterator[None]:
    """Stops what builds networks of many more tensors or numbers than the file holds."""
    most_tensors = 2 * len(weights) + SPARE_TENSORS
    most_numbers = 4 * sum(_stored(value) for value in weights.values()) + SPARE_NUMBERS
    tensors = numbers = 0

    def count(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal tensors, numbers
        if value is not None:
            tensors, numbers = tensors + 1, numbers + math.prod(value.shape)
        if tensors > most_tensors or numbers > most_numbers:
            raise UserError(
                'network_g in it describes a far larger network than its weights are of; it is damaged or was made to '
                'exhaust the memory.'
            )

    with ExitStack() as stack:
        for register in (
            torch_module.register_module_parameter_registration_hook,
            torch_module.register_module_buffer_registration_hook,
        ):
            stack.enter_context(register(count))
        yield


class _ReadableRanges(TorchFunctionMode):
    """Keeps torch.linspace on the CPU: SwinIR reads the numbers of one while it is built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


@contextmanager
def _nothing_allocated() -> Iterator[None]:
    with torch.device('meta'), _ReadableRanges():
        yield
