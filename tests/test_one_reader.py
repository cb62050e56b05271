"""Data sets and commands read the same picture from every format and layout; lists and folders are reported."""

import io
import logging
import os
import shutil
import struct

import cv2
import lmdb as lmdb_library
import numpy as np
import pytest
import tifffile
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from helpers.awkward_pictures import color
from helpers.pictures import ramp, save
from PIL import Image, ImageCms

from clit_basicsr.base.errors import UserError
from clit_basicsr.cli import upscale
from clit_basicsr.data import lmdbs
from clit_basicsr.data.images import ImageSource, decode, smallest_side
from clit_basicsr.pictures import files

NOISE = np.random.default_rng(0).integers(0, 65536, (70, 83, 4)).astype(np.uint16)
PIXELS = color(40, 56)
LMDB = {'type': 'lmdb'}


def both(path):
    """What data sets read, after a check that the commands read the same colours."""
    content = path.read_bytes()
    seen = decode(content, path.name)
    picture = files.read(str(path))
    colors = picture.pixels[..., :-1] if picture.has_alpha else picture.pixels
    assert np.array_equal(seen, np.broadcast_to(files.eight_bit(colors), seen.shape)), path.name
    assert smallest_side(content, path.name) == min(seen.shape[:2])
    return seen


@pytest.mark.parametrize('channels', [2, 3, 4])
@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('tile', [None, (32, 16)], ids=['strips', 'tiles'])
@pytest.mark.parametrize(('compression', 'predictor'), [(None, False), ('zlib', False), ('zlib', True)])
def test_separate_planes_of_16_bits_are_the_interleaved_picture(
    channels, order, tile, compression, predictor, tmp_path
):
    pixels = NOISE[..., :channels]
    options = {'byteorder': order, 'tile': tile, 'compression': compression, 'predictor': predictor, 'metadata': None}
    options |= {'photometric': 'rgb' if channels > 2 else 'minisblack'}
    options |= {'extrasamples': None if channels == 3 else ['unassalpha'], 'rowsperstrip': None if tile else 16}
    for name, values, planes in (('c', pixels, 'contig'), ('s', np.moveaxis(pixels, -1, 0), 'separate')):
        path = tmp_path / f'{name}.tif'
        tifffile.imwrite(path, values, planarconfig=planes, **options)
        assert np.array_equal(files.read(str(path)).pixels, pixels), name
        both(path)


@pytest.mark.parametrize('compression', ['zstd', 'tiff_lzw', 'lzma', 'packbits', 'tiff_adobe_deflate'])
def test_every_compression_of_libtiff(compression, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / 'a.tif', compression=compression)
    assert np.array_equal(both(tmp_path / 'a.tif'), PIXELS)
    deep = NOISE[..., 0]
    Image.fromarray(deep).save(tmp_path / 'deep.tif', compression=compression)
    assert np.array_equal(files.read(str(tmp_path / 'deep.tif')).pixels[..., 0], deep)
    both(tmp_path / 'deep.tif')


