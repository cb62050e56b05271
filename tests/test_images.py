"""Finding and reading images: order, formats, LMDBs, and the messages about damage."""

import multiprocessing
import os
import shutil

import cv2
import numpy as np
import pytest
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from helpers.pictures import ramp, save
from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.data import lmdbs
from clit_basicsr.data.images import ImageSource, decode, smallest_side

LMDB = {'type': 'lmdb'}


@pytest.fixture
def lmdb(tmp_path):
    """A BasicSR LMDB of five noisy pictures, a to e."""
    rng = np.random.default_rng(0)
    for name in 'abcde':
        save(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), tmp_path / f'{name}.png')
    root = str(tmp_path / 'noise.lmdb')
    make_lmdb_from_imgs(str(tmp_path), root, [f'{name}.png' for name in 'abcde'], 'abcde', map_size=2**24)
    return root


def refused(message, root, *args):
    with pytest.raises(UserError) as error:
        ImageSource(str(root), *args)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_folder_is_sorted_and_holds_only_images(tmp_path):
    for name in ('b.png', 'A.PNG', 'c.jpg', '10.bmp', '9.tif', 'd.jpeg'):
        save(ramp(5, 6), tmp_path / name)
    (tmp_path / '.hidden.png').write_bytes(b'not an image')
    (tmp_path / 'Thumbs.db').write_bytes(b'not an image')
    (tmp_path / 'sub.png').mkdir()
    names = ImageSource(str(tmp_path)).names
    assert [os.path.basename(name) for name in names] == ['10.bmp', '9.tif', 'A.PNG', 'b.png', 'c.jpg', 'd.jpeg']


def test_meta_info_file_chooses_and_orders(tmp_path):
    for name in ('b.png', 'a name (1).x4.png', 'c.png'):
        save(ramp(20, 30), tmp_path / name)
    (tmp_path / 'list.txt').write_text('c.png (20,30,3)\n\na name (1).x4.png (20,30,3) 1\n')
    source = ImageSource(str(tmp_path), None, str(tmp_path / 'list.txt'))
    assert source.names == [str(tmp_path / 'c.png'), str(tmp_path / 'a name (1).x4.png')]
    (tmp_path / 'list.txt').write_text('c.png\nb.png\n')
    assert ImageSource(str(tmp_path), None, str(tmp_path / 'list.txt')).names[1] == str(tmp_path / 'b.png')


def test_lmdb_holds_the_pictures_in_its_order(lmdb):
    source = ImageSource(lmdb, LMDB)
    assert source.names == list('abcde')
    for name in source.names:
        expected = np.asarray(Image.open(os.path.join(os.path.dirname(lmdb), f'{name}.png')))
        assert np.array_equal(decode(source.read(name), name), expected)
    chosen = os.path.join(os.path.dirname(lmdb), 'list.txt')
    with open(chosen, 'w') as lines:
        lines.write('d.png\nb.png\n')
    assert ImageSource(lmdb, LMDB, chosen).names == ['d', 'b']


