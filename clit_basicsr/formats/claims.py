"""Refuses files whose header claims more pixels than their bytes can hold, before anything is allocated.

The bounds are the best that each format's compression can reach, so they stop damaged headers, not good compression.
"""

import os
from typing import Any

from PIL import Image

from clit_basicsr.base.errors import UserError

ANY_SIZE = 'CLIT_BASICSR_ANY_SIZE'  # environment variable: 1 lifts every bound of this module

# Decoded at no notable cost whatever the file says.
FREE_PIXELS = 2**22
# WebP, AVIF and JPEG 2000 can code one colour in next to nothing, so a bound needs an allowance of whole pictures.
FREE_PIXELS_OF_MODELS = 2**25

DEFLATE = 1032  # decoded bytes per byte: 258 per two codes of 1 bit
# Decoded bytes per byte of a TIFF, by Pillow's names of the compressions. LZW: 12 bits stand for at most 4096 bytes;
# zstd and LZMA: a run of a block of 128 KiB takes 4 bytes.
TIFF_BYTES = {'raw': 1, 'packbits': 64, 'tiff_lzw': 2731, 'tiff_adobe_deflate': DEFLATE, 'tiff_deflate': DEFLATE}
TIFF_BYTES |= {'zstd': 2**15, 'lzma': 2**15, 'jpeg': 3 * 1024, 'webp': 3 * 2**16}
TIFF_COMPRESSIONS = {1: 'raw', 5: 'tiff_lzw', 7: 'jpeg', 8: 'tiff_adobe_deflate', 32773: 'packbits'}
TIFF_COMPRESSIONS |= {32946: 'tiff_deflate', 34925: 'lzma', 50000: 'zstd', 50001: 'webp'}
FAX = ('tiff_ccitt', 'group3', 'group4', 'tiff_raw_16')  # a white row may take one bit

# Pixels per byte of the others. JPEG: a block of 64 takes at least a bit (twice that, for safety); GIF is LZW; a run of
# the rest is at most so long.
PIXELS = {'JPEG': 1024, 'MPO': 1024, 'GIF': 2731, 'BMP': 128, 'PPM': 8, 'TGA': 64, 'QOI': 64, 'PSD': 512, 'SGI': 64}
PIXELS |= {'WEBP': 4096, 'AVIF': 2**16, 'JPEG2000': 2**16, 'ICO': 8 * DEFLATE}
MODELS = ('WEBP', 'AVIF', 'JPEG2000')

PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def lift_if_asked() -> bool:
    """Whether the user has lifted the bounds; then Pillow's own is lifted too."""
    if os.environ.get(ANY_SIZE, '') in ('', '0'):
        return False
    Image.MAX_IMAGE_PIXELS = None
    return True


def check(name: str, im: Image.Image, content: bytes) -> None:
    """Compares an opened picture's size with its file's.

    Args:
        name: what an error calls it.
        im: opened, not loaded.
        content: the file.

    Raises:
        UserError: the file is too small for so many pixels.
    """
    width, height = im.size
    kind = im.format or ''
    if kind == 'JPEG':
        check_jpeg(name, (height, width), len(content))
        return
    if kind == 'PNG':
        row = width * content[24] * PNG_SAMPLES.get(content[25], 4) / 8 + 1
        possible = row * height <= DEFLATE * len(content)
    elif kind == 'TIFF':
        depths: Any = im.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        check_tiff(name, (height, width), sum(depths), str(im.info.get('compression', 'raw')), len(content))
        return
    else:
        possible = width * height <= PIXELS.get(kind, 8) * len(content)
    free = FREE_PIXELS_OF_MODELS if kind in MODELS else FREE_PIXELS
    if not possible and width * height > free:
        _refuse(name, width, height, len(content))


def check_jpeg(name: str, size: tuple[int, int], length: int) -> None:
    """:func:`check` for a JPEG of ``size`` (H, W) in a file of ``length`` bytes."""
    height, width = size
    _check_limit(name, height, width)
    if height * width > max(PIXELS['JPEG'] * length, FREE_PIXELS):
        _refuse(name, width, height, length)


def check_tiff(name: str, size: tuple[int, int], bits: int, compression: str, length: int) -> None:
    """:func:`check` for a TIFF of ``size`` (H, W) and ``bits`` per pixel in a file of ``length`` bytes."""
    height, width = size
    _check_limit(name, height, width)
    if compression in FAX:
        possible = height <= 8 * length
    else:
        possible = height * width * bits / 8 <= TIFF_BYTES.get(compression, 2**16) * length
    if not possible and height * width > FREE_PIXELS:
        _refuse(name, width, height, length)


def _check_limit(name: str, height: int, width: int) -> None:
    """Pillow's own rule, where Pillow does not apply it."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit and not lift_if_asked():
        raise UserError(f'{name} is too large: {width}x{height} pixels; {ANY_SIZE}=1 reads it anyway.')


def _refuse(name: str, width: int, height: int, length: int) -> None:
    if not lift_if_asked():
        raise UserError(
            f'{name} claims {width}x{height} pixels, which its {length} bytes cannot hold; it is damaged '
            f'(if it is not: {ANY_SIZE}=1 reads it anyway).'
        )
