"""The index of an LMDB: what a damaged one could do is found before it is used."""

import random
import re

import cv2
import lmdb
import numpy as np
import pytest
from helpers.pictures import save
from skimage import data

from clit_basicsr import cli
from clit_basicsr.base.errors import UserError
from clit_basicsr.data import raw
from clit_basicsr.data.images import ImageSource
from clit_basicsr.data.lmdb_tree import check_tree
from clit_basicsr.data.raw import RawImage

PAGE = 4096


@pytest.fixture
def tree(tmp_path):
    """An LMDB of two levels with values inside of leaves and in pages of their own, and gaps from deleted keys."""
    rng = np.random.default_rng(0)
    sides = [1 + 20 * (i % 2) for i in range(60)]
    values = {
        b'image_%02d' % i: raw.pack(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        for i, side in enumerate(sides)
    }
    with lmdb.open(str(tmp_path / 'x'), map_size=2**24) as opened:
        for start in (0, 30):
            with opened.begin(write=True) as transaction:
                for key in list(values)[start : start + 30]:
                    transaction.put(key, values[key])
        with opened.begin(write=True) as transaction:
            for key in list(values)[20:30:2]:
                transaction.delete(key)
                del values[key]
    return tmp_path / 'x', values


def test_a_flipped_bit_in_the_index_is_found_or_does_no_harm(tree):
    folder, values = tree
    file = folder / 'data.mdb'
    content = bytearray(file.read_bytes())
    check_tree(str(file), PAGE)
    flags = {page: int.from_bytes(content[page * PAGE + 10 : page * PAGE + 12], 'little') for page in range(300)}
    index = [page for page, kind in flags.items() if kind in (1, 2, 8) and page * PAGE < len(content)]
    rng, found, kept = random.Random(0), 0, 0
    for _ in range(400):
        page = rng.choice(index)
        lower, upper = (int.from_bytes(content[page * PAGE + at :][:2], 'little') for at in (12, 14))
        ranges = [range(16), range(16, 160)] if flags[page] == 8 else [range(lower), range(upper, PAGE)]
        at = page * PAGE + rng.choice(rng.choice(ranges))
        bit = 1 << rng.randrange(8)
        content[at] ^= bit
        file.write_bytes(content)
        content[at] ^= bit
        try:
            opened = lmdb.open(str(folder), readonly=True, lock=False)
        except lmdb.Error:
            continue
        try:
            check_tree(str(file), PAGE)
            with opened, opened.begin() as transaction:
                for key, value in values.items():
                    there = transaction.get(key)
                    if there is None:
                        found += 1
                        continue
                    if there == value:
                        kept += 1
                        continue
                    try:
                        RawImage(there, 'x').verify()
                    except UserError:
                        found += 1
                    else:  # a byte that fills up
                        assert np.array_equal(RawImage(there, 'x')[:, :], RawImage(value, 'x')[:, :])
        except ValueError:
            found += 1
        finally:
            opened.close()
    assert found > 100 and kept > 5000


def test_an_index_that_is_damaged_is_one_line(tmp_path, capsys):
    (tmp_path / 'GT').mkdir()
    for name in 'abc':
        save(data.chelsea()[:50, :60], tmp_path / 'GT' / f'{name}.png')
    root = tmp_path / 'x.lmdb'
    assert cli.main(['prepare', str(tmp_path / 'GT'), '-o', str(root), '--processes', '1']) == 0
    content = bytearray((root / 'data.mdb').read_bytes())
    # flags: the value lies elsewhere; length of the key; the key; then the number of a page
    nodes = {key: [m.end() for m in re.finditer(b'\1\0\1\0' + key, content)] for key in (b'a', b'b')}
    for a, b in zip(*nodes.values(), strict=True):  # in the leaf and in the one that it replaced
        content[a : a + 8] = content[b : b + 8]  # 'a' would be read as the image 'b'
    (root / 'data.mdb').write_bytes(content)
    with pytest.raises(UserError, match=r'x\.lmdb: the index in data\.mdb is damaged \(page \d+ belongs to two keys\)'):
        ImageSource(str(root), {'type': 'lmdb'})
    capsys.readouterr()
    assert cli.main(['prepare', '--verify', str(root)]) == 1
    assert 'the index in data.mdb is damaged' in capsys.readouterr().err


def test_a_changed_pixel_of_a_jpeg_in_an_lmdb_is_named(tmp_path):
    (tmp_path / 'GT').mkdir()
    cat = data.chelsea()[:90, :120]
    for name in 'ab':
        assert cv2.imwrite(str(tmp_path / 'GT' / f'{name}.jpg'), cat)
    root = tmp_path / 'x.lmdb'
    assert cli.main(['prepare', str(tmp_path / 'GT'), '-o', str(root), '--format', 'lmdb', '--processes', '1']) == 0
    file = (tmp_path / 'GT' / 'b.jpg').read_bytes()
    content = bytearray((root / 'data.mdb').read_bytes())
    content[content.rindex(file) + len(file) // 2] ^= 1
    (root / 'data.mdb').write_bytes(content)
    source = ImageSource(str(root), {'type': 'lmdb'})
    wrong = []
    for name in source.names:
        try:
            source.decode(name)
        except UserError as error:
            wrong.append(str(error))
    assert len(wrong) == 1 and "x.lmdb: image '" in wrong[0] and 'damaged (wrong checksum)' in wrong[0]