def test_alpha_does_not_darken_in_any_format(tmp_path):
    alpha = np.linspace(0, 255, PIXELS.size // 3).reshape(PIXELS.shape[:2]).astype(np.uint8)
    image = Image.fromarray(np.dstack([PIXELS, alpha]))
    image.save(tmp_path / 'a.png')
    image.save(tmp_path / 'a.tif')
    image.save(tmp_path / 'lzw.tif', compression='tiff_lzw')
    image.save(tmp_path / 'a.webp', lossless=True, exact=True)
    image.save(tmp_path / 'a.bmp')
    deep = np.dstack([PIXELS, alpha]).astype(np.uint16) * 257
    files.write(str(tmp_path / 'deep.png'), files.Picture(deep))
    files.write(str(tmp_path / 'deep.tif'), files.Picture(deep))
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(both(path), PIXELS), path.name
    grey = Image.fromarray(np.dstack([PIXELS[..., 0], alpha]))
    for name in ('grey.png', 'grey.tif'):
        grey.save(tmp_path / name)
        assert np.array_equal(both(tmp_path / name), np.dstack([PIXELS[..., 0]] * 3)), name


def test_colours_that_were_multiplied_by_alpha_are_divided(tmp_path):
    deep = PIXELS.astype(np.uint16) * 257
    alpha = np.full((*deep.shape[:2], 1), 13107, np.uint16)  # a fifth
    mixed = np.round(deep * 0.2).astype(np.uint16)
    tifffile.imwrite(tmp_path / 'a.tif', np.dstack([mixed, alpha]), photometric='rgb', extrasamples=['assocalpha'])
    pixels = files.read(str(tmp_path / 'a.tif')).pixels
    assert np.abs(pixels[..., :3].astype(int) - deep).max() <= 3  # half a step of a fifth
    both(tmp_path / 'a.tif')


def test_other_colour_systems_agree(tmp_path):
    image = Image.fromarray(PIXELS)
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB'
    )
    for name, converted, tolerance in (
        ('lab.tif', lab, 4),
        ('cmyk.tif', image.convert('CMYK'), 1),
        ('cmyk.jpg', image.convert('CMYK'), 12),
        ('ycbcr.tif', image.convert('YCbCr'), 3),
        ('palette.tif', image.quantize(256), 12),
        ('palette.png', image.quantize(256), 12),
    ):
        converted.save(tmp_path / name)
        assert np.abs(both(tmp_path / name).astype(int) - PIXELS).max() <= tolerance, name
    bits = image.convert('1')
    for name in ('bits.png', 'bits.tif', 'bits.bmp'):
        bits.save(tmp_path / name)
        assert np.array_equal(both(tmp_path / name)[..., 0], np.asarray(bits) * np.uint8(255)), name


