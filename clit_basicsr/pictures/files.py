"""Pictures of any common kind, read into an array and written back with what belongs to them: depth, alpha, profile."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms, UnidentifiedImageError

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import replacing
from clit_basicsr.pictures.png16 import write_png16

# JPEG and WebP: near-lossless, and JPEG without halving the resolution of the colours.
QUALITY = 95
TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # the last two: BigTIFF
DEEP_MODES = ('I', 'I;16', 'I;16B', 'I;16L', 'I;16N')  # of Pillow: grey, 16 bits
PNG_GREY_ALPHA = 4  # a PNG's colour type

# What they log of damaged files is raised as well, and an error is one line.
for library in ('tifffile', 'PIL'):
    logging.getLogger(library).addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Picture:
    """A picture as it is looked at: turned as its EXIF data say.

    Attributes:
        pixels: (H, W, C), uint8 or uint16; C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).
        icc: the ICC profile of the grey or RGB values, None: sRGB.
        notes: what was done to the file's content to read it, for the user.
    """

    pixels: np.ndarray
    icc: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)

    @property
    def rgb(self) -> np.ndarray:
        """(H, W, 3), the same type: on white where it is transparent, grey three times.

        This is what figures and animations show; without alpha it is a view of the pixels, not a copy.
        """
        color = self.pixels
        if self.has_alpha:
            white = np.iinfo(color.dtype).max
            alpha = color[..., -1:].astype(np.uint32)
            mixed = color[..., :-1] * alpha + (white - alpha) * white  # up to white**2, which 32 bits hold
            color = ((mixed + white // 2) // white).astype(color.dtype)
        return np.broadcast_to(color, (*color.shape[:2], 3))


class Format(NamedTuple):
    """What a file format can hold."""

    name: str
    bits: int
    alpha: bool
    profile: bool
    longest_side: int


PNG = Format('PNG', 16, True, True, 2**31 - 1)
JPEG = Format('JPEG', 8, False, True, 65500)
WEBP = Format('WebP', 8, True, True, 16383)
TIFF = Format('TIFF', 16, True, True, 2**31 - 1)
BMP = Format('BMP', 8, False, False, 2**31 - 1)
FORMATS = {'.png': PNG, '.jpg': JPEG, '.jpeg': JPEG, '.webp': WEBP, '.tif': TIFF, '.tiff': TIFF, '.bmp': BMP}


def read(path: str) -> Picture:
    """Reads PNG, JPEG, WebP, TIFF, BMP and whatever else Pillow opens.

    Palettes and 1-bit pictures become 8 bit, CMYK becomes sRGB (by the profile where there is one), of an animation
    the first frame is taken. EXIF orientation is applied; other metadata than the ICC profile are not kept.

    Raises:
        UserError: the file does not exist or cannot be read, with the reason.
    """
    if os.path.isdir(path):
        raise UserError(f'{path} is a folder, not a picture.')
    if not os.path.isfile(path):
        raise UserError(f'{path} does not exist.' if not os.path.exists(path) else f'{path} is not a file.')
    try:
        with open(path, 'rb') as file:
            start = file.read(32)
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}).') from error
    if not start:
        raise UserError(f'{path} is empty (0 bytes).')
    with reporting_damage(path):
        if start[:4] in TIFF_STARTS and (deep := _read_deep_tiff(path)) is not None:
            return deep
        with Image.open(path) as im:
            return _read_pillow(path, im, start)


def names_in(folder: str) -> list[str]:
    """What is in a folder, sorted. Raises UserError for one that cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f'the folder {folder} cannot be read ({error.strerror}).') from error


@contextmanager
def reporting_damage(name: str) -> Iterator[None]:
    """Says in one line why a picture cannot be read, whatever the libraries raise; ``name``: what the line calls it.

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
        raise UserError(f'{name} is not a picture in a format that can be read.') from error
    except Image.DecompressionBombError as error:
        raise UserError(f'{name} is too large: {str(error).split(",")[0]}.') from error
    except Exception as error:  # decoders of damaged files raise anything
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f'{name} cannot be read; it is damaged or truncated ({reason[:120]}).') from error


def eight_bit(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3), uint8, a copy; 16 bits are rounded."""
    return np.array(rgb) if rgb.dtype == np.uint8 else np.round(rgb / np.float32(257)).astype(np.uint8)


def write(path: str, picture: Picture) -> None:
    """Writes a picture in the format that the file's name says; a partial file of that name never exists.

    JPEG and WebP are written with quality 95, PNG and TIFF without loss. WebP knows no grey and stores it as RGB.

    Raises:
        UserError: the format cannot hold the picture (see :func:`check_output`), or the file cannot be written.
    """
    depth, _ = check_output(path, picture, picture.pixels.shape[:2])
    if depth != picture.pixels.dtype:
        raise UserError(f'{path}: {_format_of(path).name} holds no 16-bit picture; write PNG or TIFF.')
    with replacing(path) as temporary:
        kind, pixels, icc = _format_of(path), picture.pixels, picture.icc
        if kind is TIFF:
            _write_tiff(temporary, pixels, icc)
        elif depth == np.uint16:
            write_png16(temporary, pixels, icc)
        else:
            im = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            options: dict[str, Any] = {'icc_profile': icc} if icc and kind.profile else {}
            if kind in (JPEG, WEBP):
                options['quality'] = QUALITY
            if kind is JPEG:
                options['subsampling'] = '4:4:4'
            im.save(temporary, kind.name, **options)


