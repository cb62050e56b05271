"""Pictures of any common kind, read into an array and written back with what belongs to them: depth, alpha, profile."""

from __future__ import annotations

from typing import Any

import numpy as np
import tifffile
from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import check_is_picture_file, replacing
from clit_basicsr.formats.metadata import LONGEST, texts
from clit_basicsr.formats.picture import Picture, eight_bit
from clit_basicsr.formats.reader import decode, from_pillow, reporting_damage
from clit_basicsr.pictures.formats import JPEG, PNG, QUALITY, TIFF, WEBP, Format, format_of
from clit_basicsr.pictures.png16 import write_png16

__all__ = ['Picture', 'check_output', 'eight_bit', 'from_pillow', 'read', 'reporting_damage', 'write']

# Of zlib: files are 4 % larger than at its default of 6, and are written in a third of the time.
PNG_LEVEL = 4


def read(path: str) -> Picture:
    """Reads a file; see :func:`clit_basicsr.formats.reader.decode`.

    Raises:
        UserError: the file does not exist or cannot be read, with the reason.
    """
    check_is_picture_file(path)
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}).') from error
    return decode(content, path)


def write(path: str, picture: Picture, quality: int = QUALITY) -> None:
    """Writes a picture in the format that the file's name says; a partial file of that name never exists.

    JPEG and WebP are written with ``quality``, 1 to 100, PNG and TIFF without loss. WebP knows no grey and stores it as
    RGB.

    Raises:
        UserError: the format cannot hold the picture (see :func:`check_output`), or the file cannot be written.
    """
    depth, _ = check_output(path, picture, picture.pixels.shape[:2])
    if depth != picture.pixels.dtype:
        raise UserError(f'{path}: {format_of(path).name} holds no 16-bit picture; write PNG or TIFF.')
    with replacing(path) as temporary:
        kind, pixels, icc, metadata = format_of(path), picture.pixels, picture.icc, picture.metadata
        if kind is TIFF:
            _write_tiff(temporary, picture)
        elif depth == np.uint16:
            write_png16(temporary, pixels, icc, metadata)
        else:
            im = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            options: dict[str, Any] = {'icc_profile': icc} if icc and kind.profile else {}
            if kind in (JPEG, WEBP):
                options['quality'] = quality
            if kind is JPEG:
                options['subsampling'] = '4:4:4'  # the colours at full resolution
            if kind is PNG:
                options['compress_level'] = PNG_LEVEL
            if kind.exif and metadata.exif and not _is_too_long(kind, picture):
                options['exif'] = metadata.exif
            if metadata.dpi:
                options['dpi'] = metadata.dpi
            im.save(temporary, kind.name, **options)


def check_output(path: str, picture: Picture, size: tuple[int, ...]) -> tuple[np.dtype, list[str]]:
    """What will come of a picture of that kind, enlarged to ``size`` (H, W), in a file of that name.

    Returns:
        tuple: the depth, uint8 or uint16, that the pixels must have; what the format loses, for the user.

    Raises:
        UserError: the file's name ends in no known format, or the format cannot hold the picture at all.
    """
    kind = format_of(path)
    if picture.has_alpha and not kind.alpha:
        raise UserError(f'{path}: {kind.name} has no transparency, which this picture has; write PNG, WebP or TIFF.')
    if max(size) > kind.longest_side:
        raise UserError(
            f'{path}: {kind.name} is limited to {kind.longest_side} pixels per side; the result would be larger.'
        )
    notes = []
    if picture.pixels.dtype == np.uint16 and kind.bits == 8:
        notes.append(f'16 bits become 8: {kind.name} holds no more')
    if picture.icc and not kind.profile:
        notes.append(f'the colour profile is lost: {kind.name} holds none')
    if picture.metadata.exif and not kind.exif:
        notes.append(f'the EXIF data are lost: {kind.name} holds none')
    if _is_too_long(kind, picture):
        notes.append(f'the EXIF data are lost: {kind.name} holds none of that length')
    return np.dtype(np.uint8) if kind.bits == 8 else picture.pixels.dtype, notes


def _is_too_long(kind: Format, picture: Picture) -> bool:
    return kind is JPEG and len(picture.metadata.exif or b'') > LONGEST


def _write_tiff(path: str, picture: Picture) -> None:
    """Of the EXIF data the texts of the first directory (date, camera, author ...) become tags of the TIFF."""
    pixels, metadata = picture.pixels, picture.metadata
    described = {tag: text.encode(errors='replace') for tag, text in texts(metadata.exif).items()}
    channels = pixels.shape[2]
    tifffile.imwrite(
        path,
        pixels[..., 0] if channels == 1 else pixels,
        photometric='rgb' if channels >= 3 else 'minisblack',
        planarconfig=None if channels == 1 else 'contig',
        extrasamples=['unassalpha'] if channels in (2, 4) else None,
        compression='zlib',
        iccprofile=picture.icc,
        metadata=None,
        software=False,
        resolution=metadata.dpi,
        resolutionunit='INCH' if metadata.dpi else None,
        extratags=[(tag, 's', 0, text, True) for tag, text in described.items()],
    )
