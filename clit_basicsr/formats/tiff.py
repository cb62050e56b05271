"""TIFF of 16 bits per value, of any layout and compression that libtiff knows.

Pillow makes 8 bits of most of them, OpenCV misreads separate planes, and tifffile alone lacks LZW and zstd. But Pillow
decodes grey TIFFs of 16 bits whatever their compression. So the compressed strips or tiles are handed to it as those of
a grey picture: each plane by itself, or a row of interleaved values as one of so many more pixels.
"""

from __future__ import annotations

import io
import logging
import struct
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from clit_basicsr.base.errors import UserError
from clit_basicsr.formats import claims
from clit_basicsr.formats.metadata import NONE, Metadata, read_metadata
from clit_basicsr.formats.picture import Picture, make_picture
from clit_basicsr.formats.silence import silenced

STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # the last two: BigTIFF
ORIENTATION = 274
HORIZONTAL = 2  # predictor: each value is the difference from its neighbour to the left
UNSPECIFIED, PREMULTIPLIED = 0, 1  # kinds of extra samples

# What it logs of damaged files is raised as well, and an error is one line.
logging.getLogger('tifffile').addHandler(logging.NullHandler())


def read_deep(content: bytes, name: str) -> Picture | None:
    """A TIFF of 16 bits per value; None: it has 8 or fewer, and Pillow reads it.

    Raises:
        UserError: values of other kinds, or more pixels than the file can hold.
        Exception: whatever decoders raise for damaged files.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        if page.dtype is None or page.dtype.itemsize == 1:
            return None
        if page.dtype != np.uint16 or page.bitspersample != 16:
            kind = f'{page.dtype} values of {page.bitspersample} bits'
            raise UserError(f'{name} holds {kind}, whose range is not defined; save it with 8 or 16 bits.')
        samples = page.samplesperpixel
        size, compression = (page.imagelength, page.imagewidth), claims.TIFF_COMPRESSIONS.get(int(page.compression))
        claims.check_tiff(name, size, 16 * samples, compression or 'other', len(content))
        photometric = tifffile.PHOTOMETRIC
        known = {photometric.MINISWHITE: 1, photometric.MINISBLACK: 1, photometric.RGB: 3}
        if page.photometric not in known or samples > 4:
            kind = getattr(page.photometric, 'name', page.photometric)
            raise UserError(f'{name}: TIFF of 16 bits is read as grey or RGB, not {kind}.')
        colors = known[page.photometric]
        if samples not in (colors, colors + 1):
            raise UserError(f'{name}: a TIFF of 16 bits and {samples} values per pixel of an unknown kind.')
        pixels = _pixels(content, page)
        if page.photometric == photometric.MINISWHITE:
            pixels[..., 0] = 65535 - pixels[..., 0]
        extra = [int(kind) for kind in page.extrasamples][-1:]
        if samples > colors and extra == [UNSPECIFIED]:
            pixels = pixels[..., :colors]
        elif samples > colors and extra == [PREMULTIPLIED]:
            pixels = _divide_by_alpha(pixels)
        notes = [f'the first of {len(file.pages)} pages is taken'] if len(file.pages) > 1 else []
        return make_picture(
            pixels, page.tags.valueof(ORIENTATION, default=1), page.iccprofile, notes, _metadata(content)
        )


def _metadata(content: bytes) -> Metadata:
    try:
        with TiffImageFile(io.BytesIO(content)) as im:  # the header, which Pillow knows of most
            return read_metadata(im)
    except Exception:
        return NONE


def _pixels(content: bytes, page: Any) -> np.ndarray:
    """(H, W, samples), uint16, native byte order."""
    separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1
    planes = page.samplesperpixel if separate else 1
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if not segments or len(segments) % planes:
        raise ValueError(f'{len(segments)} strips or tiles for {planes} planes')
    if any(count < 1 or offset + count > len(content) for offset, count in segments):
        raise ValueError('its strips or tiles lie outside of the file')
    each = len(segments) // planes
    parts = [
        _plane(page, [content[offset : offset + count] for offset, count in segments[i * each : (i + 1) * each]])
        for i in range(planes)
    ]
    return np.concatenate(parts, -1) if separate else parts[0]


def _plane(page: Any, segments: list[bytes]) -> np.ndarray:
    """(H, W, C), uint16: one plane of a TIFF, C interleaved values in each pixel."""
    height, width = page.imagelength, page.imagewidth
    channels = page.samplesperpixel if page.planarconfig != tifffile.PLANARCONFIG.SEPARATE else 1
    # The values of a row that belong together: the whole row, or those of each tile.
    span = page.tilewidth if page.is_tiled else width
    spans = -(-width // span)
    with TiffImageFile(io.BytesIO(_grey_tiff(page, segments, span, spans, channels))) as im, silenced():
        im.load()
        values = np.array(im).astype(np.uint16).reshape(height, spans, span, channels)
    if page.predictor == HORIZONTAL:
        values = np.cumsum(values, axis=2, dtype=np.uint16)
    elif page.predictor != 1:
        raise ValueError(f'its predictor {page.predictor} is not known for 16 bits')
    return values.reshape(height, spans * span, channels)[:, :width]


def _grey_tiff(page: Any, segments: list[bytes], span: int, spans: int, channels: int) -> bytes:
    """A grey TIFF of 16 bits, of the same byte order and compression, without predictor."""
    order = page.parent.byteorder
    lengths = [len(segment) for segment in segments]
    starts = list(8 + np.cumsum([0, *lengths[:-1]]))
    tags = {
        256: [spans * span * channels],  # width
        257: [page.imagelength],
        258: [16],
        259: [int(page.compression)],
        262: [1],  # black is 0
        266: [int(page.fillorder)],
        277: [1],
        339: [1],  # unsigned
    }
    if page.is_tiled:
        tags |= {322: [span * channels], 323: [page.tilelength], 324: starts, 325: lengths}
    else:
        tags |= {273: starts, 278: [page.rowsperstrip], 279: lengths}
    body = b''.join(segments)
    at = 8 + len(body)
    far = at + 2 + 12 * len(tags) + 4  # where the values go that an entry cannot hold
    entries, rest = [], b''
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f'{order}{len(values)}I', *values)
        if len(values) > 1:
            place, rest = far + len(rest), rest + packed
            packed = struct.pack(f'{order}I', place)
        entries.append(struct.pack(f'{order}HHI', tag, 4, len(values)) + packed)
    header = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', at)
    directory = struct.pack(f'{order}H', len(tags)) + b''.join(entries) + bytes(4)
    return header + body + directory + rest


def _divide_by_alpha(pixels: np.ndarray) -> np.ndarray:
    """Colours that were multiplied by alpha as they were before; (H, W, C + 1), uint16."""
    alpha = pixels[..., -1:].astype(np.uint64)
    colors = (pixels[..., :-1].astype(np.uint64) * 65535 + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate([np.minimum(colors, 65535).astype(np.uint16), pixels[..., -1:]], -1)


def is_shallow(im: Image.Image) -> bool:
    """Whether Pillow has opened a TIFF of at most 8 bits per value."""
    bits = im.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
    return max(bits) <= 8