def check_output(path: str, picture: Picture, size: tuple[int, ...]) -> tuple[np.dtype, list[str]]:
    """What will come of a picture of that kind, enlarged to ``size`` (H, W), in a file of that name.

    Returns:
        tuple: the depth, uint8 or uint16, that the pixels must have; what the format loses, for the user.

    Raises:
        UserError: the file's name ends in no known format, or the format cannot hold the picture at all.
    """
    kind = _format_of(path)
    if picture.has_alpha and not kind.alpha:
        raise UserError(f'{path}: {kind.name} has no transparency, which this picture has; write PNG, WebP or TIFF.')
    if max(size) > kind.longest_side:
        raise UserError(f'{path}: {kind.name} ends at {kind.longest_side} pixels a side; the result would be larger.')
    notes = []
    if picture.pixels.dtype == np.uint16 and kind.bits == 8:
        notes.append(f'16 bits become 8: {kind.name} holds no more')
    if picture.icc and not kind.profile:
        notes.append(f'the colour profile is lost: {kind.name} holds none')
    return np.dtype(np.uint8) if kind.bits == 8 else picture.pixels.dtype, notes


def _format_of(path: str) -> Format:
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FORMATS:
        raise UserError(f'{path}: a picture cannot be written as {suffix or "that"}; use {", ".join(FORMATS)}.')
    return FORMATS[suffix]


def from_pillow(im: Image.Image, name: str = 'the picture') -> Picture:
    """A picture that Pillow has opened or made; see :func:`read`. Pillow itself reads 16-bit colours as 8-bit ones.

    Args:
        name: what an error calls it.
    """
    if im.mode == 'F' or (im.mode == 'I' and im.format != 'PPM'):
        raise UserError(f'{name} holds numbers of 32 bits, whose range nobody knows; save it with 8 or 16 bits.')
    notes, icc = [], im.info.get('icc_profile')
    if (frames := getattr(im, 'n_frames', 1)) > 1:
        notes.append(f'the first of {frames} frames is taken')
    im.load()
    orientation = _orientation(im)  # a TIFF is turned by loading it
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
    return _picture(pixels, orientation, icc, notes)


def _read_pillow(path: str, im: Image.Image, start: bytes) -> Picture:
    """A file that Pillow knows; ``start``: its first 32 bytes."""
    if im.mode in DEEP_MODES or not _is_deep(im, start):
        return from_pillow(im, path)
    if im.format == 'PNG':
        with Image.open(path) as checked:
            checked.verify()
    im.load()  # like the checksums, it reports a damaged file as an exception; OpenCV writes to the terminal
    pixels = _read_opencv(path)
    if im.format == 'PNG' and start[25] == PNG_GREY_ALPHA:  # which is RGB with alpha to OpenCV
        pixels = pixels[..., [0, 3]]
    return _picture(pixels, _orientation(im), im.info.get('icc_profile'))


def _picture(pixels: np.ndarray, orientation: int, icc: bytes | None, notes: Iterable[str] = ()) -> Picture:
    pixels = _turn(pixels if pixels.ndim == 3 else pixels[..., None], orientation)
    # A profile of another kind than the pixels, which is found in files, would do more harm than none.
    kind = b'GRAY' if pixels.shape[2] < 3 else b'RGB '
    icc = icc if icc and icc[16:20] == kind else None
    return Picture(np.ascontiguousarray(pixels), icc, tuple(notes))


def _read_deep_tiff(path: str) -> Picture | None:
    """A TIFF of 16 bits per value; None: Pillow reads it. Pillow would make 8 bits of most of them."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        if page.dtype is None or page.dtype.itemsize == 1:
            return None
        if page.dtype != np.uint16 or page.bitspersample != 16:
            kind = f'{page.dtype} values of {page.bitspersample} bits'
            raise UserError(f'{path} holds {kind}, whose range nobody knows; save it with 8 or 16 bits.')
        if page.imagewidth * page.imagelength > 2 * (Image.MAX_IMAGE_PIXELS or float('inf')):  # Pillow's own limit
            raise UserError(f'{path} is too large: {page.imagewidth}x{page.imagelength} pixels.')
        samples, icc, orientation = page.samplesperpixel, page.iccprofile, page.tags.valueof(274, default=1)
        if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB) or samples > 4:
            raise UserError(f'{path}: TIFF of 16 bits is read as grey or RGB, not {page.photometric.name}.')
        if samples == 2:  # of the three libraries only this one reads it
            pixels = page.asarray()
            if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                pixels = np.moveaxis(pixels, 0, -1)
        else:
            pixels, orientation = _read_opencv(path), 1  # turned already
        if samples != (pixels.shape[2] if pixels.ndim == 3 else 1):
            raise UserError(f'{path}: a TIFF of 16 bits and {samples} values per pixel of an unknown kind.')
        notes = [f'the first of {len(file.pages)} pages is taken'] if len(file.pages) > 1 else []
    return _picture(pixels, orientation, icc, notes)


def _read_opencv(path: str) -> np.ndarray:
    """(H, W) or (H, W, 3 or 4), 16 bits, RGB."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # an error is one line, and ours
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError('its 16-bit values cannot be decoded')
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return pixels


def _is_deep(im: Image.Image, start: bytes) -> bool:
    """Whether the file has 16 bits per value where Pillow reads 8."""
    if im.format == 'PNG':
        return start[24] == 16
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
        return im.getexif().get(274, 1)
    except Exception:  # damaged EXIF data do not make the picture unreadable
        return 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels (H, W, C) as an EXIF orientation (1 ... 8) says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _write_tiff(path: str, pixels: np.ndarray, icc: bytes | None) -> None:
    channels = pixels.shape[2]
    tifffile.imwrite(
        path,
        pixels[..., 0] if channels == 1 else pixels,
        photometric='rgb' if channels >= 3 else 'minisblack',
        planarconfig=None if channels == 1 else 'contig',
        extrasamples=['unassalpha'] if channels in (2, 4) else None,
        compression='zlib',
        iccprofile=icc,
        metadata=None,
    )
