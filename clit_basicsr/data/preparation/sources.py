"""The images that are to be prepared: found, named and measured before the work starts."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from os import path as osp

from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.images import SUFFIXES, files_of, without_suffix
from clit_basicsr.formats.folders import describe_skipped, holds, walk
from clit_basicsr.formats.reader import OPENED, decode, reporting_damage

GREY_MODES = ('1', 'L', 'LA', 'La', 'I', 'I;16', 'I;16B', 'I;16L', 'I;16N')


@dataclasses.dataclass(frozen=True)
class Source:
    """An image file.

    Attributes:
        path: the file.
        key: its name below the input folder without suffix, '/' between folders; unique among the sources.
        size: (H, W) in pixels as in the header, that is before turning.
        stored: bytes that a pixel takes uncompressed, without alpha; an estimate.
        length, changed: of the file, bytes and nanoseconds.
    """

    path: str
    key: str
    size: tuple[int, int]
    stored: int
    length: int
    changed: int


def find_sources(folders: Sequence[str], recursive: bool) -> list[Source]:
    """The images of folders in the order in which data sets take them.

    Keys start with the folder's name where there are several folders, and with names above it where those are alike:
    ``Set5/HR`` and ``Set14/HR``.

    Raises:
        UserError: a folder has no images, two images have one key, or an image's header cannot be read.
    """
    found: dict[str, str] = {}
    for folder, prefix in zip(folders, _prefixes(folders), strict=True):
        if not osp.isdir(folder):
            raise UserError(f'{folder} is not a folder; give the folder of the images.')
        for path in _below(folder) if recursive else files_of(folder, 'prepare'):
            key = prefix + without_suffix(osp.relpath(path, folder)).replace(os.sep, '/')
            if key in found:
                raise UserError(f'{found[key]} and {path} would both have the key {key!r}; rename or remove one.')
            if not key.isprintable():
                raise UserError(f'{path!r}: the name holds characters that a list of images cannot; rename it.')
            found[key] = path
    return [_measured(path, key) for key, path in found.items()]


def _prefixes(folders: Sequence[str]) -> list[str]:
    """What the keys of each folder start with: as few of the last names in its path as tell the folders apart."""
    if len(folders) == 1:
        return ['']
    parts = [osp.abspath(folder).strip(os.sep).split(os.sep) for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(one[-count:]) + '/' for one in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(folder for folder, one in zip(folders, parts, strict=True) if parts.count(one) > 1)
    raise UserError(f'{twice} is given twice; leave one out.')


def _below(folder: str) -> list[str]:
    paths, skipped = [], []
    for _, entries in walk(folder, recursive=True):
        for entry in entries:
            if holds(entry.is_file) and entry.name.lower().endswith(SUFFIXES):
                paths.append(entry.path)
            elif not holds(entry.is_dir):
                skipped.append(entry)
    rest = describe_skipped(skipped, ())
    if rest:
        logging.getLogger('basicsr').warning(f'prepare: {folder}: {len(paths)} images; skipped: {rest}.')
    if not paths:
        raise UserError(f'{folder} and its sub-folders hold no images; {", ".join(SUFFIXES)} are read.')
    return paths


def _measured(path: str, key: str) -> Source:
    try:
        status = os.stat(path)
        with reporting_damage(path):
            try:
                with Image.open(path, formats=OPENED) as im:
                    size, stored = (im.height, im.width), 1 if im.mode in GREY_MODES else 3
                    deep = im.mode.startswith('I') or _is_deep_png(path)
                    stored *= 2 if deep else 1
            except OSError:  # a TIFF of 16 bits, of which Pillow does not know all
                with open(path, 'rb') as file:
                    pixels = decode(file.read(), path).pixels
                size, stored = pixels.shape[:2], pixels.itemsize * (pixels.shape[2] | 1)
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}).') from error
    return Source(path, key, size, stored, status.st_size, status.st_mtime_ns)


def _is_deep_png(path: str) -> bool:
    with open(path, 'rb') as file:
        start = file.read(26)
    return start[:4] == b'\x89PNG' and start[24:25] == b'\x10'
