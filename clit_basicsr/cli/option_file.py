"""Option files as they stand on disk, and ``--force_yml`` on top. Pure Python.

Beside what the host does: list indices and missing parents in ``--force_yml``, numbers such as 1e-4 and -1, '=' in
values, YAML's merge keys (``<<: *name``), and errors of one line.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from clit_basicsr.base.errors import UserError

INTEGER = re.compile(r'[+-]?\d+')
NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?')
EXPONENT = re.compile(r'[+-]?\d+(\.\d*)?[eE][+-]?\d+')  # YAML 1.1 takes 1e-4 for a word
WORDS = {'~': None, 'none': None, 'null': None, '': None, 'true': True, 'false': False}


def read_option_file(path: str) -> dict:
    """Raises UserError when the file is missing or not YAML, with the file and the line."""
    try:
        with open(path, encoding='utf-8') as file:
            opt = yaml.load(file, Loader=getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
    except OSError as error:
        raise UserError(f'option file {path}: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'option file {path} is not a text file') from error
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        what = getattr(error, 'problem', None) or str(error).splitlines()[0]
        raise UserError(f'{path}, line {mark.line + 1}: {what}' if mark else f'{path}: {what}') from error
    if not isinstance(opt, dict):
        raise UserError(
            f'option file {path} holds {"nothing" if opt is None else repr(opt)[:40]}, not a block of options'
        )
    return unshared(opt)


def unshared(value: Any) -> Any:
    """A copy in which blocks that YAML's anchors made one are several again."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


def force(opt: dict, entries: list[str] | None) -> None:
    """Sets ``a:b:0:c=value`` entries in place; a number is an index where there is a list.

    Raises:
        UserError: an entry has no '=', a list no such index, or a key stands below something that is not a block.
    """
    for entry in entries or []:
        path, equals, text = entry.partition('=')
        keys = [key.strip() for key in path.split(':')]
        if not equals or not all(keys):
            raise UserError(f'--force_yml {entry!r}: it is written key=value or block:key=value')
        block: Any = opt
        for depth, key in enumerate(keys[:-1]):
            key = key_of(block, key, entry)
            if isinstance(block, dict) and block.get(key) is None:
                block[key] = {}
            block = block[key]
            if not isinstance(block, dict | list):
                raise UserError(f'--force_yml {entry!r}: {":".join(keys[: depth + 1])} is {block!r}, not a block')
        block[key_of(block, keys[-1], entry)] = parse_value(text.strip(), entry)


def key_of(block: dict | list, key: str, entry: str) -> Any:
    """The key itself, or the index into a list."""
    if isinstance(block, dict):
        return key
    if not INTEGER.fullmatch(key) or not -len(block) <= int(key) < len(block):
        raise UserError(f'--force_yml {entry!r}: {key} is not an index of a list of {len(block)} (they count from 0)')
    return int(key)


def parse_value(text: str, entry: str = '') -> Any:
    """A value as written in ``--force_yml``: null, boolean, number, list or block in YAML's brackets, else a string."""
    if text.startswith('!!float'):
        text = text.removeprefix('!!float').strip()
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if INTEGER.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text):
        return float(text)
    if text[0] in '[{\'"':
        try:
            return converted(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UserError(f'--force_yml {entry!r}: the value is not complete') from error
    return text


def converted(value: Any) -> Any:
    """What YAML leaves as words within brackets: 1e-4, and Python's None."""
    if isinstance(value, dict):
        return {key: converted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [converted(item) for item in value]
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    return None if value == 'None' else value
