"""What an LMDB holds, and whether all of it can be read."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from os import path as osp

from clit_basicsr.base.errors import UserError
from clit_basicsr.data import lmdbs
from clit_basicsr.data.images import ImageSource, decode
from clit_basicsr.data.raw import RawImage
from clit_basicsr.formats import png
from clit_basicsr.formats.reader import size_of


def describe(root: str) -> list[str]:
    """Lines about an LMDB; only the headers of its images are read.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return _describe(root)
    finally:
        lmdbs.close(root)


def _describe(root: str) -> list[str]:
    source = ImageSource(root, {'type': 'lmdb'}, option='prepare')
    description = lmdbs.describe(root)
    kind = 'raw images' if source.is_raw else 'encoded images, as in BasicSR'
    version = f', format version {description["version"]}' if description else ''
    length = osp.getsize(osp.join(root, 'data.mdb'))
    sizes: list[tuple[int, str]] = []
    stored: Counter[str] = Counter()
    for name in source.names:
        image = source.open(name)
        if isinstance(image, RawImage):
            (height, width, channels), depth = image.stored
            stored[f'{"grey" if channels == 1 else "RGB"}, {8 * depth} bits'] += 1
        else:
            height, width = size_of(source.read(name), source.label(name))
        sizes.append((height * width, f'{width}x{height}'))
    lines = [
        root,
        f'  {kind}{version}',
        f'  {len(sizes)} images, {length / 1e6:.1f} MB; keys {source.names[0]} ... {source.names[-1]}',
        f'  sizes: {min(sizes)[1]} ... {max(sizes)[1]} pixels',
    ]
    lines += [f'  {count} x {what}' for what, count in sorted(stored.items())]
    if not description:
        lines.append('  made by another program: damage is found by decoding, as there are no checksums')
    return lines


def damaged(root: str) -> Iterator[str | None]:
    """For each image of an LMDB, in its order, what is wrong with it in one line, or None.

    Raises:
        UserError: the LMDB as a whole cannot be read.
    """
    try:
        source = ImageSource(root, {'type': 'lmdb'}, option='prepare')
        for name in source.names:
            try:
                _verify(source, name)
            except UserError as error:
                yield str(error)
            else:
                yield None
    finally:
        lmdbs.close(root)


def _verify(source: ImageSource, name: str) -> None:
    if source.is_raw:
        image = source.open(name)
        assert isinstance(image, RawImage)
        image.verify()
        return
    content = source.read(name)
    if not source.check_record(name, content):
        decode(content, source.label(name))


def check_complete(folder: str, kind: str, keys: Sequence[str]) -> None:
    """Reads back what was written. Raises UserError if an image is not as it was made."""
    if kind in (lmdbs.RAW, lmdbs.ENCODED):
        for problem in list(damaged(folder)):
            if problem:
                raise UserError(f'{problem} Is the disk sound?')
        return
    for key in keys:
        path = os.path.join(folder, key + '.png')
        try:
            with open(path, 'rb') as file:
                png.check_chunks(file.read())
        except (OSError, ValueError) as error:
            raise UserError(f'{path} is not as it was written ({error}); is the disk sound?') from error
