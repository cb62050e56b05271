"""What `import mmagic` needs today: :func:`prepare`, which ``import_hooks`` calls before it.

numpy.bool8 (gone since numpy 2)
    An alias of numpy.bool.
mmcv.ops, where mmcv's own does not import (mmcv-lite has no compiled operators)
    A module with any name that is asked for; each object reports upon use that it is missing.
albumentations
    Kept from asking a server for its newest version.
controlnet_aux, where it is not installed
    A module with the one class that ``mmagic.apis`` imports from it, which reports upon use that it is missing.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from clit_basicsr.base.errors import UserError

OPS = 'mmcv.ops'
CONTROLNET = 'controlnet_aux'


def prepare() -> None:
    """Makes ``import mmagic`` work; does nothing the second time."""
    os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
    alias_bool8()
    stub_mmcv_ops()
    stub_controlnet()


def alias_bool8() -> None:
    """Gives numpy back its name ``bool8``."""
    if not hasattr(np, 'bool8'):
        np.bool8 = np.bool_  # type: ignore[attr-defined]


def stub_mmcv_ops() -> None:
    """Puts a stand-in for ``mmcv.ops`` in place, if and only if there is an mmcv whose own does not import."""
    if importlib.util.find_spec('mmcv') is None:
        return
    try:
        importlib.import_module(OPS)
    except ImportError as error:
        # mmcv-lite has the Python part: what it left behind goes, and it is not to be found again.
        for name in [name for name in sys.modules if name == OPS or name.startswith(f'{OPS}.')]:
            del sys.modules[name]
        sys.meta_path.insert(0, _OpsFinder(' '.join(str(error).split())))


def stub_controlnet() -> None:
    """Puts a stand-in for ``controlnet_aux`` in place if there is none."""
    if CONTROLNET in sys.modules or importlib.util.find_spec(CONTROLNET) is not None:
        return
    module = ModuleType(CONTROLNET)
    error = UserError(f'HEDdetector is of the package {CONTROLNET}, which is not installed; pip install {CONTROLNET}.')
    module.HEDdetector = _Missing('HEDdetector', (), {'error': error})  # type: ignore[attr-defined]
    sys.modules[CONTROLNET] = module


class _Missing(type):
    """The type of a class that MMagic may import and inherit from, but that nobody can make an object of or call."""

    error: UserError

    def __call__(cls, *_, **__):
        raise cls.error

    def __getattr__(cls, name: str):
        if name.startswith('__'):
            raise AttributeError(name)
        raise cls.error


class _OpsModule(ModuleType):
    """`mmcv.ops`, or a module in it. MMagic imports functions that have the name of such a module (upfirdn2d)."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.reason = reason

    def __getattr__(self, name: str) -> type:
        if name.startswith('__'):
            raise AttributeError(name)
        return _Missing(name, (), {'error': self.missing(f'{self.__name__}.{name}')})

    def __call__(self, *_, **__):
        raise self.missing(self.__name__)

    def missing(self, name: str) -> UserError:
        return UserError(
            f'{name} needs the compiled operators of mmcv, which do not import here ({self.reason}); '
            'pip uninstall mmcv-lite, then pip install mmcv==2.1.0.'
        )


class _OpsLoader(importlib.abc.Loader):
    def __init__(self, reason: str) -> None:
        self.reason = reason

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _OpsModule(spec.name, self.reason)

    def exec_module(self, module: ModuleType) -> None:
        """Its attributes come to be when they are asked for."""


class _OpsFinder(importlib.abc.MetaPathFinder):
    """First in `sys.meta_path`: before the Python part of mmcv's operators, which lies there without the rest."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != OPS and not fullname.startswith(f'{OPS}.'):
            return None
        return importlib.machinery.ModuleSpec(fullname, _OpsLoader(self.reason), is_package=True)
