"""Whether a block of an option file fits what it is for: keys, types, and the nearest valid key where it does not."""

from __future__ import annotations

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, Union, get_args, get_origin

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest

LISTS = (list, tuple, collections.abc.Sequence)


def check_keys(block: dict, where: str, known: Iterable[str]) -> None:
    """Raises UserError upon the first key that is not known, with the nearest that is."""
    known = list(known)
    for key in block:
        if key not in known:
            raise UserError(
                f'{joined(where, key)} is not an option; the nearest one is {joined(where, nearest(key, known))}'
            )


def check_block(block: dict, where: str, options: dict[str, Any], required: Iterable[str] = ()) -> None:
    """Raises UserError upon an unknown key, a value of the wrong type, or a required key that is not there.

    Args:
        where: The block's own name, such as network_g:encoder.
        options: Annotation (`int`, `str | None`, `Sequence[int]`, ...) or tuple of types for each valid key.
    """
    check_keys(block, where, options)
    for key in required:
        if key not in block:
            raise UserError(f'{joined(where, key)} is missing')
    for key, value in block.items():
        check_type(value, joined(where, key), options[key])


def check_type(value: Any, where: str, annotation: Any) -> None:
    if not fits(value, annotation):
        raise UserError(f'{where} must be {describe(annotation)}, got {value!r}')


def check_number(value: Any, where: str, least: float, below: float = math.inf, whole: bool = False) -> None:
    """Raises UserError unless the value is a number of at least ``least`` and below ``below``.

    Args:
        whole: whether it must be a whole number; 5e3 is one.
    """
    check_type(value, where, float)
    if whole and value != int(value):
        raise UserError(f'{where} must be a whole number, got {value!r}')
    if not least <= value < below:
        limit = f' and below {below:g}' if below < math.inf else ''
        raise UserError(f'{where} must be at least {least:g}{limit}, got {value!r}')


def plain(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """The same in dicts, lists, texts, numbers, booleans and None: what JSON and ``weights_only`` know.

    Args:
        other: what becomes of values of other types; None: they are refused.

    Raises:
        UserError: a value cannot be saved.
    """
    if isinstance(value, dict):
        return {str(key): plain(item, other) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, other) for item in value]
    if isinstance(value, float):  # one of numpy's is a float too
        return float(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if other is None:
        raise UserError(f'an option of type {type(value).__name__} cannot be saved with a network.')
    return other(value)


def joined(where: str, key: str) -> str:
    return f'{where}:{key}' if where else str(key)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value read from YAML can stand where Python asks for this type. Lists do for any kind of sequence."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, tuple):  # as isinstance takes them
        return any(fits(value, one) for one in annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if (origin or annotation) in LISTS:
        elements = [one for one in arguments if one is not Ellipsis]
        return isinstance(value, list | tuple) and (not elements or all(fits(item, elements[0]) for item in value))
    if annotation in (None, type(None)):
        return value is None
    if annotation in (int, float):
        number = isinstance(value, int if annotation is int else int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if (origin or annotation) in (bool, str, dict):
        return isinstance(value, origin or annotation)
    return True


def describe(annotation: Any) -> str:
    """The type in the words of an option file."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, tuple):
        arguments, origin = annotation, Union
    if origin in (Union, types.UnionType):
        words = ['~' if one is type(None) else describe(one) for one in arguments]
        return ' or '.join(
            dict.fromkeys('a number' if word == 'a whole number' and float in arguments else word for word in words)
        )
    if origin is Literal:
        return ' or '.join(map(str, arguments))
    if (origin or annotation) in LISTS:
        return 'a list'
    names = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a word', dict: 'a block of options'}
    return names.get(origin or annotation, str(annotation))


def options_of(cls: type) -> tuple[dict[str, Any], list[str]]:
    """The options that a class takes in its constructor: annotation of each, and those without a default.

    The host's classes have no annotations; there the default gives the type.
    """
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:
        hints = {}
    named = {name: one for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    options = {name: hints.get(name, type_of_default(one.default)) for name, one in named.items()}
    return options, [name for name, one in named.items() if one.default is one.empty]


def type_of_default(default: Any) -> Any:
    if default is None or default is inspect.Parameter.empty:
        return Any
    if isinstance(default, int | float) and not isinstance(default, bool):
        return float
    return list if isinstance(default, list | tuple) else type(default)
