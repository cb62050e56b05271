"""The values of a raw LMDB: an image as uncompressed rows, of which a crop is read without touching the rest.

A value is a header of 64 bytes, a table of checksums (H, S), uint64, and the rows (H, S * 256), uint8; S is the number
of segments of 256 bytes that a row of W * C samples takes, padded with zeros. All numbers are little-endian.
"""

import struct
import zlib

import numpy as np

from clit_basicsr.base.errors import UserError
from clit_basicsr.formats.picture import Picture

MAGIC = b'CLITRAW\0'
VERSION = 1
# magic, version, bytes per sample (1, 2), height, width, channels (1: grey, 3: RGB)
_HEADER = struct.Struct('<8sHHIII')
_CRC = struct.Struct('<I')  # of the header
HEADER_BYTES = 64
SEGMENT = 256  # bytes; a table of 3 % in return for checking little more than the crop
_WORDS = SEGMENT // 8
# Powers of an odd number modulo 2**64: any change of a single word changes the sum, and so does exchanging two.
_ODD = 0x9E3779B97F4A7C15
_WEIGHTS = np.array([pow(_ODD, i + 1, 2**64) for i in range(_WORDS)], dtype=np.uint64)


def pack(pixels: np.ndarray) -> bytes:
    """The value that stands for an image.

    Args:
        pixels: (H, W, 1 or 3), uint8 or uint16, grey or RGB.
    """
    height, width, channels = pixels.shape
    depth = pixels.dtype.itemsize
    samples = np.ascontiguousarray(pixels, dtype=f'<u{depth}').reshape(height, -1)
    rows = np.zeros((height, _segments(width, channels, depth) * SEGMENT), np.uint8)
    rows[:, : width * channels * depth] = samples.view(np.uint8)
    header = _HEADER.pack(MAGIC, VERSION, depth, height, width, channels)
    header += _CRC.pack(zlib.crc32(header))
    return b''.join((header.ljust(HEADER_BYTES, b'\0'), checksums(rows).tobytes(), rows.tobytes()))


def packed_bytes(height: int, width: int, channels: int, depth: int) -> int:
    """Length in bytes of the value of an image; ``depth``: bytes per sample."""
    return HEADER_BYTES + height * _segments(width, channels, depth) * (8 + SEGMENT)


def checksums(rows: np.ndarray) -> np.ndarray:
    """(H, S), uint64: of the segments of rows (H, S * 256), uint8."""
    words = rows.view('<u8').reshape(rows.shape[0], -1, _WORDS)
    # The constant keeps a part of the file that was lost to zeros from being consistent with its checksum.
    return (np.einsum('ijk,k->ij', words, _WEIGHTS) + np.uint64(_ODD)).astype('<u8')


class RawImage:
    """An image in a raw LMDB: its size, and any rectangle of it.

    ``image[top:bottom, left:right]`` is the (h, w, 3), uint8, RGB, of exactly the values that decoding the whole image
    would give; both slices without steps.

    Args:
        value: what :func:`pack` made, which may be memory of the file.
        label: what an error calls the image.

    Attributes:
        shape: (H, W, 3), of the image as it is read.
        stored: (H, W, channels) and bytes per sample, as it is stored.

    Raises:
        UserError: the value is damaged, or of another version.
    """

    def __init__(self, value: bytes | memoryview, label: str):
        self._label = label
        header = bytes(value[:HEADER_BYTES])
        if len(header) < HEADER_BYTES or header[: len(MAGIC)] != MAGIC:
            raise self._damage('its header is not that of a raw image')
        if zlib.crc32(header[: _HEADER.size]) != _CRC.unpack_from(header, _HEADER.size)[0]:
            raise self._damage('wrong checksum of its header')
        _, version, depth, height, width, channels = _HEADER.unpack_from(header)
        if version != VERSION:
            raise UserError(
                f'{label}: raw format version {version}; this package reads version {VERSION}: update it, or make the '
                'LMDB again with basicsr prepare.'
            )
        if len(value) != packed_bytes(height, width, channels, depth):
            raise self._damage(f'{len(value)} bytes cannot be {width}x{height} pixels')
        self.shape = (height, width, 3)
        self.stored = ((height, width, channels), depth)
        segments = _segments(width, channels, depth)
        at = HEADER_BYTES + height * segments * 8
        self._sums = np.frombuffer(value, '<u8', height * segments, HEADER_BYTES).reshape(height, segments)
        self._rows = np.frombuffer(value, np.uint8, height * segments * SEGMENT, at).reshape(height, -1)

    @property
    def smallest_side(self) -> int:
        return min(self.shape[:2])

    def pixels(self) -> 'RawImage':
        return self

    def __getitem__(self, rectangle: tuple[slice, slice]) -> np.ndarray:
        (_, _, channels), depth = self.stored
        top, bottom, _ = rectangle[0].indices(self.shape[0])
        left, right, _ = rectangle[1].indices(self.shape[1])
        pixel = channels * depth
        first, last = left * pixel // SEGMENT, -(-right * pixel // SEGMENT)
        rows = self._rows[top:bottom, first * SEGMENT : last * SEGMENT]
        self._check(rows, self._sums[top:bottom, first:last])
        start = left * pixel - first * SEGMENT
        # a copy, so that nobody holds memory of the file
        samples = rows[:, start : start + (right - left) * pixel].copy().view(f'<u{depth}')
        pixels = samples.reshape(bottom - top, right - left, channels)
        return pixels if (channels, depth) == (3, 1) else Picture(pixels).stored_rgb8

    def verify(self) -> None:
        """Compares every checksum. Raises UserError if one is wrong."""
        self._check(self._rows, self._sums)

    def _check(self, rows: np.ndarray, sums: np.ndarray) -> None:
        if not np.array_equal(checksums(rows), sums):
            raise self._damage('wrong checksum of its pixels')

    def _damage(self, reason: str) -> UserError:
        return UserError(f'{self._label}: damaged ({reason}); copy the LMDB or make it again.')


def _segments(width: int, channels: int, depth: int) -> int:
    return -(-width * channels * depth // SEGMENT)