def test_a_forked_process_opens_an_lmdb_of_its_own(lmdb):
    source = ImageSource(lmdb, LMDB)
    expected = source.read('c')
    inherited = lmdbs._environments[os.path.realpath(lmdb)]

    def read(queue):
        queue.put((source.read('c'), lmdbs._environments[os.path.realpath(lmdb)] is inherited))

    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    process = context.Process(target=read, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == (expected, False)
    process.join()
    assert source.read('c') == expected


def test_keys_of_an_lmdb_may_hold_dots_and_spaces(tmp_path):
    save(ramp(20, 30), tmp_path / 'a b.c.png')
    root = str(tmp_path / 'x.lmdb')
    make_lmdb_from_imgs(str(tmp_path), root, ['a b.c.png'], ['a b.c'], map_size=2**20)
    source = ImageSource(root, LMDB)
    assert source.names == ['a b.c']
    assert np.array_equal(decode(source.read('a b.c'), ''), ramp(20, 30))


def test_every_kind_of_image_becomes_rgb(tmp_path):
    img = ramp(20, 30)
    grey = img[..., 1]
    grey_rgb = np.dstack([grey] * 3)
    deep = img.astype(np.uint16) * 257
    for name, image, expected in (
        ('alpha.png', Image.fromarray(np.dstack([img, grey])), img),
        ('grey.png', Image.fromarray(grey), grey_rgb),
        ('greyalpha.png', Image.fromarray(np.dstack([grey, grey])), grey_rgb),
        ('palette.png', Image.fromarray(grey_rgb).quantize(256), grey_rgb),
        ('colour.tif', Image.fromarray(img), img),
    ):
        image.save(tmp_path / name)
        assert np.array_equal(decode((tmp_path / name).read_bytes(), name), expected), name
    for name, pixels, expected in (
        ('deep.png', deep[..., ::-1], img),
        ('deep.tif', deep[..., ::-1], img),
        ('deepgrey.png', deep[..., 1], grey_rgb),
    ):
        assert cv2.imwrite(str(tmp_path / name), pixels)
        content = (tmp_path / name).read_bytes()
        assert np.array_equal(decode(content, name), expected), name
        assert smallest_side(content, name) == 20


def test_bad_folders_are_named(tmp_path, lmdb):
    refused(f'dataroot_gt: folder {tmp_path}/nothing does not exist;', tmp_path / 'nothing')
    refused('dataroot_lq: folder ', tmp_path / 'nothing', None, None, 'dataroot_lq')
    (tmp_path / 'empty').mkdir()
    refused(f'dataroot_gt: {tmp_path}/empty holds no images;', tmp_path / 'empty')
    refused('(it is an LMDB: set io_backend: {type: lmdb})', lmdb)
    refused("io_backend: type 'zip' is not known; use disk or lmdb", tmp_path, {'type': 'zip'})


def test_bad_lists_are_named(tmp_path):
    save(ramp(5, 6), tmp_path / 'a.png')
    names = tmp_path / 'list.txt'
    refused(f'meta_info_file: {names} cannot be read (No such file', tmp_path, None, str(names))
    names.write_text('\n')
    refused(f'meta_info_file: {names} lists no images', tmp_path, None, str(names))
    names.write_text('a.png (5,6,3)\nz.png (3,4,3)\n')
    refused(f'{tmp_path}/z.png: listed in {names}, but the file does not exist', tmp_path, None, str(names))


def test_missing_parts_of_an_lmdb_are_named(lmdb):
    with open(os.path.join(lmdb, 'meta_info.txt'), 'a') as lines:
        lines.write('zebra.png (10,10,3) 1\n')
    source = ImageSource(lmdb, LMDB)
    with pytest.raises(UserError, match=r"noise\.lmdb: image 'zebra' is not in the LMDB; fix meta_info\.txt or make"):
        source.read('zebra')
    os.remove(os.path.join(lmdb, 'meta_info.txt'))
    refused('noise.lmdb has no meta_info.txt, so it is not a BasicSR LMDB; make it again', lmdb, LMDB)
    os.remove(os.path.join(lmdb, 'data.mdb'))
    refused('noise.lmdb has no data.mdb', lmdb, LMDB)


@pytest.mark.parametrize('part', [0.9, 0.5, 0.1, 0.001, 0])
def test_a_cut_off_lmdb_is_named(lmdb, part):
    data = os.path.join(lmdb, 'data.mdb')
    shutil.copy(data, data + '.whole')
    os.truncate(data, int(os.path.getsize(data) * part))
    refused('copy it or make it again', lmdb, LMDB)
    refused('noise.lmdb', lmdb, LMDB)
    os.replace(data + '.whole', data)
    assert len(ImageSource(lmdb, LMDB).read('e')) > 1000


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'bmp', 'tif', 'webp'])
def test_damaged_images_are_named(tmp_path, suffix):
    path = tmp_path / f'bad.{suffix}'
    save(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8), path)
    whole = path.read_bytes()
    assert decode(whole, 'bad').shape == (70, 90, 3) and smallest_side(whole, 'bad') == 70
    for content in (b'', b'no image', whole[: len(whole) // 2], whole[:30]):
        with pytest.raises(UserError, match=r'^bad: cannot be read as an image; replace it or remove it\.$'):
            decode(content, 'bad')
    with pytest.raises(UserError, match='bad: cannot be read as an image'):
        smallest_side(b'no image', 'bad')
