"""Which implementation computes the local attention, and why another one cannot.

``reference`` is the definition (:mod:`clit_basicsr.ops.attention.reference`); ``torch`` is the same by the faster
formulas in plain torch; ``cpu`` and ``cuda`` have kernels of their own. One function per backend, :data:`REASONS`, says
why it cannot run a call; selection and error message both ask it.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.backends import cpu_backend, cuda_backend, native, torch_backend


def _reference_reason(v: Tensor | None, **call) -> str | None:
    return None


def _torch_reason(v: Tensor | None, **call) -> str | None:
    if any(name in call and call[name] is None for name in ('q', 'k')):
        return 'without q and k there is no attention to speed up'
    if call.get('aggregation', 'flatten') != 'flatten':
        return f'aggregation {call["aggregation"]!r} has no fast path'
    coord = call.get('coord')
    if coord is not None and coord.requires_grad:
        return 'it has no gradient with respect to coord'
    return None


def _cpu_reason(v: Tensor | None, **call) -> str | None:
    cause = _torch_reason(v, **call)
    if cause is None and v is not None and (v.device.type != 'cpu' or v.dtype not in (torch.float32, torch.float64)):
        cause = f'it takes float32 and float64 on the CPU, not {v.dtype} on {v.device.type}'
    return cause or _native_reason('cpu')


def _cuda_reason(v: Tensor | None, **call) -> str | None:
    cause = _torch_reason(v, **call)
    if cause is None and v is not None and (v.device.type != 'cuda' or v.dtype not in cuda_backend.DTYPES):
        cause = f'it takes float32, float16 and bfloat16 on a CUDA device, not {v.dtype} on {v.device.type}'
    device = None if v is None else v.device
    return cause or _device_reason(device) or _native_reason('cuda')


@torch.compiler.assume_constant_result
def _device_reason(device: torch.device | None) -> str | None:
    """Why a CUDA device, by default the current one, is none for the kernels."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return f'its kernels need compute capability 8.0, which {torch.cuda.get_device_name(device)} does not have'
    return None


@torch.compiler.assume_constant_result
def _native_reason(name: str) -> str | None:
    if name == 'cuda' and not torch.cuda.is_available():
        return f'torch {torch.__version__} finds no CUDA device'
    cause = native.problem(name)
    return None if cause is None else f'its kernels are not built: {cause}'


@torch.compiler.assume_constant_result
@cache
def _tell_once(device: torch.device) -> None:
    """The user should know that the fast kernels are missing, but not at every call."""
    name = device.type
    cause = (_device_reason(device) if name == 'cuda' else None) or _native_reason(name)
    if cause is not None:
        warnings.warn(
            f'the {name.upper()} kernels are not used, plain torch serves instead: {cause.splitlines()[0]} '
            '(python -m clit_basicsr.info shows the whole reason)',
            stacklevel=2,
        )


# Fastest first: 'auto' takes the first without a reason against it.
REASONS: dict[str, Callable[..., str | None]] = {
    'cuda': _cuda_reason,
    'cpu': _cpu_reason,
    'torch': _torch_reason,
    'reference': _reference_reason,
}

_default = os.environ.get('CLIT_BACKEND', 'auto')


def select(backend: str | None, v: Tensor | None = None, **call) -> str:
    """The backend that computes a call of :func:`clit_basicsr.ops.local_attention` with these arguments.

    Args:
        backend: a name, 'auto', or None for the default: that of :func:`use_backend`, else of the environment variable
            CLIT_BACKEND, else 'auto'.

    Raises:
        UserError: a backend asked for by name is unknown or cannot run, with the cause.
    """
    backend = backend or _default
    if backend == 'auto':
        backend = next(name for name, reason in REASONS.items() if reason(v, **call) is None)
        if backend == 'torch' and v is not None and v.device.type in native.LIBRARIES:
            _tell_once(v.device)
        return backend
    if backend not in REASONS:
        raise UserError(f'backend must be one of auto, {", ".join(REASONS)}; got {backend!r}.')
    cause = REASONS[backend](v, **call)
    if cause is not None:
        raise UserError(f'backend {backend!r} cannot run here: {cause}.')
    return backend


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Makes a backend the default within a ``with`` block."""
    global _default
    before, _default = _default, backend
    try:
        yield
    finally:
        _default = before


def module(backend: str) -> ModuleType:
    """The module that holds a backend's kernels, loaded."""
    if backend in native.LIBRARIES and (cause := _native_reason(backend)):
        raise UserError(f'backend {backend!r} cannot run here: {cause}.')
    return {'torch': torch_backend, 'cpu': cpu_backend, 'cuda': cuda_backend}[backend]