def test_16_bits_are_rounded_in_every_format(tmp_path):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(deep / 257).astype(np.uint8)
    for name in ('grey.png', 'grey.tif', 'rgb.png', 'rgb.tif'):
        assert cv2.imwrite(str(tmp_path / name), deep if 'grey' in name else np.dstack([deep] * 3))
    (tmp_path / 'map.ppm').write_bytes(b'P6 256 256 65535\n' + np.dstack([deep] * 3).astype('>u2').tobytes())
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(both(path), np.dstack([expected] * 3)), path.name


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_format_is_turned_alike(orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    expected = files.from_pillow(Image.fromarray(PIXELS)).pixels
    for name, options in (('a.png', {}), ('a.tif', {}), ('a.webp', {'lossless': True}), ('a.jpg', {'quality': 100})):
        Image.fromarray(PIXELS).save(tmp_path / name, exif=exif, **options)
        seen = both(tmp_path / name)
        content = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        host = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(seen.astype(int) - host).max() == 0, name
        assert seen.shape == (expected.shape if orientation < 5 else (56, 40, 3))


def test_what_a_folder_holds_besides_is_said_once(tmp_path, caplog, capsys):
    save(ramp(5, 6), tmp_path / 'a.png')
    for number in range(12):
        (tmp_path / f'{number}.avif').write_bytes(b'')
    for name in ('x', 'y'):
        (tmp_path / name).mkdir()
    (tmp_path / 'notes.txt').write_text('')
    (tmp_path / 'gone.png').symlink_to(tmp_path / 'nowhere')
    (tmp_path / '.hidden').write_text('')
    with caplog.at_level(logging.WARNING, 'basicsr'):
        logging.getLogger('basicsr').addHandler(caplog.handler)
        ImageSource(str(tmp_path))
        ImageSource(str(tmp_path))
        logging.getLogger('basicsr').removeHandler(caplog.handler)
    lines = {record.getMessage() for record in caplog.records}
    assert lines == {
        f'dataroot_gt: {tmp_path}: 1 images; skipped: 12 pictures in formats not taken here (.avif), '
        '1 file that is not a picture (.txt), 1 broken link, 2 sub-folders.'
    }
    folder = tmp_path / 'y'
    save(ramp(5, 6), folder / 'a.png')
    for name in ('b.txt', 'c.txt', 'd.md'):
        (folder / name).write_text('')
    (folder / 'gone').symlink_to(folder / 'nowhere')
    (folder / 'sub').mkdir()
    assert upscale.pictures_in(str(folder), False, 'out') == [(str(folder / 'a.png'), '')]
    assert capsys.readouterr().out == (
        f'{folder}: skipped: 3 files that are not pictures (.md, .txt), 1 broken link, 1 sub-folder\n'
    )


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le', 'latin-1'])
def test_a_list_in_another_encoding_is_named(encoding, tmp_path):
    save(ramp(5, 6), tmp_path / 'ä.png')
    path = tmp_path / 'list.txt'
    path.write_text('ä.png (5,6,3)\n', encoding=encoding)
    with pytest.raises(UserError, match=rf'^meta_info_file: {path} is not text in UTF-8[^\n]*$'):
        ImageSource(str(tmp_path), None, str(path))
    path.write_text('ä.png (5,6,3)\n', encoding='utf-8-sig')
    assert ImageSource(str(tmp_path), None, str(path)).names == [str(tmp_path / 'ä.png')]


@pytest.fixture
def lmdb(tmp_path):
    save(ramp(60, 80), tmp_path / 'a.png')
    root = str(tmp_path / 'a.lmdb')
    make_lmdb_from_imgs(str(tmp_path), root, ['a.png'], ['a'], map_size=2**22)
    return root


def test_lmdbs_that_cannot_be_read_give_a_line(lmdb, monkeypatch):
    copy = f'{lmdb}.copy'
    shutil.copytree(lmdb, copy)
    os.truncate(os.path.join(copy, 'data.mdb'), 0)
    with pytest.raises(UserError, match=r'data\.mdb is empty \(0 bytes\)'):
        ImageSource(copy, LMDB)
    with open(os.path.join(lmdb, 'meta_info.txt'), 'a', encoding='utf-8') as lines:
        lines.write('ä.png (5,6,3) 1\n')
    source = ImageSource(lmdb, LMDB)
    assert source.names == ['a', 'ä']
    with pytest.raises(UserError, match=r"a\.lmdb: image 'ä': a key of an LMDB is ASCII text"):
        source.read('ä')

    class Corrupted:
        def begin(self, *args, **kwargs):
            raise lmdb_library.CorruptedError('MDB_CORRUPTED: page not found')

    with monkeypatch.context() as patch:
        patch.setattr(lmdbs, 'environment', lambda root: Corrupted())
        with pytest.raises(UserError, match=r"^\S*a\.lmdb: 'a' cannot be read \(MDB_CORRUPTED[^\n]*\.$"):
            source.read('a')
    lmdbs.close(lmdb)

    def denied(path, *args, **kwargs):
        raise PermissionError(13, 'Permission denied', path)

    monkeypatch.setattr('builtins.open', denied)
    with pytest.raises(UserError, match=r'a\.lmdb: data\.mdb cannot be read \(Permission denied\)\.$'):
        ImageSource(lmdb, LMDB)


def test_an_lmdb_in_a_folder_that_cannot_be_written_to_is_read(lmdb):
    os.remove(os.path.join(lmdb, 'lock.mdb'))
    os.chmod(lmdb, 0o500)
    assert np.array_equal(decode(ImageSource(lmdb, LMDB).read('a'), 'a'), ramp(60, 80))
    os.chmod(lmdb, 0o700)


def test_a_profile_that_libpng_dislikes_prints_nothing(capfd):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, 'PNG', icc_profile=struct.pack('>I', 132) + bytes(128))
    assert np.array_equal(decode(stream.getvalue(), 'a'), PIXELS)
    assert capfd.readouterr().err == ''
