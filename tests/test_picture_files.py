"""Pictures keep what they are: every value, depth, alpha, colour profile, and the way up."""

import cv2
import numpy as np
import pytest
import tifffile
from helpers.awkward_pictures import SRGB, chunk, color, make
from PIL import Image, ImageCms, ImageOps

from clit_basicsr.base.errors import UserError
from clit_basicsr.pictures import files, formats
from clit_basicsr.pictures.files import Picture

DEPTHS = (np.uint8, np.uint16)


@pytest.mark.parametrize('dtype', DEPTHS)
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('suffix', ['png', 'tif', 'tiff', 'bmp', 'jpg', 'webp', 'PNG'])
def test_what_is_written_is_read_again_or_refused(suffix, channels, dtype, tmp_path):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (70, 5, channels)).astype(dtype)
    path = str(tmp_path / f'a.{suffix}')
    kind = formats.FORMATS[f'.{suffix.lower()}']
    if (dtype == np.uint16 and kind.bits == 8) or (channels in (2, 4) and not kind.alpha):
        with pytest.raises(UserError, match=r'16-bit|transparency'):
            files.write(path, Picture(pixels))
    else:
        files.write(path, Picture(pixels))
        back = files.read(path).pixels
        if kind.name in ('PNG', 'TIFF', 'BMP'):
            assert back.dtype == dtype
            assert np.array_equal(back, pixels)
        else:
            assert back.shape == ((70, 5, channels + 2) if kind is files.WEBP and channels < 3 else pixels.shape)
    assert [file.name for file in tmp_path.iterdir() if file.name != f'a.{suffix}'] == []


@pytest.mark.parametrize('suffix', ['jpg', 'webp'])
def test_lossy_formats_lose_little(suffix, tmp_path):
    smooth = color(64, 80)
    files.write(str(tmp_path / f'a.{suffix}'), Picture(smooth))
    back = files.read(str(tmp_path / f'a.{suffix}')).pixels
    assert np.abs(back.astype(float) - smooth).mean() < 1.5


def test_other_readers_agree_on_our_16_bit_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (130, 7, 4)).astype(np.uint16)
    files.write(str(tmp_path / 'a.png'), Picture(pixels, SRGB))
    assert np.array_equal(cv2.imread(str(tmp_path / 'a.png'), cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]], pixels)
    with Image.open(tmp_path / 'a.png') as im:
        im.verify()  # every checksum
        assert im.info['icc_profile'] == SRGB


@pytest.mark.parametrize(
    ('suffix', 'dtype'),
    [
        ('png', np.uint8),
        ('png', np.uint16),
        ('tif', np.uint8),
        ('tif', np.uint16),
        ('jpg', np.uint8),
        ('webp', np.uint8),
    ],
)
def test_a_profile_is_kept_if_it_fits_the_pixels(suffix, dtype, tmp_path):
    path = str(tmp_path / f'a.{suffix}')
    files.write(path, Picture(color(dtype=dtype), SRGB))
    assert files.read(path).icc == SRGB
    if suffix != 'webp':  # which has no grey
        files.write(path, Picture(color(channels=1, dtype=dtype), SRGB))
        assert files.read(path).icc is None


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['png', 'tiff', 'jpg', '16-bit png', '16-bit tiff'])
def test_a_picture_is_turned_as_exif_says(kind, orientation, tmp_path):
    bits, _, suffix = kind.rpartition(' ')
    path = str(tmp_path / f'a.{suffix}')
    pixels = color(16, 24)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = orientation
    if kind == '16-bit tiff':
        tifffile.imwrite(path, pixels.astype(np.uint16) * 257, photometric='rgb', extratags=[(274, 3, 1, orientation)])
    elif kind == '16-bit png':
        files.write(path, Picture(pixels.astype(np.uint16) * 257))
        with open(path, 'rb') as file:
            content = file.read()
        body = exif.tobytes().removeprefix(b'Exif\0\0')
        with open(path, 'wb') as file:
            file.write(content[:33] + chunk(b'eXIf', body) + content[33:])
    else:
        image.save(path, exif=exif, quality=100, subsampling=0)
    image.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(float) * (257 if bits else 1)
    read = files.read(path).pixels
    assert read.shape == expected.shape
    assert np.abs(read - expected).max() <= (4 if suffix == 'jpg' else 0)


