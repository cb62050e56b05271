"""Figures that would be wrong without a word: NaN, pairs of other images, pictures of one name."""

import copy
import math

import cv2
import lmdb
import numpy as np
import pytest
import torch
import yaml
from helpers.loading import Loading
from helpers.training import changed, prepare, run
from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.ranks import mean_values
from clit_basicsr.data.scaled_pair_dataset import ScaledPairDataset
from clit_basicsr.hosts.basicsr import resume
from clit_basicsr.metrics import calculate_psnr_float, calculate_ssim_float
from clit_basicsr.models.clipped_scales import ClippedScales
from clit_basicsr.models.loss_guard import LossGuard
from clit_basicsr.models.measurement import first_remarks, measure, picture_names


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_pixel_that_is_not_finite_is_no_figure(value):
    truth = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    prediction = truth.clone()
    prediction[0, 1, 12, 13] = value
    assert math.isnan(calculate_psnr_float(prediction, truth, 'benchmark', 2))
    assert math.isnan(calculate_ssim_float(prediction, truth))
    assert calculate_psnr_float(truth, truth, 'benchmark', 2) == math.inf


class Dataset:
    """As much of a validation set as a measurement needs."""

    scale = (2.0, 2.0)
    protocol = 'benchmark'
    opt = {'name': 'set'}


METRICS = {
    'psnr': {'type': 'calculate_psnr_float'},
    'host': {'type': 'calculate_psnr', 'crop_border': 2},
    'ssim': {'type': 'calculate_ssim', 'crop_border': 2},
    'niqe': {'type': 'calculate_niqe', 'crop_border': 2},
}


def test_one_bad_picture_makes_the_mean_nan_and_is_named():
    metrics = {key: METRICS[key] for key in ('psnr', 'host')}
    gt = torch.zeros(1, 3, 20, 20)
    bad = torch.full_like(gt, 0.1)
    bad[0, 0, 0, 0] = math.nan  # in the border that the metrics cut off
    pairs = {'a.png': gt + 0.1, 'b.png': bad, 'c.png': bad}
    figures = [measure(metrics, Dataset(), output, gt, name) for name, output in pairs.items()]
    assert all(math.isnan(value) for value in mean_values([one.values for one in figures]).values())
    assert first_remarks(figures)[0] == 'psnr is NaN, first of b.png: the result is not finite'


def test_metrics_of_pictures_too_small_and_without_gt_say_why():
    gt = torch.rand(1, 3, 14, 40, generator=torch.Generator().manual_seed(0))
    values, remarks = measure(METRICS, Dataset(), gt, gt, 'a.png')
    assert values['psnr'] == math.inf
    assert math.isnan(values['ssim'])
    assert 'calculate_ssim needs 11 pixels a side, the border leaves 10 x 36' in remarks['ssim']
    assert 'calculate_niqe needs 96' in remarks['niqe']
    values, remarks = measure({key: METRICS[key] for key in ('psnr', 'host', 'ssim')}, Dataset(), gt, None, 'a.png')
    assert values == {}
    assert remarks['host'] == 'there are no GT images for host, so it has no figure'
    with pytest.raises(UserError, match=r'small\.png: an image of 4x4 pixels is too small'):
        measure(METRICS, Dataset(), gt[..., :4, :4], gt[..., :4, :4], 'small.png')


def test_a_loss_that_stays_not_finite_ends_the_training(tmp_path):
    (tmp_path / 'net_g_200.pth').touch()
    (tmp_path / 'net_g_1000.pth').touch()
    guard = LossGuard(3, str(tmp_path))
    values = [1.0, math.nan, math.inf, 0.5, -math.inf, math.nan]
    accepted = [guard.accepts(torch.tensor(value), i, ['x.png']) for i, value in enumerate(values, 1)]
    assert accepted == [True, False, False, True, False, False]
    with pytest.raises(
        UserError, match=r'iteration 1,007: .* 3 iterations in a row.* x\.png, y\.png; .*net_g_1000\.pth'
    ):
        guard.accepts(torch.tensor(math.nan), 1007, ['x.png', 'y.png'])
    with pytest.raises(UserError, match='no checkpoint has been saved'):
        LossGuard(1, str(tmp_path / 'none')).check_logged(math.nan, 1, [])


