"""Words that messages share."""

import difflib
from collections.abc import Iterable
from typing import Any


def scale_text(scale: tuple[float, float]) -> str:
    """'2', '3.4', or '2x3.5' (y, x)."""
    return f'{scale[0]:g}' if scale[0] == scale[1] else f'{scale[0]:g}x{scale[1]:g}'


def nearest(name: Any, known: Iterable[str], likeness: float = 0.0) -> str:
    """The known name that looks most like this one, whatever its capitals.

    Args:
        likeness: what it must reach, from 0 (anything) to 1 (the same); '' if none does.
    """
    lowered = {str(one).lower(): str(one) for one in known}
    near = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=likeness)
    return lowered[near[0]] if near else ''
