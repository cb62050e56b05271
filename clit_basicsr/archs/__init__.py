"""Networks, registered in the host's ARCH_REGISTRY: one file for each system, found by its suffix as BasicSR does.

To add a decoder: ``<name>_arch.py`` here with a subclass of :class:`~clit_basicsr.archs.implicit.ImplicitNet`, an
option file, and an entry in ``tests/helpers/networks.py``.
"""

# First of all: once it is imported, BasicSR gets to know the networks, data sets and models of this package, and must
# not meet one of its modules half imported.
import basicsr  # noqa: F401  isort: skip

from importlib import import_module
from pkgutil import iter_modules

from basicsr.utils.registry import ARCH_REGISTRY

from clit_basicsr.archs.checkpoint import load_checkpoint, save_checkpoint
from clit_basicsr.archs.networks import build_network

for _module in iter_modules(__path__):
    if _module.name.endswith('_arch'):
        import_module(f'{__name__}.{_module.name}')

__all__ = ['build_network', 'load_checkpoint', 'save_checkpoint']


def __getattr__(name: str) -> type:
    """``from clit_basicsr.archs import LIT``: every registered network of this package by its name."""
    if name in ARCH_REGISTRY and ARCH_REGISTRY.get(name).__module__.startswith(f'{__name__}.'):
        return ARCH_REGISTRY.get(name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
