"""Encoded pictures of any common format, decoded from memory."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from clit_basicsr.base.errors import UserError
from clit_basicsr.formats import claims, jpeg, png, tiff
from clit_basicsr.formats.metadata import read_metadata
from clit_basicsr.formats.picture import Picture, make_picture
from clit_basicsr.formats.silence import is_alone, silenced

# What Pillow may try, in this order: pictures only. Others of its formats start programs (EPS: Ghostscript), hold no
# pictures, or are known by nothing but their name; TGA comes last because its first bytes say little.
OPENED = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'JPEG2000', 'AVIF', 'QOI', 'PSD', 'ICO', 'SGI', 'TGA')
DEEP_MODES = ('I', 'I;16', 'I;16B', 'I;16L', 'I;16N')  # of Pillow: grey, 16 bits

logging.getLogger('PIL').addHandler(logging.NullHandler())


class DamagedPicture(UserError):
    """A file that is not a picture, or a damaged one."""


def decode(content: bytes, name: str) -> Picture:
    """Decodes PNG, JPEG, WebP, TIFF, BMP and the others of :data:`OPENED`.

    Palettes and 1-bit pictures become 8 bit, CMYK and LAB become sRGB (by the profile where there is one), of an
    animation the first frame is taken. EXIF orientation is applied; the ICC profile is kept, and of EXIF data what
    :mod:`clit_basicsr.formats.metadata` names.

    Args:
        content: the file.
        name: what an error calls it.

    Raises:
        DamagedPicture: it cannot be decoded, with the reason.
        UserError: it claims too many pixels, or holds values of a kind that is not read.
    """
    if not content:
        raise DamagedPicture(f'{name} is empty (0 bytes).')
    with reporting_damage(name):
        return _decode(content, name, stored_rgb8=False)


def decode_rgb8(content: bytes, name: str) -> np.ndarray:
    """``decode(content, name).stored_rgb8``, of ordinary PNG, JPEG and BMP in less time.

    Returns:
        np.ndarray: (H, W, 3), uint8, RGB.

    Raises:
        UserError: see :func:`decode`.
    """
    if not content:
        raise DamagedPicture(f'{name} is empty (0 bytes).')
    with reporting_damage(name):
        if is_alone() and (size := jpeg.ordinary_size(content)):
            claims.check_jpeg(name, size, len(content))
            return _read_rgb8(content)
        decoded = _decode(content, name, stored_rgb8=True)
        return decoded.stored_rgb8 if isinstance(decoded, Picture) else decoded


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """Height and width in pixels, before turning, from the header where that can be read alone.

    Raises:
        UserError: see :func:`decode`.
    """
    if size := jpeg.ordinary_size(content):
        claims.check_jpeg(name, size, len(content))
        return size
    try:
        with reporting_damage(name), _opened(content, name) as im:
            return im.height, im.width
    except DamagedPicture:
        if content[:4] not in tiff.STARTS:  # of 16 bits, of which Pillow does not know all
            raise
    height, width = decode(content, name).pixels.shape[:2]
    return height, width


@contextmanager
def reporting_damage(name: str) -> Iterator[None]:
    """Says in one line why a picture cannot be read, whatever the libraries raise; ``name``: what the line calls it.

    Only for decoders: an error of any kind is taken as damage of the file.

    Raises:
        UserError: instead of anything but MemoryError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # large pictures, odd EXIF data
            yield
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DamagedPicture(f'{name} is not a picture in a format that can be read.') from error
    except Image.DecompressionBombError as error:
        reason = str(error).split(',')[0]
        raise UserError(f'{name} is too large: {reason}; {claims.ANY_SIZE}=1 reads it anyway.') from error
    except Exception as error:  # decoders of damaged files raise anything
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise DamagedPicture(f'{name} cannot be read; it is damaged or truncated ({reason[:120]}).') from error


