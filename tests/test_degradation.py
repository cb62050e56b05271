"""Noise and JPEG compression of LR patches."""

import cv2
import numpy as np
import pytest
import torch
from skimage import data
from torch.utils.data import DataLoader

from clit_basicsr.data.degradation import Degradation, compress
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset

BOTH = {'noise_range': [2, 10], 'noise_prob': 0.5, 'jpeg_range': [30, 90], 'jpeg_prob': 0.5}
PICTURE = data.astronaut()[100:231, 90:215]  # 131 x 125, neither a multiple of JPEG's blocks


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('photographs')
    for name in ('astronaut', 'coffee', 'chelsea'):
        cv2.imwrite(str(root / f'{name}.png'), getattr(data, name)()[:220, :240, ::-1])
    return root


def batches(folder, degradation, workers=0, start='fork'):
    opt = {'dataroot_gt': str(folder), 'lq_size': 24, 'num_queries': 9, 'manual_seed': 4, 'degradation': degradation}
    items = [(b, i) for b in range(3) for i in range(8)]
    context = start if workers else None
    dataset = RandomScaleDataset(opt)
    return list(DataLoader(dataset, 8, sampler=items, num_workers=workers, multiprocessing_context=context))


def test_noise_has_its_range_and_no_bias():
    flat = np.full((200, 200, 3), 128, np.uint8)
    for seed in range(5):
        noise = Degradation({'noise_range': [6, 9]})(flat, np.random.default_rng(seed)).astype(float) - 128
        assert 5.9 < noise.std() < 9.1 and abs(noise.mean()) < 0.15
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 2].ravel())[0, 1]) < 0.03
    dark = Degradation({'noise_range': [30, 30]})(np.zeros((9, 8, 3), np.uint8), np.random.default_rng(0))
    assert 0 < dark.max() < 150  # clipped at 0, not wrapped around


def test_jpeg_is_that_of_opencv_on_an_rgb_picture():
    for quality in (20, 75):
        _, file = cv2.imencode('.jpg', PICTURE[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert np.array_equal(compress(PICTURE, quality), cv2.imdecode(file, cv2.IMREAD_COLOR)[:, :, ::-1])
    errors = [np.square(compress(PICTURE, q).astype(float) - PICTURE).mean() for q in (10, 40, 95)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_qualities_are_drawn_from_both_ends():
    degrade = Degradation({'jpeg_range': [10, 12]})
    drawn = [degrade(PICTURE, np.random.default_rng(seed)) for seed in range(20)]
    for quality in (10, 11, 12):
        assert any(np.array_equal(one, compress(PICTURE, quality)) for one in drawn)


def test_shares_of_the_patches():
    degrade, rng = Degradation({**BOTH, 'noise_prob': 0.25, 'jpeg_prob': 0}), np.random.default_rng(0)
    patch = PICTURE[:8, :8]
    changed = sum(not np.array_equal(degrade(patch, rng), patch) for _ in range(400))
    assert 70 < changed < 130


def test_only_the_lr_patches_change(folder):
    for plain, degraded in zip(batches(folder, None), batches(folder, BOTH), strict=True):
        for key in ('gt', 'coord', 'cell', 'scales'):
            assert torch.equal(plain[key], degraded[key])
        same = [torch.equal(*pair) for pair in zip(plain['lq'], degraded['lq'], strict=True)]
        assert 0 < sum(same) < len(same)  # about a quarter gets neither
        assert 0 < (plain['lq'] - degraded['lq']).abs().mean() < 0.05


@pytest.mark.parametrize(('workers', 'start'), [(2, 'fork'), (1, 'spawn')])
def test_batches_do_not_depend_on_the_workers(workers, start, folder):
    np.random.seed(0)
    expected = batches(folder, BOTH)
    np.random.seed(1)
    for one, other in zip(expected, batches(folder, BOTH, workers, start), strict=True):
        assert torch.equal(one['lq'], other['lq']) and torch.equal(one['gt'], other['gt'])
