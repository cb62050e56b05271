"""Files and folders: what is there, and writing in a way that a partial file of the final name never exists."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from clit_basicsr.base.errors import UserError


@contextmanager
def temporary_name(path: str) -> Iterator[str]:
    """A name of this process's own next to ``path`` to write to; afterwards the file takes the place of ``path``.

    After an error the temporary file is removed and ``path`` stays as it was.
    """
    folder, name = os.path.split(path)
    # Some libraries read the format from the suffix; names have a maximum length.
    stem, suffix = os.path.splitext(name)
    temporary = os.path.join(folder, f'.{stem[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """:func:`temporary_name` for files that a user asked for: the folder is created if it does not exist.

    Raises:
        UserError: the file cannot be written there.
    """
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        with temporary_name(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}).') from error


def names_in(folder: str) -> list[str]:
    """What is in a folder, sorted. Raises UserError for one that cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f'the folder {folder} cannot be read ({error.strerror}).') from error


def check_is_picture_file(path: str) -> None:
    """Raises UserError unless there is a file of that name."""
    if os.path.isdir(path):
        raise UserError(f'{path} is a folder, not a picture.')
    if not os.path.isfile(path):
        raise UserError(f'{path} does not exist.' if not os.path.exists(path) else f'{path} is not a file.')
