"""Some 350 damaged files, with fixed seeds: each gives a picture or one line that names it, quickly and silently."""

import io
import os
import struct
import tempfile
import time
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import tifffile
from helpers.awkward_pictures import png
from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.formats import reader
from clit_basicsr.formats.claims import ANY_SIZE

PIXELS = (np.cumsum(np.random.default_rng(0).integers(-9, 10, (40, 56, 3)), axis=1) % 256).astype(np.uint8)
DEEP = PIXELS.astype(np.uint16) * 257


def saved(kind, pixels=PIXELS, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def tiff(pixels=DEEP, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, photometric='rgb', metadata=None, **options)
    return stream.getvalue()


WHOLE = {
    'png': lambda: saved('PNG'),
    'png16': lambda: cv2.imencode('.png', DEEP)[1].tobytes(),
    'palette.png': lambda: saved('PNG', PIXELS[..., 0], bits=8),
    'jpg': lambda: saved('JPEG'),
    'progressive.jpg': lambda: saved('JPEG', progressive=True),
    'webp': lambda: saved('WEBP'),
    'lossless.webp': lambda: saved('WEBP', lossless=True),
    'bmp': lambda: saved('BMP'),
    'tif': lambda: saved('TIFF'),
    'lzw.tif': lambda: saved('TIFF', compression='tiff_lzw'),
    'zstd.tif': lambda: saved('TIFF', compression='zstd'),
    '16.tif': lambda: tiff(),
    'planar16.tif': lambda: tiff(np.moveaxis(DEEP, -1, 0), planarconfig='separate', compression='zlib'),
    'zstd16.tif': lambda: saved('TIFF', DEEP[..., 0], compression='zstd'),
    'lzw16.tif': lambda: cv2.imencode('.tif', DEEP, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes(),
}


@contextmanager
def printed():
    """What C libraries and others write to file descriptor 2 meanwhile."""
    found = []
    with tempfile.TemporaryFile() as stream:
        own = os.dup(2)
        os.dup2(stream.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(own, 2)
            os.close(own)
            stream.seek(0)
            found.append(stream.read())


def damaged(whole, number, rng):
    """Cut off, bits flipped anywhere, bits flipped in the header, or a header's number changed."""
    content = bytearray(whole)
    if number % 4 == 0:
        return bytes(content[: rng.integers(1, len(content))])
    if number % 4 == 3:
        at = rng.integers(4, min(120, len(content) - 4))
        content[at : at + 2] = rng.bytes(2)
        return bytes(content)
    end = len(content) if number % 4 == 1 else min(len(content), 250)
    for at in rng.integers(0, end, rng.integers(1, 8)):
        content[at] ^= 1 << rng.integers(8)
    return bytes(content)


@pytest.mark.parametrize('alone', [True, False], ids=['OpenCV where it is faster', 'Pillow'])
@pytest.mark.parametrize('kind', WHOLE)
def test_a_damaged_file_gives_a_picture_or_a_line(kind, alone, monkeypatch):
    monkeypatch.setattr(reader, 'is_alone', lambda: alone)
    whole = WHOLE[kind]()
    assert reader.decode(whole, 'whole').pixels.shape[:2] == PIXELS.shape[:2]
    rng = np.random.default_rng(list(kind.encode()))
    refused = 0
    for number in range(24):
        content = damaged(whole, number, rng)
        for read in (reader.decode, reader.decode_rgb8, reader.size_of):
            began = time.monotonic()
            with printed() as words:
                try:
                    read(content, f'{number}.{kind}')
                except UserError as error:
                    assert str(error).startswith(f'{number}.{kind} ') or str(error).startswith(f'{number}.{kind}:')
                    assert '\n' not in str(error)
                    refused += read is reader.decode
            assert words == [b''], (number, read)
            assert time.monotonic() - began < 2, (number, read)
    assert refused >= 6  # those that are cut off


@pytest.mark.parametrize('kind', ['png', 'jpg', 'webp', 'bmp', 'tif'])
def test_both_decoders_give_the_same_pixels(kind, monkeypatch):
    content = WHOLE[kind]()
    expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    for alone in (True, False):
        monkeypatch.setattr(reader, 'is_alone', lambda alone=alone: alone)
        assert np.array_equal(reader.decode_rgb8(content, kind), expected)
    assert np.array_equal(reader.decode(content, kind).pixels, expected)


def bmp_header(width, height):
    content = bytearray(saved('BMP'))
    struct.pack_into('<ii', content, 18, width, height)
    return bytes(content)


def tiff_header(width, height, **options):
    content = bytearray(saved('TIFF', **options))
    entries = struct.unpack_from('<I', content, 4)[0] + 2
    for number in range(struct.unpack_from('<H', content, entries - 2)[0]):
        at = entries + 12 * number
        tag = struct.unpack_from('<H', content, at)[0]
        if tag in (256, 257):
            struct.pack_into('<HII', content, at + 2, 4, 1, width if tag == 256 else height)
    return bytes(content)


def gif_header(width, height):
    content = bytearray(saved('GIF', PIXELS[..., 0]))
    struct.pack_into('<HH', content, 6, width, height)
    return bytes(content)


CLAIMS = {
    'bmp': lambda: bmp_header(20, 3_342_350),
    'tif': lambda: tiff_header(20, 3_342_350),
    'lzw.tif': lambda: tiff_header(20, 3_342_350, compression='tiff_lzw'),
    'png': lambda: png(3_342_350, 20, 8, 2, bytes(61)),
    'png16': lambda: png(3_342_350, 20, 16, 2, bytes(121)),
    'gif': lambda: gif_header(12_000, 12_000),
}


@pytest.mark.parametrize('kind', CLAIMS)
def test_a_header_may_not_claim_more_than_a_file_can_hold(kind, monkeypatch):
    content = CLAIMS[kind]()
    for read in (reader.decode, reader.decode_rgb8, reader.size_of):
        with pytest.raises(
            UserError, match=rf'^a\.{kind} claims \d+x\d+ pixels, which its {len(content)} bytes cannot'
        ):
            read(content, f'a.{kind}')
    monkeypatch.setenv(ANY_SIZE, '1')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)  # put back afterwards
    assert reader.size_of(gif_header(12_000, 12_000), 'a.gif') == (12_000, 12_000)


def test_sixty_thousand_pixels_a_side():
    content = png(60_000, 60_000, 8, 2, bytes(2000))
    for read in (reader.decode, reader.decode_rgb8, reader.size_of):
        with pytest.raises(
            UserError, match=r'^a is too large: .*3600000000 pixels.*; CLIT_BASICSR_ANY_SIZE=1 reads it'
        ):
            read(content, 'a')


def test_pictures_of_one_colour_are_read_however_small_the_file():
    one = Image.new('L', (5000, 5000), 70)
    for kind, options in (('PNG', {}), ('TIFF', {'compression': 'zstd'}), ('WEBP', {'lossless': True}), ('JPEG', {})):
        stream = io.BytesIO()
        one.save(stream, kind, **options)
        assert reader.size_of(stream.getvalue(), kind) == (5000, 5000), kind
    stream = io.BytesIO()
    Image.new('1', (9000, 9000)).save(stream, 'PNG', compress_level=9)
    pixels = reader.decode(stream.getvalue(), 'bits').pixels
    assert pixels.shape == (9000, 9000, 1) and not pixels.any()


def test_a_container_with_the_suffix_of_a_picture_starts_no_program(monkeypatch):
    def start(*args, **kwargs):
        pytest.fail('a program was started')

    monkeypatch.setattr('subprocess.Popen', start)
    monkeypatch.setattr('subprocess.check_call', start)
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n0 0 40 40 rectfill\nshowpage\n%%EOF\n'
    for read in (reader.decode, reader.decode_rgb8, reader.size_of):
        with pytest.raises(UserError, match=r'^a\.png is not a picture in a format that can be read\.$'):
            read(eps, 'a.png')
