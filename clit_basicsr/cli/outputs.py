"""Files that a command is about to write: checked before the long work."""

import os
from collections.abc import Sequence
from os import path as osp

from clit_basicsr.base.errors import UserError


def check(paths: list[str], force: bool, sources: Sequence[str] = (), remedy: str = 'use -f to overwrite it') -> None:
    """Raises UserError for what cannot or may not be written.

    Args:
        paths: of files.
        force: whether what exists already may be overwritten.
        sources: the inputs, which are never overwritten.
        remedy: what to do about a file that exists already.
    """
    existing = [path for path in paths if osp.lexists(path)]
    read = {identity(source) for source in sources if osp.exists(source)}
    for path in existing:
        if osp.exists(path) and identity(path) in read:
            raise UserError(f'{path} is an input, and inputs are never overwritten; give another output.')
    if existing and not force:
        more = f' (and {len(existing) - 1} more)' if len(existing) > 1 else ''
        raise UserError(f'{existing[0]}{more} already exists; {remedy}.')
    for path in existing:
        if osp.isdir(path):
            raise UserError(f'{path} is a folder, not a file to overwrite.')
        if osp.exists(path) and not osp.isfile(path):  # a device, which the file would replace
            raise UserError(f'{path} is not a regular file, so it cannot be overwritten.')
    for folder in dict.fromkeys(osp.dirname(path) or '.' for path in paths):
        while not osp.lexists(folder):  # what is missing will be made
            folder = osp.dirname(folder) or '.'
        if not osp.isdir(folder):
            raise UserError(f'{folder} is not a folder.')
        if not os.access(folder, os.W_OK):
            raise UserError(f'the folder {folder} is not writable; choose another one.')


def identity(path: str) -> tuple[int, int]:
    """The same for all names of a file, as osp.samefile has it."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def figure(output: str | None, image: str, suffix: str, force: bool) -> str:
    """Where a figure about a picture goes: what was asked for, or ``<name>_<suffix>.png`` beside it.

    Raises:
        UserError: the name does not end in .png, or see :func:`check`.
    """
    path = output or f'{osp.splitext(image)[0]}_{suffix}.png'
    if not path.lower().endswith('.png'):
        raise UserError(f'-o {path}: the figure is a PNG; give a name that ends in .png.')
    check([path], force, [image])
    return path