def test_values_of_other_colour_systems(tmp_path):
    pixels = color(16, 16)
    image = Image.fromarray(pixels)
    for name, tolerance in (('a.tif', 1), ('a.jpg', 12)):
        image.convert('CMYK').save(tmp_path / name, quality=100)
        assert np.abs(files.read(str(tmp_path / name)).pixels.astype(int) - pixels).max() <= tolerance
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB'
    )
    lab.save(tmp_path / 'lab.tif')
    assert np.abs(files.read(str(tmp_path / 'lab.tif')).pixels.astype(int) - pixels).max() <= 4
    image.quantize(256).save(tmp_path / 'palette.gif')
    assert np.array_equal(
        files.read(str(tmp_path / 'palette.gif')).pixels, np.asarray(image.quantize(256).convert('RGB'))
    )
    image.convert('1').save(tmp_path / 'bits.png')
    assert np.array_equal(files.read(str(tmp_path / 'bits.png')).pixels[..., 0], np.asarray(image.convert('1')) * 255)


def test_sixteen_bits_are_not_read_as_eight(tmp_path):
    expected = make(tmp_path)
    la16, rgb16 = color(channels=2, dtype=np.uint16), color(dtype=np.uint16)
    key = np.full((6, 9), 65535)
    key[2, 3] = 0
    for name, values in {
        'grey16.png': rgb16[..., :1],
        'grey16_key.png': np.stack([rgb16[..., 0], key], -1),
        'grey16_alpha.png': la16,
        'grey16_alpha.tif': la16,
        'rgb16.png': rgb16,
        'rgb16_lzw.tif': rgb16,
        'map16.ppm': rgb16,
    }.items():
        assert isinstance(expected[name], tuple)
        assert np.array_equal(files.read(str(tmp_path / name)).pixels, values), name


def test_notes_tell_what_was_done(tmp_path):
    make(tmp_path)
    assert files.read(str(tmp_path / 'animated.gif')).notes == ('the first of 2 frames is taken',)
    assert files.read(str(tmp_path / 'cmyk.jpg')).notes == ('CMYK becomes RGB',)
    deep = Picture(color(dtype=np.uint16), SRGB)
    assert files.check_output('a.jpg', deep, (6, 9)) == (np.uint8, ['16 bits become 8: JPEG holds no more'])
    assert len(files.check_output('a.bmp', deep, (6, 9))[1]) == 2
    assert files.check_output('a.png', deep, (6, 9)) == (np.uint16, [])


@pytest.mark.parametrize(
    ('path', 'channels', 'size', 'message'),
    [
        ('a.gif', 3, (6, 9), 'cannot be written as .gif'),
        ('a', 3, (6, 9), 'use .png'),
        ('a.jpg', 4, (6, 9), 'no transparency'),
        ('a.webp', 3, (9, 16384), 'limited to 16383'),
        ('a.jpg', 3, (65501, 9), 'limited to 65500'),
    ],
)
def test_what_a_format_cannot_hold_is_reported_before(path, channels, size, message):
    with pytest.raises(UserError, match=message):
        files.check_output(path, Picture(color(channels=channels)), size)


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = str(tmp_path / 'a.png')
    files.write(path, Picture(color()))
    before = (tmp_path / 'a.png').read_bytes()

    def interrupted(self, target, *args, **options):
        with open(target, 'wb') as file:
            file.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, 'save', interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, Picture(color(30, 30)))
    assert (tmp_path / 'a.png').read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ['a.png']


def test_a_folder_that_is_not_there(tmp_path):
    files.write(str(tmp_path / 'new' / 'folder' / 'a.png'), Picture(color()))
    assert np.array_equal(files.read(str(tmp_path / 'new' / 'folder' / 'a.png')).pixels, color())
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(UserError, match=r'a\.png cannot be written \((File exists|Not a directory)\)'):
        files.write(str(tmp_path / 'file' / 'a.png'), Picture(color()))


def test_rgb_of_any_picture_is_on_white():
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [10, 20, 30, 51]]], np.uint8)
    expected = np.array([[[255, 255, 255], [10, 20, 30], [206, 208, 210]]])
    assert np.array_equal(Picture(pixels).rgb, expected)
    assert np.array_equal(Picture(pixels.astype(np.uint16) * 257).rgb, expected * 257)
    assert np.array_equal(Picture(pixels[..., 2:]).rgb, expected[..., 2:].repeat(3, -1))
    deep = np.random.default_rng(0).integers(0, 65536, (40, 50, 4)).astype(np.uint16)
    deep[0, 0] = (65535, 0, 1, 65535)
    alpha = deep[..., 3:] / 65535
    assert np.abs(Picture(deep).rgb - (deep[..., :3] * alpha + 65535 * (1 - alpha))).max() < 0.501
    assert np.array_equal(Picture(color(channels=1)).rgb, color(channels=1).repeat(3, -1))
