"""What a host imports and hardly ever uses, imported when it is used: seconds that every command would pay.

BasicSR imports torchvision (and with it torch._dynamo, as long as torch itself) for `make_grid`, `normalize`, VGG and
deformable convolutions, and scipy.stats for one degradation. All of them are used within functions alone. While
BasicSR is being imported, its import statements for these packages give :class:`Deferred` objects; imports by anybody
else, then and later, are what they always are.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from typing import Any


class Deferred:
    """A module, or a name in one, that is imported at the first call or the first look at an attribute.

    It then replaces itself in the module that asked for it, so that later uses meet the thing itself.
    """

    def __init__(self, module: str, name: str | None, user: dict[str, Any]) -> None:
        self._module, self._name, self._user = module, name, user

    def _import(self) -> Any:
        thing = _load(self._module, self._name)
        for name in [name for name, value in self._user.items() if value is self]:
            self._user[name] = thing
        return thing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._import(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._import()(*args, **kwargs)

    def __repr__(self) -> str:
        return f'<{".".join(filter(None, (self._module, self._name)))}, imported when it is used>'

    def __reduce__(self) -> tuple:
        return _load, (self._module, self._name)


def _load(module: str, name: str | None) -> Any:
    """What ``import module`` or ``from module import name`` gives."""
    thing = importlib.import_module(module)
    if name is None:
        return thing
    if not hasattr(thing, name):
        importlib.import_module(f'{module}.{name}')
    return getattr(thing, name)


class _Names:
    """Stands for the module in ``from module import name``."""

    def __init__(self, module: str, user: dict[str, Any]) -> None:
        self._module, self._user = module, user

    def __getattr__(self, name: str) -> Deferred:
        return Deferred(self._module, name, self._user)


@contextmanager
def deferring(host: str, packages: tuple[str, ...]) -> Iterator[None]:
    """Within the block, the import statements of a host's modules give :class:`Deferred` objects for these packages.

    Packages that are imported already, or that the usual search does not find, are left to the import statement: it
    costs nothing, or raises what it should. `__import__` is what an import statement calls; modules of other packages
    that are imported in the block, in any thread, do not notice.
    """
    original = builtins.__import__
    found = {name for name in packages if name not in sys.modules and PathFinder.find_spec(name) is not None}

    def importing(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        top = name.partition('.')[0]
        if level or top not in found or top in sys.modules or not _is_of(host, globals):
            return original(name, globals, locals, fromlist, level)
        if fromlist and '*' not in fromlist:
            return _Names(name, globals)
        return Deferred(name, None, globals) if name == top else original(name, globals, locals, fromlist, level)

    builtins.__import__ = importing
    try:
        yield
    finally:
        if builtins.__import__ is importing:
            builtins.__import__ = original


def _is_of(host: str, globals: dict[str, Any] | None) -> bool:
    return globals is not None and f'{globals.get("__name__")}.'.startswith(f'{host}.')