def from_pillow(im: Image.Image, name: str = 'the picture') -> Picture:
    """A picture that Pillow has opened or made; see :func:`decode`. Pillow itself reads 16-bit colours as 8-bit ones.

    Args:
        name: what an error calls it.
    """
    if im.mode == 'F' or (im.mode == 'I' and im.format != 'PPM'):
        raise UserError(f'{name} holds 32-bit numbers, whose range is not defined; save it with 8 or 16 bits.')
    notes, icc = [], im.info.get('icc_profile')
    if (frames := getattr(im, 'n_frames', 1)) > 1:
        notes.append(f'the first of {frames} frames is taken')
    if im.format == 'TIFF':
        with silenced():  # libtiff also prints messages about unknown tags
            im.load()
    im.load()
    orientation = _orientation(im)  # a TIFF is turned by loading it
    metadata = read_metadata(im)
    if im.mode in DEEP_MODES:
        pixels = np.array(im).astype(np.uint16)
        if (transparent := im.info.get('transparency')) is not None:
            pixels = np.stack([pixels, np.where(pixels == transparent, 0, 65535).astype(np.uint16)], -1)
    else:
        if im.mode in ('CMYK', 'YCbCr', 'LAB', 'HSV'):
            notes.append(f'{im.mode} becomes RGB')
            im, icc = _to_srgb(im), None
        color = 'L' if im.mode in ('1', 'L', 'LA', 'La') else 'RGB'
        mode = {'L': 'LA', 'RGB': 'RGBA'}[color] if im.has_transparency_data else color
        pixels = np.array(im if im.mode == mode else im.convert(mode))
    return make_picture(pixels, orientation, icc, notes, metadata)


def _decode(content: bytes, name: str, stored_rgb8: bool) -> Any:
    """A Picture, or with ``stored_rgb8`` its (H, W, 3) instead where that is faster."""
    try:
        opened = _opened(content, name)
    except UnidentifiedImageError:
        if content[:4] in tiff.STARTS and (deep := tiff.read_deep(content, name)) is not None:
            return deep
        raise
    with opened as im:
        if im.format == 'TIFF' and not tiff.is_shallow(im) and (deep := tiff.read_deep(content, name)) is not None:
            return deep
        if im.format == 'PNG':
            png.check_chunks(content)
        if stored_rgb8 and _is_ordinary(im, content) and is_alone():
            return _read_rgb8(content)
        if im.mode in DEEP_MODES or not _is_deep(im, content):
            return from_pillow(im, name)
        im.load()  # it reports damage as an exception; OpenCV writes to the terminal
        if im.format == 'PNG':
            pixels = png.read_deep(content)
        else:
            with silenced():
                pixels = png.read_opencv(content)
        return make_picture(pixels, _orientation(im), im.info.get('icc_profile'), metadata=read_metadata(im))


def _read_rgb8(content: bytes) -> np.ndarray:
    with silenced():
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ValueError('its pixels cannot be decoded')
    return pixels


def _opened(content: bytes, name: str) -> Image.Image:
    """The header, checked; the caller closes it."""
    claims.lift_if_asked()
    im = Image.open(io.BytesIO(content), formats=OPENED)
    try:
        claims.check(name, im, content)
    except UserError:
        im.close()
        raise
    return im


def _is_ordinary(im: Image.Image, content: bytes) -> bool:
    """Whether the file is a PNG or BMP of which OpenCV, in less time, gives the stored RGB values that Pillow would."""
    if im.format == 'PNG':
        return not png.is_deep(content) and not getattr(im, 'is_animated', False)
    tiles: Any = getattr(im, 'tile', ())
    return im.format == 'BMP' and im.mode == 'RGB' and bool(tiles) and tiles[0].args[0] == 'BGR'


def _is_deep(im: Image.Image, content: bytes) -> bool:
    """Whether the file has 16 bits per value where Pillow reads 8."""
    if im.format == 'PNG':
        return png.is_deep(content)
    tiles = getattr(im, 'tile', ())
    return im.format == 'PPM' and any(isinstance(tile.args, tuple) and tile.args[-1] == 65535 for tile in tiles)


def _to_srgb(im: Image.Image) -> Image.Image:
    """Other colour systems as sRGB, by the embedded profile if it can be used."""
    if im.mode in ('CMYK', 'LAB'):
        srgb = ImageCms.createProfile('sRGB')
        try:
            if im.mode == 'LAB':
                source: Any = ImageCms.createProfile('LAB')
            else:
                source = ImageCms.getOpenProfile(io.BytesIO(im.info['icc_profile']))
            converted = ImageCms.profileToProfile(im, source, srgb, outputMode='RGB')
            assert converted is not None
            return converted
        except (KeyError, OSError, ImageCms.PyCMSError):
            pass  # no profile, or one that does not fit: the plain formula
    return im.convert('RGB')


def _orientation(im: Image.Image) -> int:
    try:
        return im.getexif().get(tiff.ORIENTATION, 1)
    except Exception:  # damaged EXIF data do not make the picture unreadable
        return 1
