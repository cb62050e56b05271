"""Files that a command is about to write: checked before the long work."""

import os
from os import path as osp

from clit_basicsr.errors import UserError


def check(paths: list[str], force: bool) -> None:
    """Raises UserError for what exists already, unless ``force``, or could not be written; all are of one folder."""
    existing = [path for path in paths if osp.lexists(path)]
    if existing and not force:
        more = f' (and {len(existing) - 1} more)' if len(existing) > 1 else ''
        raise UserError(f'{existing[0]}{more} exists already; -f overwrites it.')
    for path in existing:
        if osp.isdir(path):
            raise UserError(f'{path} is a folder, not a file to overwrite.')
    folder = osp.dirname(paths[0]) or '.'
    while not osp.lexists(folder):  # what is missing will be made
        folder = osp.dirname(folder) or '.'
    if not osp.isdir(folder):
        raise UserError(f'{folder} is no folder that could be written to.')
    if not os.access(folder, os.W_OK):
        raise UserError(f'the folder {folder} must not be written to; choose another one.')


def figure(output: str | None, image: str, suffix: str, force: bool) -> str:
    """Where a figure about a picture goes: what was asked for, or ``<name>_<suffix>.png`` in the working directory.

    Raises:
        UserError: it is no PNG, or see :func:`check`.
    """
    path = output or f'{osp.splitext(osp.basename(image))[0]}_{suffix}.png'
    if not path.lower().endswith('.png'):
        raise UserError(f'-o {path}: the figure is a PNG; give a name that ends in .png.')
    check([path], force)
    return path
