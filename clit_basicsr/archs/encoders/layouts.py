"""Renaming weights between the key names of repositories: a layout is a table of pairs."""

import re

from torch import Tensor

from clit_basicsr.base.errors import UserError

# Pairs (their key, our key). A name in braces stands for one part of the key and is the same on both sides; a number
# that only their key has (the place of a layer after a list of blocks) has to be given when renaming back.
Layout = tuple[tuple[str, str], ...]
_PARTS = {'i': r'\d+', 'j': r'\d+', 'n': r'\d+', 'm': r'\d+', 'q': '[qkv]', 'p': r'\w+', 'rest': '.+'}
# Our own names.
SAME: Layout = (('{rest}', '{rest}'),)


def rename(weights: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same tensors under our keys, and those that the layout does not know, under theirs."""
    table = [(_pattern(theirs), ours) for theirs, ours in layout]
    renamed, unknown = {}, {}
    for key, value in weights.items():
        for pattern, ours in table:
            if match := pattern.fullmatch(key):
                renamed[ours.format(**match.groupdict())] = value
                break
        else:
            unknown[key] = value
    return renamed, unknown


def rename_back(weights: dict[str, Tensor], layout: Layout, **places: int) -> dict[str, Tensor]:
    """The inverse of :func:`rename`; ``places`` are the numbers that only their keys have.

    Raises:
        UserError: the layout does not cover a key.
    """
    table = [(_pattern(ours), theirs) for theirs, ours in layout]
    renamed = {}
    for key, value in weights.items():
        for pattern, theirs in table:
            if match := pattern.fullmatch(key):
                renamed[theirs.format(**{**places, **match.groupdict()})] = value
                break
        else:
            raise UserError(f'{key!r} is not covered by the published layout.')
    return renamed


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r'\{(\w+)\}', template)
    named = (f'(?P<{part}>{_PARTS[part]})' if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return re.compile(''.join(named))


def count(weights: dict[str, Tensor], pattern: str) -> int:
    """How many different values the pattern's group takes over the keys."""
    return len({match.group(1) for key in weights if (match := re.match(pattern, key))})
