"""PNG: checksums, and 16 bits per value, which Pillow would make 8."""

import struct
import zlib

import cv2
import numpy as np

from clit_basicsr.formats.silence import silenced

SIGNATURE = b'\x89PNG\r\n\x1a\n'
GREY_ALPHA = 4  # a colour type


def check_chunks(content: bytes) -> None:
    """Checks the checksums of the header, the palette and the pixels, which Pillow does not do for all of them.

    Raises:
        ValueError: one is wrong, or the file ends too early.
    """
    at, view = len(SIGNATURE), memoryview(content)
    while at + 12 <= len(content):
        length, kind = struct.unpack_from('>I4s', content, at)
        end = at + 8 + length
        if end + 4 > len(content):
            break
        if kind[0] < 97 and zlib.crc32(view[at + 4 : end]) != struct.unpack_from('>I', content, end)[0]:
            raise ValueError(f'wrong checksum of its chunk {kind.decode("ascii", "replace")}')  # a critical one
        if kind == b'IEND':
            return
        at = end + 4
    raise ValueError('the file is truncated')


def is_deep(content: bytes) -> bool:
    """Whether a PNG has 16 bits per value."""
    return content[24] == 16


def read_deep(content: bytes) -> np.ndarray:
    """(H, W) or (H, W, 2, 3 or 4), uint16, as stored; of an intact PNG of 16 bits.

    Raises:
        ValueError: OpenCV cannot decode it.
    """
    with silenced():  # libpng's warnings of odd profiles
        pixels = read_opencv(_without_extras(content))
    if content[25] == GREY_ALPHA:  # which is RGB with alpha to OpenCV
        pixels = pixels[..., [0, 3]]
    return pixels


def read_opencv(content: bytes) -> np.ndarray:
    """(H, W) or (H, W, 3 or 4), uint16, RGB, as stored; for formats of 16 bits of which Pillow makes 8."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError('its 16-bit values cannot be decoded')
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return pixels


def _without_extras(content: bytes) -> bytes:
    """A PNG without its ancillary chunks but transparency: OpenCV would turn by EXIF data, and read odd profiles."""
    at, parts = len(SIGNATURE), [SIGNATURE]
    while at + 12 <= len(content):
        length, kind = struct.unpack_from('>I4s', content, at)
        if kind[0] < 97 or kind == b'tRNS':
            parts.append(content[at : at + 12 + length])
        at += 12 + length
    return b''.join(parts)
