"""Which implementation computes the local attention, and why another one cannot.

``reference`` is the definition (:mod:`clit_basicsr.ops.attention.reference`); ``torch`` is the same by the faster
formulas in plain torch; ``cpu`` and ``cuda`` have compiled kernels.
:mod:`clit_basicsr.ops.backends.contract` defines what a backend is.

To add a backend: one file here with the names of the contract, and its place in :data:`BACKENDS`.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import cast

import torch

from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.backends import cpu_backend, cuda_backend, reference_backend, torch_backend
from clit_basicsr.ops.backends.constant import constant_result
from clit_basicsr.ops.backends.contract import Backend, Call, Kernels

# Fastest first: 'auto' takes the first without a reason against a call.
BACKENDS: tuple[Backend, ...] = (cuda_backend, cpu_backend, torch_backend, reference_backend)
NAMES = tuple(backend.NAME for backend in BACKENDS)

_default = os.environ.get('CLIT_BACKEND', 'auto')
_usable: set[str] = set()  # names of backends whose kernels are loaded


def find(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UserError: the name is not known.
    """
    if name not in NAMES:
        raise UserError(f'backend must be one of auto, {", ".join(NAMES)}; got {name!r}.')
    return BACKENDS[NAMES.index(name)]


def select(backend: str | None, call: Call) -> str:
    """The name of the backend that computes a call of :func:`clit_basicsr.ops.local_attention`.

    Args:
        backend: a name, 'auto', or None for the default: that of :func:`use_backend`, else of the environment variable
            CLIT_BACKEND, else 'auto'.

    Raises:
        UserError: a backend asked for by name is unknown or cannot run, with the cause.
    """
    backend = backend or _default
    if backend == 'auto':
        backend = next(one.NAME for one in BACKENDS if one.reason(call) is None)
        if backend == torch_backend.NAME and call.v is not None:
            _warn_once(call.v.device)
        return backend
    cause = find(backend).reason(call)
    if cause is not None:
        raise UserError(f'backend {backend!r} cannot run here: {cause}.')
    return backend


def serves(backend: str, call: Call) -> bool:
    """Whether a call without a backend of its own is computed by this one; in place of an error, False."""
    if _default == 'auto':
        return select(None, call) == backend
    return _default == backend and find(backend).reason(call) is None


def kernels(backend: str) -> Kernels:
    """A backend's kernels, loaded.

    Raises:
        UserError: they cannot be used here, with the cause.
    """
    found = find(backend)
    if backend not in _usable:  # every operator asks
        if (cause := found.unavailable()) is not None:
            raise UserError(f'backend {backend!r} cannot run here: {cause}.')
        _usable.add(backend)
    return cast(Kernels, found)


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Makes a backend the default within a ``with`` block."""
    global _default
    before, _default = _default, backend
    try:
        yield
    finally:
        _default = before


@constant_result
@cache
def _warn_once(device: torch.device) -> None:
    """The user should know that the fast kernels for a device are missing, but not at every call."""
    if device.type not in NAMES:
        return
    cause = find(device.type).unavailable(device)
    if cause is not None:
        warnings.warn(
            f'the {device.type.upper()} kernels are not used; plain torch computes instead: {cause.splitlines()[0]} '
            '(basicsr info shows the whole reason)',
            stacklevel=2,
        )
