"""Errors that the user can fix."""


class UserError(ValueError):
    """A mistake in an option, a file or a command.

    The message is one line: what is wrong and what to do. The command prints it alone, without a traceback, and exits
    with 1.
    """