NAN_LOSS = """
import sys
import torch
import yaml
from clit_basicsr.cli import main
from basicsr.losses.basic_loss import L1Loss
from clit_basicsr.models import ImplicitSRModel
calls = []
forward = L1Loss.forward
def broken(self, *arguments, **options):
    calls.append(1)
    factor = float('nan') if len(calls) in {bad} else 1
    return forward(self, *arguments, **options) * factor
L1Loss.forward = broken
if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
"""


def test_a_training_with_nan_losses_stops_and_one_bad_batch_does_not_spoil_it(tmp_path):
    folder = prepare(tmp_path / 'nan', changed(network_g__num_branches=1, train__stages=ONE_STAGE))
    (folder / 'nan.py').write_text(NAN_LOSS.format(bad=[3, 6, 7, 8]))
    result = run(folder, 'train', '-opt', 'options.yml', program=['nan.py'])
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('basicsr: error: iteration 8: the loss is not finite')
    assert 'images/0.png' in last and 'net_g_6.pth' in last
    assert 'Iteration 3: the loss is not finite; the step is skipped.' in result.stderr
    saved = torch.load(folder / 'experiments/tiny/models/net_g_6.pth')
    assert all(value.isfinite().all() for value in saved['params'].values())
    assert 'Traceback' not in result.stderr


ONE_STAGE = [{'branches': 1, 'iters': 12, 'lr': 0.01, 'milestones': [], 'scales': [[[1, 4]]]}]


def write_lmdb(folder, images, suffix='.png'):
    folder.mkdir()
    environment = lmdb.open(str(folder), map_size=10**7)
    with environment.begin(write=True) as transaction:
        for key, image in images.items():
            transaction.put(key.encode(), cv2.imencode('.png', image)[1].tobytes())
    environment.close()
    lines = [f'{key}{suffix} ({image.shape[0]},{image.shape[1]},3) 1\n' for key, image in images.items()]
    (folder / 'meta_info.txt').write_text(''.join(lines))
    return str(folder)


def gray(level, side):
    return np.full((side, side, 3), level, np.uint8)


def pair_set(hr, lr, **options):
    opt = {'name': 'set', 'type': 'ScaledPairDataset', 'phase': 'val', 'scale': 2, 'dataroot_gt': hr, 'dataroot_lq': lr}
    return ScaledPairDataset({**opt, **options})


@pytest.mark.parametrize(('first', 'second'), [('shot.01', 'shot.02'), ('A/1', 'B/1')])
@pytest.mark.parametrize('suffix', ['.png', ''])
def test_keys_of_an_lmdb_are_paired_whole(first, second, suffix, tmp_path):
    hr = write_lmdb(tmp_path / 'HR', {first: gray(10, 8), second: gray(200, 8)}, suffix)
    lr = write_lmdb(tmp_path / 'LR', {second: gray(200, 4), first: gray(10, 4)}, suffix)
    dataset = pair_set(hr, lr, io_backend={'type': 'lmdb'})
    for sample in dataset:
        assert sample['lq'].mean() == sample['gt'].mean()
    names = picture_names(dataset)
    assert len(set(names.values())) == 2
    assert names[second] == second.replace('/', '_')


def write_images(folder, images):
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return str(folder)


def test_files_of_one_name_in_two_formats_are_paired_by_format(tmp_path):
    hr = write_images(tmp_path / 'HR', {'x.png': gray(10, 8), 'x.bmp': gray(200, 8)})
    lr = write_images(tmp_path / 'LR', {'x.png': gray(10, 4), 'x.bmp': gray(200, 4)})
    dataset = pair_set(hr, lr)
    assert [sample['lq'].mean() == sample['gt'].mean() for sample in dataset] == [True, True]
    assert sorted(picture_names(dataset).values()) == ['x.bmp', 'x.png']


