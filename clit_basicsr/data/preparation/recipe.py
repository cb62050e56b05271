"""What becomes of one image: values of an LMDB, or files, for each output."""

import dataclasses
import os
import re
import struct
import zlib

import cv2
import numpy as np

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import scale_text
from clit_basicsr.data import lmdbs, raw
from clit_basicsr.data.preparation.sources import Source
from clit_basicsr.formats.picture import Picture
from clit_basicsr.formats.reader import decode

FOLDER = 'folder'
FORMATS = (lmdbs.RAW, lmdbs.ENCODED, FOLDER)
UNCHANGED = -1  # in the place of the compression level: the file as it was


@dataclasses.dataclass(frozen=True)
class SubImages:
    """Squares of an image, as BasicSR's script ``extract_subimages`` cuts them.

    Attributes:
        size: side in pixels.
        step: between the starts of neighbours, pixels.
        threshold: a rest of more pixels than that gets a square of its own at the border.
    """

    size: int
    step: int
    threshold: int = 0

    def starts(self, side: int) -> list[int]:
        """First pixels of the squares along a side of at least ``size`` pixels."""
        starts = list(range(0, side - self.size + 1, self.step))
        if side - (starts[-1] + self.size) > self.threshold:
            starts.append(side - self.size)
        return starts


@dataclasses.dataclass(frozen=True)
class Item:
    """A value of an LMDB, or a file, and what a list of images says of it.

    Attributes:
        shape: (H, W, C).
        compression: level of PNG, UNCHANGED for a file as it was, 0 for raw rows.
    """

    key: str
    content: bytes
    shape: tuple[int, int, int]
    compression: int

    @property
    def record(self) -> bytes:
        return struct.pack(lmdbs.RECORD_LAYOUT, zlib.crc32(self.content), *self.shape, self.compression)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is made of every image.

    Attributes:
        format: 'raw', 'encoded' (LMDBs) or 'folder' (of PNG files).
        cut: None: whole images.
        scales: empty: the images themselves; otherwise one output for each scale, with their LR images, 8 bit.
        downsampling: of LR images, 'pil' or 'matlab'.
        compression: level of PNG, 0 to 9.
    """

    format: str
    cut: SubImages | None = None
    scales: tuple[float, ...] = ()
    downsampling: str = 'pil'
    compression: int = 3

    @property
    def copies(self) -> bool:
        """Whether files are stored as they are."""
        return self.format == lmdbs.ENCODED and self.cut is None and not self.scales

    def keys(self, source: Source) -> list[list[str]]:
        """Keys of what is made of an image, for each output.

        Raises:
            UserError: the image is too small.
        """
        height, width = source.size
        if self.scales:
            for scale in self.scales:
                if min(height, width) < scale:
                    raise UserError(f'{source.path}: {width}x{height} pixels are too few for scale {scale:g}.')
            return [[f'{source.key}x{scale:g}'] for scale in self.scales]
        if self.cut is None:
            return [[source.key]]
        if min(height, width) < self.cut.size:
            raise UserError(
                f'{source.path}: {width}x{height} pixels are fewer than --crop-size {self.cut.size}; remove the image '
                'or lower --crop-size.'
            )
        # BasicSR's script drops the mark of an LR image, so that LR and HR sub-images have the same names.
        name = re.sub(r'x[2348]$', '', source.key)
        count = len(self.cut.starts(height)) * len(self.cut.starts(width))
        return [[f'{name}_s{number:03d}' for number in range(1, count + 1)]]

    def estimate(self, source: Source) -> list[int]:
        """About how many bytes the items of an image take, for each output; raw ones almost exactly."""
        height, width = source.size
        if self.copies:
            return [source.length + 4096]
        sizes = [[(height / scale, width / scale)] for scale in self.scales] or [[(height, width)]]
        if self.cut is not None:
            sizes = [[(self.cut.size, self.cut.size)] * len(self.keys(source)[0])]
        # How well PNG compresses is taken from the source; nothing compresses as little as noise.
        density = min(1.3 * source.length / (height * width * source.stored), 1.01)
        totals = []
        for output in sizes:
            total = 0.0
            for h, w in output:
                stored = 1 if self.scales and source.stored in (1, 2) else 3 if self.scales else source.stored
                channels, depth = (stored, 1) if stored in (1, 3) else (stored // 2, 2)
                if self.format == lmdbs.RAW:
                    total += raw.packed_bytes(int(h), int(w), channels, depth) + 4096
                else:
                    # LR images hold more detail per pixel than the source
                    total += h * w * stored * (min(1.6 * density, 1.01) if self.scales else density) + 4096
            totals.append(int(total))
        return totals

    def make(self, source: Source) -> list[list[Item]]:
        """The items of an image, for each output, in the order of :meth:`keys`.

        Raises:
            UserError: the file cannot be read as an image.
        """
        try:
            with open(source.path, 'rb') as file:
                content = file.read()
                status = os.fstat(file.fileno())
        except OSError as error:
            raise UserError(f'{source.path}: cannot be read ({error.strerror}).') from error
        if (status.st_size, status.st_mtime_ns) != (source.length, source.changed):
            raise UserError(f'{source.path} has changed since the command began; run it again.')
        picture = decode(content, source.path)
        pixels = picture.pixels[..., :-1] if picture.has_alpha else picture.pixels
        keys = self.keys(source)
        if self.scales:
            lr = [self._lr(pixels, scale, source) for scale in self.scales]
            return [[self._item(key, image)] for (key,), image in zip(keys, lr, strict=True)]
        if self.copies:
            return [[Item(keys[0][0], content, picture.pixels.shape, UNCHANGED)]]
        if self.cut is None:
            return [[self._item(keys[0][0], pixels)]]
        size = self.cut.size
        rows, columns = (self.cut.starts(side) for side in pixels.shape[:2])
        parts = [pixels[y : y + size, x : x + size] for y in rows for x in columns]
        return [[self._item(key, part) for key, part in zip(keys[0], parts, strict=True)]]

    def _lr(self, pixels: np.ndarray, scale: float, source: Source) -> np.ndarray:
        from clit_basicsr.data.pairs import make_pair  # imports torch

        try:
            lr = make_pair(Picture(pixels).stored_rgb8, (scale, scale), self.downsampling)[1]
        except UserError as error:
            raise UserError(f'{source.path}: {error}; remove it.') from error
        return lr[..., : pixels.shape[2]]  # of grey images, one of three equal channels

    def _item(self, key: str, pixels: np.ndarray) -> Item:
        height, width, channels = pixels.shape
        if self.format == lmdbs.RAW:
            return Item(key, raw.pack(pixels), (height, width, channels), 0)
        stored = np.ascontiguousarray(pixels[..., ::-1])  # OpenCV's order of channels
        done, content = cv2.imencode('.png', stored, [cv2.IMWRITE_PNG_COMPRESSION, self.compression])
        if not done:
            raise UserError(f'{key}: {width}x{height} pixels cannot be written as PNG.')
        return Item(key, content.tobytes(), (height, width, channels), self.compression)


def folder_name(scale: float) -> str:
    """How the distributed LR images name the folder of a scale: 'X2', 'X3.4'."""
    return f'X{scale_text((scale, scale))}'
