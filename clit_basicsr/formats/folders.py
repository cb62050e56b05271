"""Walks through folders of pictures, and what these hold besides, in a line for the user."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from clit_basicsr.base.errors import UserError

# Suffixes of pictures, whether or not they are read here.
PICTURES = (
    *('.avif', '.bmp', '.cr2', '.dng', '.eps', '.exr', '.gif', '.heic', '.heif', '.ico', '.jfif', '.jp2', '.jpeg'),
    *('.jpg', '.jxl', '.nef', '.pbm', '.pgm', '.png', '.pnm', '.ppm', '.psd', '.qoi', '.sgi', '.tga', '.tif', '.tiff'),
    '.webp',
)


def walk(root: str, recursive: bool, avoided: Collection[str] = ()) -> Iterator[tuple[str, list[os.DirEntry]]]:
    """A folder and, if ``recursive``, those below it, in the order of their names: (place below root, entries by name).

    Hidden entries are left out; links to folders are followed unless they lead back.

    Args:
        avoided: folders that are not entered.

    Raises:
        UserError: a folder cannot be read.
    """
    folders = [('', frozenset(map(os.path.realpath, avoided)))]
    while folders:
        below, parents = folders.pop(0)
        folder = os.path.join(root, below) if below else root
        try:
            with os.scandir(folder) as found:
                entries = sorted((one for one in found if not one.name.startswith('.')), key=lambda one: one.name)
        except OSError as error:
            raise UserError(f'the folder {folder} cannot be read ({error.strerror}).') from error
        yield below, entries
        parents |= {os.path.realpath(folder)}
        inner = [one for one in entries if recursive and holds(one.is_dir)]
        further = [one.name for one in inner if os.path.realpath(one.path) not in parents]
        folders[:0] = [(os.path.join(below, name), parents) for name in further]


def holds(kind: Callable[[], bool]) -> bool:
    """``is_dir`` or ``is_file`` of an entry; false for links in a circle."""
    try:
        return kind()
    except OSError:
        return False


def describe_skipped(entries: Iterable[os.DirEntry], taken: Collection[str]) -> str:
    """Numbers of the entries of a folder that are not among ``taken`` (names), by kind; '' if there are none.

    Hidden files are not counted.
    """
    kinds: Counter[str] = Counter()
    suffixes: dict[str, set[str]] = {'picture': set(), 'other': set()}
    for entry in entries:
        if entry.name in taken or entry.name.startswith('.'):
            continue
        kind = _kind(entry)
        kinds[kind] += 1
        if kind in suffixes:
            suffixes[kind].add(os.path.splitext(entry.name)[1].lower() or 'no suffix')
    named = {kind: ', '.join(sorted(found)) for kind, found in suffixes.items()}
    texts = {
        'picture': (f'picture in a format not taken here ({named["picture"]})', 'pictures in formats not taken here'),
        'other': (f'file that is not a picture ({named["other"]})', 'files that are not pictures'),
        'link': ('broken link', 'broken links'),
        'folder': ('sub-folder', 'sub-folders'),
        'special': ('entry that is not a file', 'entries that are not files'),
    }
    parts = []
    for kind, (one, many) in texts.items():
        if kinds[kind] == 1:
            parts.append(f'1 {one}')
        elif kinds[kind]:
            parts.append(f'{kinds[kind]} {many}' + (f' ({named[kind]})' if kind in named else ''))
    return ', '.join(parts)


def _kind(entry: os.DirEntry) -> str:
    try:
        if entry.is_dir():
            return 'folder'
        if not entry.is_file():
            return 'special' if os.path.exists(entry.path) else 'link'
    except OSError:  # links in a circle
        return 'link'
    return 'picture' if entry.name.lower().endswith(PICTURES) else 'other'
