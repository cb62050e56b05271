"""Weights pickled by flax, a tree of NumPy arrays: read without flax, and without running what a pickle asks for."""

import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.file_kinds import check_regular

# All that a pickle may name: (module, name) -> what stands for it here.
ADMITTED: dict[tuple[str, str], Any] = {
    ('flax.core.frozen_dict', 'FrozenDict'): dict,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
    ('numpy._core.multiarray', '_reconstruct'): _reconstruct,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f'it holds {module}.{name}')
        return ADMITTED[module, name]


def read_flax(path: str | os.PathLike) -> dict:
    """A checkpoint of Thera, ``{model, backbone, size}``, in the form of the other published checkpoints.

    Returns:
        dict: ``{'model': {'name': 'thera', 'args': {...}, 'sd': {'params/...': tensor}}}``.

    Raises:
        UserError: the file cannot be read, or holds anything but arrays and plain values.
    """
    path = os.fspath(path)
    check_regular(path)
    try:
        with open(path, 'rb') as file:
            content = _Reader(file).load()
        if not isinstance(content, dict) or not isinstance(content.get('model'), dict):
            raise UserError(f'{path} is not a checkpoint of Thera: it has no tree of weights under the key model.')
        weights = dict(_leaves(content['model'], '', path))
        args = {key: value for key, value in content.items() if isinstance(value, str)}
    except UserError:
        raise
    except Exception as error:  # a damaged pickle stops anywhere
        reason = ' '.join(str(error).split())[:100]
        raise UserError(
            f'{path} is not a pickle of arrays alone, or is damaged, so it is not loaded ({reason}).'
        ) from error
    return {'model': {'name': 'thera', 'args': args, 'sd': weights}}


def write_flax(content: dict, path: str) -> None:
    """The inverse of :func:`read_flax`: plain dicts of arrays, which flax takes as it takes its own.

    The file is written in place: give a temporary name.

    Args:
        content: ``name``, ``args``, ``sd``.
    """
    tree: dict = {}
    for key, value in content['sd'].items():
        *parents, name = key.split('/')
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value.detach().cpu().numpy()
    with open(path, 'wb') as file:
        pickle.dump({'model': tree, **content['args']}, file, protocol=4)


def _leaves(tree: dict, prefix: str, path: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f'{prefix}{name}/', path)
        else:
            array = np.asarray(value)
            if array.dtype.kind != 'f':
                raise UserError(f'{path} holds {prefix}{name}, which is {array.dtype} and not floating point.')
            with np.errstate(over='ignore'):  # infinite values are reported where the weights are used
                yield f'{prefix}{name}', torch.from_numpy(np.array(array, dtype=np.float32))
