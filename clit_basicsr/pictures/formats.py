"""In which formats pictures and animations are written, and what each can hold."""

import os
from typing import NamedTuple

from clit_basicsr.base.errors import UserError


class Format(NamedTuple):
    """What a file format can hold."""

    name: str
    bits: int
    alpha: bool
    profile: bool
    exif: bool
    longest_side: int


PNG = Format('PNG', 16, True, True, True, 2**31 - 1)
JPEG = Format('JPEG', 8, False, True, True, 65500)
WEBP = Format('WebP', 8, True, True, True, 16383)
TIFF = Format('TIFF', 16, True, True, True, 2**31 - 1)
BMP = Format('BMP', 8, False, False, False, 2**31 - 1)
# Of JPEG and WebP: near-lossless.
QUALITY = 95
FORMATS = {'.png': PNG, '.jpg': JPEG, '.jpeg': JPEG, '.webp': WEBP, '.tif': TIFF, '.tiff': TIFF, '.bmp': BMP}


class Film(NamedTuple):
    """What a format of animations can hold: frames per second, and pixels a side."""

    fps: float
    longest_side: int


# Browsers slow down a GIF that is faster; MP4: MPEG-4 part 2.
FILMS = {'.gif': Film(50, 65535), '.mp4': Film(1000, 8191)}


def format_of(path: str) -> Format:
    """The format that a file's name says. Raises UserError if no picture is written in it."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FORMATS:
        raise UserError(f'{path}: a picture cannot be written as {suffix or "that"}; use {", ".join(FORMATS)}.')
    return FORMATS[suffix]
