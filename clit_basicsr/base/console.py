"""What a command says on the terminal besides its results: bars and remarks, and how much of them (-q, -v)."""

import sys

QUIET, NORMAL, VERBOSE = -1, 0, 1
_level = NORMAL


def set_level(level: int) -> None:
    """How much this process says: :data:`QUIET` (errors and results only), :data:`NORMAL` or :data:`VERBOSE`."""
    global _level
    _level = level


def is_quiet() -> bool:
    return _level == QUIET


def is_verbose() -> bool:
    return _level == VERBOSE


def hides_bars() -> bool:
    """Whether progress bars are left out: where the command is quiet, or stderr is a file or a pipe."""
    return is_quiet() or sys.stderr is None or not sys.stderr.isatty()


def say(text: str) -> None:
    """Prints what is done to stdout, unless the command is quiet."""
    if not is_quiet():
        print(text, flush=True)
