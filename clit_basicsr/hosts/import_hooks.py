"""What has to happen around the imports of torchvision, BasicSR and MMagic, and nothing before they are imported.

torchvision, where its compiled library cannot be loaded (a CUDA build with a CPU torch)
    Before: the operator schemas that the library would have defined are declared, so that the Python part imports.
torchvision.transforms.functional_tensor, where there is no such module (torchvision >= 0.17)
    An alias with the one function that BasicSR needs from it.
basicsr
    During: its imports of torchvision and scipy wait until they are used (:mod:`clit_basicsr.hosts.deferred`).
    After: ``basicsr.fixes.apply()``.
mmagic
    Before: ``mmagic.imports.prepare()``. After those of its packages that fill its registries: our own classes enter
    them (:mod:`clit_basicsr.hosts.mmagic.plugin`).
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

from clit_basicsr.hosts.deferred import deferring

# Together twice the time that torch takes to import; BasicSR uses them within functions alone.
DEFERRED = ('torchvision', 'scipy')
FUNCTIONAL_TENSOR = 'torchvision.transforms.functional_tensor'
# Packages of MMagic that fill its registries when they are imported; ours follow.
MMAGIC_PARTS = ('mmagic.models', 'mmagic.datasets', 'mmagic.evaluation', 'mmagic.engine')

_schemas: list = []  # torch.library.Library objects: the schemas go when they do


def declare_torchvision_schemas() -> None:
    """Declare ``torchvision::nms`` and ``qnms`` if torchvision's compiled library does not load.

    torchvision attaches fake kernels to these operators while it is imported and raises `operator torchvision::nms
    does not exist` where the library that defines them could not be loaded. BasicSR needs none of its operators.
    """
    if _schemas or torchvision_library_loads():
        return
    import torch

    library = torch.library.Library('torchvision', 'FRAGMENT')
    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _schemas.append(library)


def torchvision_library_loads() -> bool:
    """Whether torchvision's compiled library can be loaded with the torch that is installed."""
    import torch

    spec = importlib.machinery.PathFinder.find_spec('torchvision')
    folders = spec.submodule_search_locations if spec else None
    libraries = [
        file for folder in folders or [] for file in Path(folder).glob('_C*') if file.suffix in ('.so', '.pyd')
    ]
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


class _AliasLoader(importlib.abc.Loader):
    """Loads `functional_tensor` as a module that holds today's function of the same name."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        functional = importlib.import_module('torchvision.transforms.functional')
        module.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]


class _AliasFinder(importlib.abc.MetaPathFinder):
    """Last in `sys.meta_path`: asked only when no real module of that name exists."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != FUNCTIONAL_TENSOR:
            return None
        return importlib.machinery.ModuleSpec(fullname, _AliasLoader())


class _HostLoader(importlib.abc.Loader):
    """A host's own loader, within a context that is entered when the module is executed."""

    def __init__(
        self, loader: importlib.abc.Loader, context: Callable[[ModuleType], AbstractContextManager[None]]
    ) -> None:
        self.loader, self.context = loader, context

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # introspection and resources should meet the real loader
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        with self.context(module):
            self.loader.exec_module(module)


class _HostFinder(importlib.abc.MetaPathFinder):
    """First in `sys.meta_path`: sees torchvision and the hosts before they are imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == 'torchvision':
            declare_torchvision_schemas()
        if fullname not in _CONTEXTS:
            return None
        others = [finder.find_spec for finder in sys.meta_path if finder is not self and hasattr(finder, 'find_spec')]
        # Editable installs have finders of their own.
        spec = next((found for find in others if (found := find(fullname, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _HostLoader(spec.loader, _CONTEXTS[fullname])
        return spec


@contextmanager
def _importing_basicsr(module: ModuleType) -> Iterator[None]:
    with deferring(module.__name__, DEFERRED):
        yield
    _apply_basicsr_fixes()


@contextmanager
def _importing_mmagic(module: ModuleType) -> Iterator[None]:
    importlib.import_module('clit_basicsr.hosts.mmagic.imports').prepare()
    yield


@contextmanager
def _importing_part_of_mmagic(module: ModuleType) -> Iterator[None]:
    yield
    _register_in_mmagic(module.__name__)


_CONTEXTS: dict[str, Callable[[ModuleType], AbstractContextManager[None]]] = {
    'basicsr': _importing_basicsr,
    'mmagic': _importing_mmagic,
    **dict.fromkeys(MMAGIC_PARTS, _importing_part_of_mmagic),
}


def _register_in_mmagic(part: str) -> None:
    importlib.import_module('clit_basicsr.hosts.mmagic.plugin').register(part)


def _apply_basicsr_fixes() -> None:
    from clit_basicsr.hosts.basicsr import fixes as basicsr_fixes

    basicsr_fixes.apply()


def install() -> None:
    """Put the finders in place, once; a host may already be imported (then its fixes are applied now)."""
    if any(isinstance(finder, _HostFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _HostFinder())
    sys.meta_path.append(_AliasFinder())
    if 'basicsr.train' in sys.modules:
        _apply_basicsr_fixes()
    for part in MMAGIC_PARTS:
        if part in sys.modules:
            _register_in_mmagic(part)