def test_pairs_that_may_be_others_are_refused(tmp_path):
    hr = write_images(tmp_path / 'HR', {'x.png': gray(10, 8), 'x.bmp': gray(200, 8)})
    lr = write_images(tmp_path / 'LR', {'x.png': gray(10, 4)})
    with pytest.raises(UserError, match=r'x\.png may be the LR image of .*x\.png, and that of .*x\.bmp too'):
        pair_set(hr, lr)
    two = write_images(tmp_path / 'two', {'x.tif': gray(10, 4), 'x.bmp': gray(10, 4)})
    with pytest.raises(UserError, match=r'may be the LR image of .*x\.png, and .*x\.tif too'):
        pair_set(write_images(tmp_path / 'one', {'x.png': gray(10, 8)}), two)


def test_images_in_sub_folders_are_paired_with_those_of_the_same_folder(tmp_path):
    hr = write_images(tmp_path / 'HR', {'A/1.png': gray(10, 8), 'B/1.png': gray(200, 8)})
    lr = write_images(tmp_path / 'LR', {'A/1x2.png': gray(10, 4), 'B/1x2.png': gray(200, 4)})
    (tmp_path / 'list.txt').write_text('A/1.png (8,8,3) 1\nB/1.png (8,8,3) 1\n')
    dataset = pair_set(hr, lr, meta_info_file=str(tmp_path / 'list.txt'), filename_tmpl='{}x2')
    assert [sample['lq'].mean() == sample['gt'].mean() for sample in dataset] == [True, True]
    assert sorted(picture_names(dataset).values()) == ['A_1x2', 'B_1x2']
    flat = write_images(tmp_path / 'flat', {'1x2.png': gray(10, 4)})
    with pytest.raises(UserError, match="no LR image 'A/1x2'"):
        pair_set(hr, flat, meta_info_file=str(tmp_path / 'list.txt'), filename_tmpl='{}x2')


def test_scales_that_are_reduced_all_the_time_are_reported_once():
    clipped = ClippedScales(batches=4)
    said = [clipped.add([4.0], [used]) for used in (4.0, 2.0, 2.0, 2.0, 2.0)]
    assert said[:3] == ['', '', ''] and said[4] == ''
    assert (
        said[3].startswith('In 3 of 4 batches the scales were reduced')
        and 'x2.50 on average instead of x4.00' in said[3]
    )
    clipped.restart()
    assert [clipped.add([2.0, 2.0], [2.0, 2.0]) for _ in range(9)] == [''] * 9


def test_a_damaged_picture_does_not_cost_the_figures_of_the_other_sets(tmp_path):
    options = {key: value for key, value in changed().items() if key not in ('train', 'logger')}
    images = write_images(tmp_path / 'good', {'a.png': np.arange(60 * 60 * 3, dtype=np.uint8).reshape(60, 60, 3)})
    write_images(tmp_path / 'bad', {'a.png': gray(9, 30)})
    (tmp_path / 'bad' / 'b.png').write_bytes(b'\x89PNG\r\n\x1a\nnothing')
    block = {'type': 'ScaledPairDataset', 'scale': 2}
    options['datasets'] = {
        'test_1': {**block, 'name': 'bad', 'dataroot_gt': 'bad'},
        'test_2': {**block, 'name': 'good', 'dataroot_gt': images},
    }
    options['network_g'] = {'type': 'Bicubic'}
    (tmp_path / 'options.yml').write_text(yaml.safe_dump(options))
    result = run(tmp_path, 'test', '-opt', 'options.yml')
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .startswith('basicsr: error: 1 of the test sets could not be measured (bad)')
    )
    table = (tmp_path / 'results' / 'tiny' / 'summary.md').read_text()
    assert '| good | x2 | 1 |' in table
    assert 'bad was not measured: ' in table and 'b.png' in table


def test_weights_that_are_not_finite_are_neither_tested_nor_saved(tmp_path):
    from clit_basicsr.hosts.basicsr.resume import refuse_nonfinite

    with pytest.raises(UserError, match=r'net_g at iteration 1,200: weight w is not finite'):
        refuse_nonfinite({'params': {'w': torch.tensor([1.0, math.nan])}}, 'net_g', 1200)
    refuse_nonfinite({'params': {'w': torch.tensor([1.0]), 'n': torch.tensor(3)}}, 'net_g', 1200)


