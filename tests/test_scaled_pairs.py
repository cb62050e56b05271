"""Validation pairs: sizes at any scale, given and made LR images, and the messages about wrong ones."""

import os

import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from helpers.pictures import ramp, save
from PIL import Image
from skimage import data

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.pairs import downsample
from clit_basicsr.data.scaled_pair_dataset import ScaledPairDataset


def make(root, scale, **opt):
    defaults = {'name': 'val', 'type': 'ScaledPairDataset', 'phase': 'val', 'dataroot_gt': str(root), 'scale': scale}
    return ScaledPairDataset(defaults | opt)


def to_uint8(image):
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.fixture
def photograph(tmp_path):
    img = data.astronaut()[40:141, 170:277]  # 101 x 107
    (tmp_path / 'HR').mkdir()
    save(img, tmp_path / 'HR' / 'eileen.png')
    return img


@pytest.mark.parametrize(
    ('scale', 'lr_size', 'hr_size'),
    [
        (1, (101, 107), (101, 107)), (2, (50, 53), (100, 106)), (3.4, (29, 31), (99, 105)), (12, (8, 8), (96, 96)),
        ([2, 3.5], (50, 30), (100, 105)), ([1.5, 1.3], (67, 82), (100, 107)), (10.1, (10, 10), (101, 101)),
    ],
)  # fmt: skip
@pytest.mark.parametrize('downsampling', ['pil', 'matlab'])
def test_made_lr_images(tmp_path, photograph, scale, lr_size, hr_size, downsampling):
    dataset = make(tmp_path / 'HR', scale, downsampling=downsampling)
    pair = dataset[0]
    cut = photograph[: hr_size[0], : hr_size[1]]
    assert pair['lq'].dtype == pair['gt'].dtype == torch.float32
    assert np.array_equal(to_uint8(pair['gt']), cut)
    assert np.array_equal(to_uint8(pair['lq']), downsample(cut, lr_size, downsampling))
    assert pair['lq_path'] == pair['gt_path'] == str(tmp_path / 'HR' / 'eileen.png')
    assert dataset.scale == (tuple(scale) if isinstance(scale, list) else (scale, scale))


def test_a_whole_number_of_pixels_is_not_lost_to_rounding(tmp_path):
    save(ramp(33, 66), tmp_path / 'a.png')  # 33 / 1.1 is 29.999999999999996 in floating point
    pair = make(tmp_path, 1.1)[0]
    assert pair['lq'].shape == (3, 30, 60) and pair['gt'].shape == (3, 33, 66)


def test_given_lr_images_are_read_as_they_are(tmp_path, photograph):
    (tmp_path / 'LR').mkdir()
    lr = np.random.default_rng(0).integers(0, 256, (33, 35, 3), dtype=np.uint8)
    save(lr, tmp_path / 'LR' / 'eileenx3.bmp')  # another extension than the HR image
    dataset = make(tmp_path / 'HR', 3, dataroot_lq=str(tmp_path / 'LR'), filename_tmpl='{}x3', protocol='benchmark')
    pair = dataset[0]
    assert np.array_equal(to_uint8(pair['lq']), lr)
    assert np.array_equal(to_uint8(pair['gt']), photograph[:99, :105])
    assert os.path.basename(pair['lq_path']) == 'eileenx3.bmp' and os.path.basename(pair['gt_path']) == 'eileen.png'
    assert dataset.protocol == 'benchmark'


def test_grey_pictures_become_rgb(tmp_path):
    for folder, size in (('HR', (40, 60)), ('LR', (20, 30))):
        (tmp_path / folder).mkdir()
        Image.fromarray(ramp(*size)[..., 1]).save(tmp_path / folder / 'grey.png')
    pair = make(tmp_path / 'HR', 2, dataroot_lq=str(tmp_path / 'LR'))[0]
    assert pair['lq'].shape == (3, 20, 30) and pair['gt'].shape == (3, 40, 60)
    assert pair['gt'][0].equal(pair['gt'][2]) and pair['gt'][0, 0, 59] == np.float32(59) / np.float32(255)


