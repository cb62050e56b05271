"""Raw LMDBs: the pixels of the folder to the bit, and what is reported about damage."""

import json
import os
import pickle

import lmdb
import numpy as np
import pytest
import torch
from helpers.pictures import ramp
from PIL import Image
from torch.utils.data import DataLoader

from clit_basicsr.base.errors import UserError
from clit_basicsr.data import lmdbs, raw
from clit_basicsr.data.images import ImageSource
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset
from clit_basicsr.data.raw import RawImage
from clit_basicsr.formats.picture import Picture

LMDB = {'type': 'lmdb'}


def make_raw(root, images, version=lmdbs.VERSION):
    """A raw LMDB of ``images``, key: value."""
    with lmdb.open(str(root), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for key, value in images.items():
            transaction.put(key.encode(), value)
        description = {'format': 'raw', 'version': version, 'images': len(images)}
        transaction.put(lmdbs.DESCRIPTION, json.dumps(description).encode())
    with open(os.path.join(root, 'meta_info.txt'), 'w', encoding='utf-8') as lines:
        lines.writelines(f'{key}.png (1,1,3) 0\n' for key in images)
    return str(root)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [1, 3])
def test_every_rectangle_is_that_of_the_whole_image(dtype, channels):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, (37, 301, channels), dtype=dtype)
    image = RawImage(raw.pack(pixels), 'x')
    expected = Picture(pixels).stored_rgb8
    assert image.shape == expected.shape and np.array_equal(image[:, :], expected)
    for _ in range(50):
        (top, bottom), (left, right) = (np.sort(rng.choice(side + 1, 2, replace=False)) for side in (37, 301))
        assert np.array_equal(image[top:bottom, left:right], expected[top:bottom, left:right])
    image.verify()


def test_no_changed_byte_goes_unnoticed():
    value = raw.pack(ramp(3, 40))
    for at in range(len(value)):
        if raw._HEADER.size + raw._CRC.size <= at < raw.HEADER_BYTES:
            continue  # filled up
        damaged = bytearray(value)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(UserError, match=r"^image 'x': damaged \([^\n]*\); copy the LMDB or make it again\.$"):
            RawImage(bytes(damaged), "image 'x'").verify()
    for length in (0, 10, 64, len(value) - 1):
        with pytest.raises(UserError, match='damaged'):
            RawImage(value[:length], 'x')
    zeros = value[: raw.HEADER_BYTES].ljust(len(value), b'\0')
    with pytest.raises(UserError, match='wrong checksum of its pixels'):
        RawImage(zeros, 'x')[0:1, 0:1]


def test_training_and_sources_read_the_same_bits(tmp_path):
    (tmp_path / 'GT').mkdir()
    rng = np.random.default_rng(1)
    values = {}
    for key in ('a', 'ä b', 'c.d'):
        pixels = rng.integers(0, 256, (90, 110, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'GT' / f'{key}.png')
        values[key] = raw.pack(pixels)
    folder = ImageSource(str(tmp_path / 'GT'))
    root = make_raw(tmp_path / 'x.lmdb', {folder.key(name): values[folder.key(name)] for name in folder.names})
    source = ImageSource(root, LMDB)
    assert source.names == [folder.key(name) for name in folder.names]
    opt = {'lq_size': 16, 'num_queries': 50, 'manual_seed': 3}
    sets = [
        RandomScaleDataset(opt | {'dataroot_gt': str(tmp_path / 'GT')}),
        RandomScaleDataset(opt | {'dataroot_gt': root, 'io_backend': LMDB}),
        RandomScaleDataset(opt | {'dataroot_gt': str(tmp_path / 'GT'), 'cache_bytes': 90 * 110 * 3 * 2}),
    ]
    items = [(b, i) for b in range(5) for i in range(3)]
    first, *others = (list(DataLoader(one, 3, sampler=items)) for one in sets)
    others.append(list(DataLoader(sets[1], 3, sampler=items, num_workers=1, multiprocessing_context='fork')))
    others.append(list(DataLoader(pickle.loads(pickle.dumps(sets[1])), 3, sampler=items)))
    for batches in others:
        for batch, expected in zip(batches, first, strict=True):
            assert all(torch.equal(batch[key], expected[key]) for key in ('lq', 'gt', 'coord', 'cell', 'scales'))
    cache = sets[2].source._cache
    assert len(cache._images) == 2 and cache.size == cache.limit and cache.__reduce__()[1] == (cache.limit,)


def test_damage_is_named_in_training(tmp_path):
    rng = np.random.default_rng(1)
    values = {key: raw.pack(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for key in 'ab'}
    data = os.path.join(make_raw(tmp_path / 'x.lmdb', values), 'data.mdb')
    with open(data, 'rb') as file:
        content = bytearray(file.read())
    content[content.index(values['b']) + len(values['b']) // 2] ^= 4
    with open(data, 'wb') as file:
        file.write(content)
    dataset = RandomScaleDataset({'dataroot_gt': str(tmp_path / 'x.lmdb'), 'io_backend': LMDB, 'lq_size': 20})
    with pytest.raises(UserError, match=r"x\.lmdb: image 'b': damaged \(wrong checksum of its pixels\)"):
        list(DataLoader(dataset, 2, sampler=[(0, 0), (0, 1)], num_workers=1))


def test_other_versions_and_unfinished_ones_are_refused(tmp_path):
    value = raw.pack(ramp(8, 9))
    with pytest.raises(UserError, match=r'an LMDB of format version 2; this package reads version 1: update it'):
        ImageSource(make_raw(tmp_path / 'new.lmdb', {'a': value}, version=2), LMDB)
    root = make_raw(tmp_path / 'half.lmdb', {'a': value, 'b': value})
    lines = (tmp_path / 'half.lmdb' / 'meta_info.txt').read_text()
    (tmp_path / 'half.lmdb' / 'meta_info.txt').write_text(lines[:16])
    with pytest.raises(UserError, match=r'meta_info\.txt lists 1 images, but the LMDB was made with 2; copy it again'):
        ImageSource(root, LMDB)
    (tmp_path / 'list.txt').write_text('b.png\n')
    assert ImageSource(root, LMDB, str(tmp_path / 'list.txt')).names == ['b']
    os.remove(os.path.join(root, 'meta_info.txt'))
    with pytest.raises(UserError, match='is not a BasicSR LMDB; make it again'):
        ImageSource(root, LMDB)
    (tmp_path / 'half.lmdb' / lmdbs.PLAN).touch()
    with pytest.raises(UserError, match='is unfinished; run the basicsr prepare that makes it again'):
        ImageSource(root, LMDB)