def test_a_picture_of_nan_is_not_written(tmp_path, net):
    from clit_basicsr import upscale

    broken = copy.deepcopy(net)
    for parameter in broken.branches.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(UserError, match='the network gives values that are not finite'):
        upscale(gray(9, 12), 2, model=broken)


def test_a_host_model_without_gt_gives_no_figure_of_metrics_that_need_one(tmp_path):
    write_images(tmp_path / 'images', {'a.png': gray(9, 120), 'b.png': gray(90, 120)})
    set_of = {'dataroot_lq': 'images', 'io_backend': {'type': 'disk'}}
    options = {
        'name': 'host',
        'model_type': 'SRModel',
        'num_gpu': 0,
        'scale': 1,
        'datasets': {
            'test_1': {'name': 'with', 'type': 'PairedImageDataset', 'dataroot_gt': 'images', **set_of},
            'test_2': {'name': 'without', 'type': 'SingleImageDataset', **set_of},
        },
        'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 1},
        'path': {'untrained_network_g': True},
        'val': {'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}},
    }
    options['network_g'] = {**options['network_g'], 'type': 'SRVGGNetCompact', 'num_conv': 1}
    options['network_g'].pop('num_block')
    (tmp_path / 'options.yml').write_text(yaml.safe_dump(options))
    result = run(tmp_path, 'test', '-opt', 'options.yml')
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'without: there are no GT images for psnr, so there are no figures.' in result.stderr
    lines = (tmp_path / 'results' / 'host' / 'summary.csv').read_text().splitlines()
    values = {line.split(',')[0]: line.split(',')[6] for line in lines[1:]}
    assert values['without'] == '' and 0 < float(values['with']) < 60


def test_weights_that_are_not_in_a_file_are_named_and_an_empty_one_is_refused(tmp_path):
    net, model = torch.nn.Linear(2, 3), Loading()
    torch.save({'params': {'weight': torch.ones(3, 2)}}, tmp_path / 'half.pth')
    resume.load_network(model, net, str(tmp_path / 'half.pth'), strict=False)
    assert model.opt['warnings'] == [
        f'1 of 2 weights of Linear are not in {tmp_path / "half.pth"} and stay random: bias.'
    ]
    assert net.weight.eq(1).all()
    torch.save({'params': {}}, tmp_path / 'empty.pth')
    with pytest.raises(UserError, match='holds no weight of Linear'):
        resume.load_network(model, net, str(tmp_path / 'empty.pth'), strict=False)
    with pytest.raises(UserError, match=r"has no 'foo', only params; set path:param_key_g: params"):
        resume.load_network(model, net, str(tmp_path / 'half.pth'), param_key='foo')
    torch.save({'iter': 4, 'epoch': 0, 'optimizers': [], 'schedulers': []}, tmp_path / '4.state')
    with pytest.raises(UserError, match=r'it is a training state; give the network'):
        resume.load_network(model, net, str(tmp_path / '4.state'))


def test_saves_that_keep_failing_end_the_training(tmp_path, monkeypatch):
    model, net = Loading(), torch.nn.Linear(2, 3)
    model.opt = {'rank': 0, 'path': {'models': str(tmp_path)}}
    monkeypatch.setattr(resume, 'save_atomically', lambda content, path: 'no space left on device')
    for iteration in (1, 2):
        resume.save_network(model, net, 'net_g', iteration)
    with pytest.raises(UserError, match=r'net_g_3\.pth: no space left on device; make room'):
        resume.save_network(model, net, 'net_g', 3)


def test_sizes_that_differ_under_a_host_model_are_one_line():
    from clit_basicsr.hosts.basicsr.validation import calculate_metric

    pair = {'img': gray(1, 40), 'img2': gray(1, 20)}
    with pytest.raises(UserError, match='a result of 40x40 pixels cannot be compared with a GT image of 20x20'):
        calculate_metric(pair, {'type': 'calculate_psnr', 'crop_border': 2})
