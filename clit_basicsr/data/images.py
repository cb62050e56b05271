"""Finding and reading images: folders, lists of names, LMDB folders of encoded or of raw images."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import path as osp
from typing import Any

import numpy as np

from clit_basicsr.base.errors import UserError
from clit_basicsr.data import lmdbs
from clit_basicsr.data.raw import RawImage
from clit_basicsr.formats import png
from clit_basicsr.formats.folders import describe_skipped
from clit_basicsr.formats.reader import DamagedPicture, decode_rgb8, size_of

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')

# Folders of which it was said what is skipped: once is enough.
_told: set[str] = set()


def host_utils() -> Any:
    """``basicsr.utils``. Not imported above: the host, once imported, imports our data sets, which need this module."""
    import basicsr.utils

    return basicsr.utils


class ImageSource:
    """The images under one root, in a fixed order.

    Args:
        root: a folder, or an LMDB folder (data.mdb, meta_info.txt) as BasicSR or ``basicsr prepare`` makes it.
        io_backend: ``{type: disk}`` (default) or ``{type: lmdb}``.
        folders: where below the root to look, '' for the root itself; those that do not exist are passed over.
            Default: the root alone. Only for folders without ``meta_info_file``.
        meta_info_file: text file whose lines start with an image's name, as in BasicSR; by default all images of the
            folder (not of its subfolders), sorted by name, or the LMDB's own meta_info.txt.
        option: the option that gave ``root``, for messages.
        cache_bytes: how much of the decoded images may be kept in memory, in each process; for encoded images alone.

    Attributes:
        names: paths of the files, or keys of the LMDB; what :meth:`open` and :meth:`read` take.

    Raises:
        UserError: nothing is there, or it is damaged.
    """

    def __init__(
        self,
        root: str,
        io_backend: dict[str, Any] | None = None,
        meta_info_file: str | None = None,
        option: str = 'dataroot_gt',
        folders: Iterable[str] = (),
        cache_bytes: int = 0,
    ):
        self.root = str(root)
        backend = (io_backend or {}).get('type', 'disk')
        if backend not in ('disk', 'lmdb'):
            raise UserError(f"io_backend: type '{backend}' is not known; use disk or lmdb.")
        self.is_lmdb = backend == 'lmdb'
        self.is_raw = False
        self._cache = DecodedCache(cache_bytes)
        if not osp.isdir(self.root):
            raise UserError(f'{option}: folder {self.root} does not exist; check the path.')
        if self.is_lmdb:
            description = lmdbs.check(self.root, option)
            self.is_raw = description.get('format') == lmdbs.RAW
            entries = listed_names(meta_info_file or osp.join(self.root, 'meta_info.txt'))
            self.names = [without_suffix(entry) for entry in entries]
            if not meta_info_file and description.get('images', len(entries)) != len(entries):
                raise UserError(
                    f'{self.root}: meta_info.txt lists {len(entries)} images, but the LMDB was made with '
                    f'{description["images"]}; copy it again, or give a list of your own as meta_info_file.'
                )
        elif meta_info_file:
            self.names = [osp.join(self.root, entry) for entry in listed_names(meta_info_file)]
            for name in self.names:
                if not osp.isfile(name):
                    raise UserError(f'{name}: listed in {meta_info_file}, but the file does not exist; fix the list.')
        else:
            below = [osp.join(self.root, folder) for folder in folders if osp.isdir(osp.join(self.root, folder))]
            self.names = [name for folder in below for name in files_of(folder, option)]
            if not self.names:
                self.names = files_of(self.root, option)

    def __len__(self) -> int:
        return len(self.names)

    def key(self, name: str) -> str:
        """What an image is called below the root, without its format: 'sub/0001', 'shot.01'."""
        return name if self.is_lmdb else without_suffix(osp.relpath(name, self.root))

    def label(self, name: str) -> str:
        """How messages call an image."""
        return f"{self.root}: image '{name}'" if self.is_lmdb else name

    def open(self, name: str) -> 'EncodedImage | DecodedImage | RawImage':
        """An image of which nothing is decoded yet.

        Raises:
            UserError: it is missing, or cannot be read.
        """
        label = self.label(name)
        if self.is_raw:
            return RawImage(self._value(name), label)
        kept = self._cache.get(name)
        if kept is not None:
            return DecodedImage(kept)
        return EncodedImage(self.read(name), label, lambda pixels: self._cache.keep(name, pixels))

    def decode(self, name: str) -> np.ndarray:
        """A whole image, (H, W, 3), uint8, RGB; see :func:`decode`."""
        return self.open(name).pixels()[:, :]

    def read(self, name: str) -> bytes:
        """The encoded image; of a raw LMDB, the value as it is stored."""
        if self.is_lmdb:
            content = bytes(self._value(name))
            # A PNG has checksums of its own, which its decoder compares.
            if not self.is_raw and not content.startswith(png.SIGNATURE):
                self.check_record(name, content)
            return content
        try:
            return host_utils().FileClient('disk').get(name)
        except OSError as error:
            raise UserError(f'{name}: cannot be read ({error.strerror}).') from error

    def check_record(self, name: str, content: bytes) -> bool:
        """Compares an encoded image of an LMDB with the checksum that was noted when it was written.

        Returns:
            bool: whether there is such a checksum.

        Raises:
            UserError: it is another one.
        """
        as_written = lmdbs.is_as_written(self.root, name.encode('ascii'), content)
        if as_written is False:
            raise UserError(f'{self.label(name)}: damaged (wrong checksum); copy the LMDB or make it again.')
        return as_written is not None

    def _value(self, name: str) -> memoryview:
        """A value of the LMDB, which the first call in a process opens, so each worker has its own."""
        try:
            content = lmdbs.get(self.root, name.encode('utf-8' if self.is_raw else 'ascii'))
        except UnicodeEncodeError as error:  # the host's keys are ASCII
            raise UserError(f'{self.label(name)}: a key of an LMDB is ASCII text; make the LMDB again.') from error
        if content is None:
            raise UserError(f'{self.label(name)} is not in the LMDB; fix meta_info.txt or make the LMDB again.')
        return content


class DecodedCache:
    """The decoded images of one process, up to ``limit`` bytes.

    What is in stays in: images come in random order, each once in a pass, so that a rule that throws out the oldest
    would throw out what is needed next. The share of hits is the share of the images that fit.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0
        self._images: dict[str, np.ndarray] = {}

    def get(self, name: str) -> np.ndarray | None:
        return self._images.get(name)

    def keep(self, name: str, pixels: np.ndarray) -> None:
        """Takes an image if it fits. It must not be changed afterwards."""
        if name not in self._images and self.size + pixels.nbytes <= self.limit:
            pixels.flags.writeable = False
            self._images[name] = pixels
            self.size += pixels.nbytes

    def __reduce__(self) -> tuple:
        return DecodedCache, (self.limit,)  # a worker fills one of its own


