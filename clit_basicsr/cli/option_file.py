"""Option files as they stand on disk, and ``--force_yml`` on top. Pure Python.

Beside what the host does: list indices and missing parents in ``--force_yml``, numbers such as 1e-4 and -1, '=' in
values, YAML's merge keys (``<<: *name``), and errors of one line: duplicate keys are refused, as is YAML that would
take the memory or the stack to read.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

import yaml

from clit_basicsr.base.errors import UserError

INTEGER = re.compile(r'[+-]?\d+')
NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?')
EXPONENT = re.compile(r'[+-]?\d+(\.\d*)?[eE][+-]?\d+$')  # YAML 1.1 takes 1e-4 for a word
# Of an option file: characters, blocks within blocks, values in all. Ours have 5,000, 7 and 300.
MAX_LENGTH, MAX_DEPTH, MAX_VALUES = 1_000_000, 50, 100_000
WORDS = {'~': None, 'none': None, 'null': None, '': None, 'true': True, 'false': False}


class Loader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as the host reads it, where 1e-4 is a number too."""


Loader.add_implicit_resolver('tag:yaml.org,2002:float', EXPONENT, list('+-0123456789'))


def read(args: argparse.Namespace) -> dict:
    """The option file that a command line names, with its ``--force_yml``. Raises UserError: see below."""
    opt = read_option_file(args.opt)
    force(opt, args.force_yml)
    return opt


def read_option_file(path: str) -> dict:
    """The blocks of an option file.

    Raises:
        UserError: the file is missing, not YAML, or has a key twice; with the file and the line.
    """
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read(MAX_LENGTH + 1)
    except OSError as error:
        raise UserError(f'option file {path}: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'option file {path} is not a text file in UTF-8') from error
    try:
        opt = load_yaml(text, path)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        what = getattr(error, 'problem', None) or str(error).splitlines()[0]
        raise UserError(f'{path}, line {mark.line + 1}: {what}' if mark else f'{path}: {what}') from error
    except ValueError as error:  # of YAML's constructors: a date of a 13th month, an integer of 5,000 digits
        raise error if isinstance(error, UserError) else UserError(f'{path}: {error}') from error
    if not isinstance(opt, dict):
        raise UserError(
            f'option file {path} holds {"nothing" if opt is None else repr(opt)[:40]}, not a block of options'
        )
    return unshared(opt)


def load_yaml(text: str, path: str) -> Any:
    """The values of a YAML text, checked before it is built: its length, depth, aliases and keys."""
    if len(text) > MAX_LENGTH:
        raise UserError(f'option file {path} is longer than {MAX_LENGTH:,} characters; is it one?')
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1
            raise UserError(f'{path}, line {line}: blocks and lists are nested more than {MAX_DEPTH} deep')
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        check_node(node, path, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def check_node(node: yaml.Node, path: str, sizes: dict[int, int]) -> int:
    """How many values a node stands for, aliases written out.

    Args:
        sizes: of the nodes seen so far, by identity; 0 while a node is being looked at.

    Raises:
        UserError: a key stands twice in a block, or there are too many values.
    """
    line = f'{path}, line {node.start_mark.line + 1}'
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise UserError(f'{line}: the block holds itself, by an alias')
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
        keys: dict[Any, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f'{path}, line {key.start_mark.line + 1}: a key must be a word')
            if key.value in keys and key.tag != 'tag:yaml.org,2002:merge':
                first = keys[key.value].start_mark.line + 1
                raise UserError(
                    f'{path}, line {key.start_mark.line + 1}: {key.value} already appears in line {first}; keep one '
                    'of them'
                )
            keys[key.value] = key
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(check_node(child, path, sizes) for child in children)
    if size > MAX_VALUES:
        raise UserError(f'{line}: more than {MAX_VALUES:,} values, aliases written out; is this an option file?')
    sizes[id(node)] = size
    return size


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
            raise UserError(f'--force_yml {entry!r}: expected key=value or block:key=value')
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
