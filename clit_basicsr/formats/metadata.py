"""EXIF data and resolution of picture files, as they are kept when a picture is enlarged.

What describes the shot stays: date, camera, lens, exposure, place, author, copyright. What describes the old file does
not: orientation (the pixels are turned), numbers of pixels, the thumbnail, and the maker's own block, whose offsets
would be wrong.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

EXIF_BLOCK, GPS_BLOCK = int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo)
# Of the first directory; the others there are about how a TIFF stores its pixels.
DESCRIPTION, MAKE, MODEL, SOFTWARE, DATE, ARTIST, COPYRIGHT = 270, 271, 272, 305, 306, 315, 33432
KEPT = (DESCRIPTION, MAKE, MODEL, SOFTWARE, DATE, ARTIST, COPYRIGHT)
# Of the EXIF block: the maker's note, the numbers of pixels, the offset of a further block.
LEFT_OUT = (37500, 40962, 40963, 40965)
# Longer EXIF data fit into no JPEG, in bytes.
LONGEST = 65_000
INCH = 2.54  # centimetres


@dataclass(frozen=True)
class Metadata:
    """Attributes:
    exif: as JPEG, PNG and WebP store it, with the prefix ``Exif\\0\\0``; None: there is none.
    dpi: pixels per inch, (x, y).
    """

    exif: bytes | None = None
    dpi: tuple[float, float] | None = None


NONE = Metadata()


def read_metadata(im: Image.Image) -> Metadata:
    """Of a picture that Pillow has opened; what is damaged is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            exif = _kept(im.getexif())
        except Exception:  # damaged EXIF data do not make the picture unreadable
            exif = None
        try:
            dpi = _checked_dpi(im.info.get('dpi'))
        except Exception:
            dpi = None
    return Metadata(exif, dpi) if exif or dpi else NONE


def texts(exif: bytes | None) -> dict[int, str]:
    """The texts of the first directory, for formats with tags of their own."""
    if not exif:
        return {}
    block = Image.Exif()
    block.load(exif)
    return {tag: block[tag] for tag in KEPT if isinstance(block.get(tag), str)}


def _kept(source: Image.Exif) -> bytes | None:
    kept = Image.Exif()
    for tag in KEPT:
        if source.get(tag):
            kept[tag] = source[tag]
    for block, left_out in ((EXIF_BLOCK, LEFT_OUT), (GPS_BLOCK, ())):
        values = {tag: value for tag, value in source.get_ifd(block).items() if tag not in left_out}
        if values:
            kept.get_ifd(block).update(values)
            kept[block] = kept.get_ifd(block)
    return kept.tobytes() if kept else None


def _checked_dpi(dpi: Any) -> tuple[float, float] | None:
    x, y = (float(one) for one in dpi) if dpi else (0.0, 0.0)
    # Pillow makes 1 x 1 of files that say nothing.
    usable = all(math.isfinite(one) and 1 < one < 1e5 for one in (x, y))
    return (x, y) if usable else None
