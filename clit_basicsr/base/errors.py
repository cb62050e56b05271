"""Errors that the user can fix, and the end that a signal brings."""


class UserError(ValueError):
    """A mistake in an option, a file or a command.

    The message is one line: what is wrong and what to do. The command prints it alone, without a traceback, and exits
    with 1.
    """


class Terminated(BaseException):
    """SIGTERM has ended the work; the message says what is saved. Not an Exception: only ``main`` handles it."""
