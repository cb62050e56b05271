"""PNG with 16 bits per value, which no other library here writes whole: Pillow knows it only grey and without alpha,
OpenCV not grey with alpha, and neither keeps the colour profile.
"""

import struct
import zlib
from typing import BinaryIO

import numpy as np

from clit_basicsr.formats.metadata import INCH, NONE, Metadata

COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey and alpha, RGB, RGB and alpha
FILTER_SUB = 1
BAND = 64  # rows that are compressed together, which bounds the memory


def write_png16(path: str, pixels: np.ndarray, icc: bytes | None = None, metadata: Metadata = NONE) -> None:
    """Writes pixels (H, W, C), uint16, with their ICC profile, EXIF data and resolution.

    Source: Portable Network Graphics Specification, third edition, sections 5, 9.2 and 11.
    """
    height, width, channels = pixels.shape
    with open(path, 'wb') as file:
        file.write(b'\x89PNG\r\n\x1a\n')
        _chunk(file, b'IHDR', struct.pack('>IIBBBBB', width, height, 16, COLOR_TYPES[channels], 0, 0, 0))
        if icc:
            _chunk(file, b'iCCP', b'ICC profile\0\0' + zlib.compress(icc))
        if metadata.dpi:
            x, y = (round(100 * one / INCH) for one in metadata.dpi)
            _chunk(file, b'pHYs', struct.pack('>IIB', x, y, 1))  # pixels per metre
        if metadata.exif:
            _chunk(file, b'eXIf', metadata.exif.removeprefix(b'Exif\0\0'))
        compressor = zlib.compressobj(6, strategy=zlib.Z_FILTERED)
        for start in range(0, height, BAND):
            values = pixels[start : start + BAND]
            rows = values.astype('>u2').view(np.uint8).reshape(len(values), -1)
            # Every byte less that of the pixel to its left, which is what the filter Sub means.
            filtered = np.full((len(values), 1 + rows.shape[1]), FILTER_SUB, np.uint8)
            filtered[:, 1:] = rows
            filtered[:, 1 + 2 * channels :] -= rows[:, : -2 * channels]
            _chunk(file, b'IDAT', compressor.compress(filtered.tobytes()))
        _chunk(file, b'IDAT', compressor.flush())
        _chunk(file, b'IEND', b'')


def _chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    file.write(struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content)))