class EncodedImage:
    """An image file in memory; ``keep`` is called with what was decoded."""

    def __init__(self, content: bytes, label: str, keep: Callable[[np.ndarray], None]):
        self._content, self._label, self._keep = content, label, keep

    @property
    def smallest_side(self) -> int:
        return smallest_side(self._content, self._label)

    def pixels(self) -> np.ndarray:
        """(H, W, 3), uint8, RGB; not to be written to. Raises UserError for a damaged image."""
        pixels = decode(self._content, self._label)
        self._keep(pixels)
        return pixels


class DecodedImage:
    """An image that is kept decoded."""

    def __init__(self, kept: np.ndarray):
        self._kept = kept

    @property
    def smallest_side(self) -> int:
        return min(self._kept.shape[:2])

    def pixels(self) -> np.ndarray:
        return self._kept


def without_suffix(path: str) -> str:
    """A path without an image's suffix; what follows the last dot of 'shot.01' is none."""
    stem, suffix = osp.splitext(path)
    return stem if suffix.lower() in SUFFIXES else path


def decode(content: bytes, label: str) -> np.ndarray:
    """Decodes an image file: grey becomes RGB, alpha is dropped, 16 bits are rounded to 8, EXIF orientation is applied.

    Args:
        content: the encoded image.
        label: what to call it in an error.

    Returns:
        np.ndarray: (H, W, 3), uint8, RGB; for every format what ``basicsr upscale`` reads.

    Raises:
        UserError: it is not an image, or a damaged one.
    """
    with _naming_damage(label):
        return decode_rgb8(content, label)


def smallest_side(content: bytes, label: str) -> int:
    """The smaller of an encoded image's height and width in pixels, from its header where that can be read alone.

    Raises:
        UserError: it is not an image.
    """
    with _naming_damage(label):
        return min(size_of(content, label))


@contextmanager
def _naming_damage(label: str) -> Iterator[None]:
    try:
        yield
    except DamagedPicture as error:
        raise UserError(f'{label}: cannot be read as an image; replace it or remove it.') from error


def files_of(root: str, option: str) -> list[str]:
    """Paths of the images of a folder, not of its sub-folders, sorted by name; what is skipped is logged once."""
    try:
        with os.scandir(root) as found:
            entries = list(found)
        files = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith('.')]
    except OSError as error:
        raise UserError(f'{option}: the folder {root} cannot be read ({error.strerror}).') from error
    names = sorted(name for name in files if name.lower().endswith(SUFFIXES))
    skipped = describe_skipped(entries, set(names))
    if not names:
        hint = ' (it is an LMDB: set io_backend: {type: lmdb})' if osp.isfile(osp.join(root, 'data.mdb')) else ''
        rest = f'; it holds {skipped}' if skipped and not hint else ''
        raise UserError(f'{option}: {root} holds no images{hint}; {", ".join(SUFFIXES)} are read{rest}.')
    if skipped and osp.realpath(root) not in _told:
        _told.add(osp.realpath(root))
        logging.getLogger('basicsr').warning(f'{option}: {root}: {len(names)} images; skipped: {skipped}.')
    return [osp.join(root, name) for name in names]


def listed_names(meta_info_file: str) -> list[str]:
    """First column of lines such as ``0001.png (1404,2040,3) 1``; names may hold spaces and dots."""
    try:
        with open(meta_info_file, encoding='utf-8-sig') as lines:
            names = [line.strip().rsplit(' (', 1)[0] for line in lines if line.strip()]
    except OSError as error:
        raise UserError(f'meta_info_file: {meta_info_file} cannot be read ({error.strerror}).') from error
    except UnicodeDecodeError as error:
        raise UserError(f'meta_info_file: {meta_info_file} is not text in UTF-8; save it in that encoding.') from error
    if any('\0' in name for name in names):
        raise UserError(
            f'meta_info_file: {meta_info_file} is not text in UTF-8 (it holds zero bytes); save it in that.'
        )
    if not names:
        raise UserError(f'meta_info_file: {meta_info_file} lists no images.')
    return names
