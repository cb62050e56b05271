"""Writing files so that a partial one of the final name never exists."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from clit_basicsr.base.errors import UserError


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary name beside ``path`` to write to; afterwards the file takes its place, or, after an error, goes.

    The folder is made if it is not there.

    Raises:
        UserError: the file cannot be written there.
    """
    folder, name = os.path.split(path)
    # Some libraries read the format from the suffix; a name has an end.
    stem, suffix = os.path.splitext(name)
    temporary = os.path.join(folder, f'.{stem[:40]}.{os.getpid()}.tmp{suffix}')
    try:
        os.makedirs(folder or '.', exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}).') from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