def test_lmdbs_equal_folders_through_the_hosts_loader(tmp_path):
    img = data.coffee()[100:220, 200:290]
    for folder, size in (('HR', (120, 90)), ('LR', (30, 22))):
        (tmp_path / folder).mkdir()
        for i, name in enumerate('ab'):
            save(downsample(np.roll(img, 20 * i, 0), size, 'pil'), tmp_path / folder / f'{name}.png')
        lmdb = str(tmp_path / f'{folder}.lmdb')
        make_lmdb_from_imgs(str(tmp_path / folder), lmdb, ['a.png', 'b.png'], ['a', 'b'], map_size=2**22)

    def pairs(suffix, backend):
        roots = {'dataroot_lq': str(tmp_path / f'LR{suffix}'), 'io_backend': {'type': backend}}
        dataset = make(tmp_path / f'HR{suffix}', [4, 4], **roots)
        return list(build_dataloader(dataset, {'phase': 'val'}))

    for folder, lmdb in zip(pairs('', 'disk'), pairs('.lmdb', 'lmdb'), strict=True):
        assert folder['lq'].shape == (1, 3, 30, 22) and folder['gt'].shape == (1, 3, 120, 88)
        assert torch.equal(folder['lq'], lmdb['lq']) and torch.equal(folder['gt'], lmdb['gt'])
        assert os.path.basename(folder['gt_path'][0]) == lmdb['gt_path'][0] + '.png'


@pytest.mark.parametrize('scale', [0.5, '4', None, [2], [2, 0], [2, 3, 4], [True, 2], float('nan'), float('inf')])
def test_wrong_scales(tmp_path, photograph, scale):
    with pytest.raises(UserError, match='scale: must be a number of at least 1, or two of them'):
        make(tmp_path / 'HR', scale)


def test_wrong_options_and_folders_are_named(tmp_path, photograph):
    hr = tmp_path / 'HR'
    with pytest.raises(UserError, match="protocol: 'set5' is not known; use div2k or benchmark"):
        make(hr, 2, protocol='set5')
    with pytest.raises(UserError, match="downsampling: 'area' is not known"):
        make(hr, 2, downsampling='area')
    with pytest.raises(UserError, match=r'dataroot_lq: folder .*LR does not exist'):
        make(hr, 2, dataroot_lq=str(tmp_path / 'LR'))
    with pytest.raises(
        UserError, match=r"no LR image 'eileenx2' for .*eileen\.png; check dataroot_lq and filename_tmpl"
    ):
        make(hr, 2, dataroot_lq=str(hr), filename_tmpl='{}x2')
    with pytest.raises(UserError, match=r"filename_tmpl: must hold \{\} .* got 'x2'"):
        make(hr, 2, dataroot_lq=str(hr), filename_tmpl='x2')
    with pytest.raises(UserError, match=r'eileen\.png: 101x107 pixels are too few for scale 102x1; remove it'):
        make(hr, [102, 1])[0]


@pytest.mark.parametrize(
    ('lr_size', 'fits'), [((33, 35), True), ((32, 34), True), ((34, 35), False), ((25, 26), False)]
)
def test_lr_images_of_another_scale_are_refused(tmp_path, photograph, lr_size, fits):
    (tmp_path / 'LR').mkdir()
    save(ramp(*lr_size), tmp_path / 'LR' / 'eileen.png')
    dataset = make(tmp_path / 'HR', 3, dataroot_lq=str(tmp_path / 'LR'))
    if fits:
        assert dataset[0]['gt'].shape == (3, 3 * lr_size[0], 3 * lr_size[1])
    else:
        with pytest.raises(
            UserError, match=r'LR/eileen\.png \(\d+x\d+\) is not .*HR/eileen\.png \(101x107\) at scale 3'
        ):
            dataset[0]


def test_unreadable_images_are_named(tmp_path, photograph):
    (tmp_path / 'LR').mkdir()
    (tmp_path / 'LR' / 'eileen.png').write_bytes(b'no image')
    with pytest.raises(UserError, match=r'LR/eileen\.png: cannot be read as an image'):
        make(tmp_path / 'HR', 3, dataroot_lq=str(tmp_path / 'LR'))[0]
