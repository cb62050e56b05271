"""Runs that end in an error: what was there stays there, and what was computed is saved."""

import json

import pytest
import torch
from helpers.training import changed, prepare, run, train

STAGE = {'branches': 1, 'iters': 5, 'lr': 0.01, 'milestones': [], 'scales': [[[1, 4]]]}
SHORT = changed(
    train__stages=[STAGE],
    network_g__num_branches=2,
    network_g__residual_weight=0.5,
    datasets__train__num_worker_per_gpu=0,
    val__val_freq=100,
    val__metrics={'psnr': {'type': 'calculate_psnr_float'}},
    val__save_img=False,
    logger__save_checkpoint_freq=2,
)
BEGIN = 'path:pretrain_network_g='
WEIGHTS = 'experiments/tiny/models/net_g_latest.pth'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A finished training of 5 iterations, and a test of it."""
    folder = prepare(tmp_path_factory.mktemp('failed') / 'run', SHORT)
    train(folder)
    (folder / 'text.pth').write_text('no weights')
    return folder


def everything(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob('*')
        if path.is_file() and not path.name.endswith('.lock')
    }


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ((f'{BEGIN}text.pth',), 'text.pth'),
        ((f'{BEGIN}{WEIGHTS}', 'network_g:dim=8'), 'in the file, network_g has other options: dim: 8 instead of 4'),
        ((f'{BEGIN}{WEIGHTS}', 'path:param_key_g=parms'), "has no 'parms'"),
        (('path:pretrain_network_encoder=text.pth',), 'text.pth'),
    ],
)
def test_weights_that_do_not_fit_leave_a_finished_run_where_it_is(folder, flags, message):
    before = everything(folder)
    result = run(folder, 'train', '-opt', 'options.yml', '--force_yml', *flags)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if 'error' in line]
    assert line.startswith('basicsr: error: ') and message in line
    assert 'Traceback' not in result.stderr
    assert everything(folder) == before


def test_a_finished_run_can_be_repeated_and_extended(folder):
    states = folder / 'experiments/tiny/training_states'
    assert sorted(path.name for path in states.iterdir()) == ['2.state', '4.state', '5.state']
    first = torch.load(folder / WEIGHTS)
    again = run(folder, 'train', '-opt', 'options.yml', '--auto_resume')
    assert again.returncode == 0 and ', iter: 5.' in again.stderr
    for key in ('params', 'params_ema'):
        for name, value in torch.load(folder / WEIGHTS)[key].items():
            assert value.equal(first[key][name])
    longer = run(folder, 'train', '-opt', 'options.yml', '--auto_resume', '--force_yml', 'train:stages:0:iters=7')
    assert longer.returncode == 0, longer.stderr[-2000:]
    assert (states / '7.state').is_file()
    whole = prepare(folder.parent / 'whole', SHORT)
    at_once = run(whole, 'train', '-opt', 'options.yml', '--force_yml', 'train:stages:0:iters=7')
    assert at_once.returncode == 0
    for name, value in torch.load(whole / WEIGHTS)['params'].items():
        assert value.equal(torch.load(folder / WEIGHTS)['params'][name])


def test_a_damaged_image_ends_a_run_with_a_state_of_the_last_iteration(tmp_path):
    folder = prepare(tmp_path / 'run', SHORT)
    for path in sorted((folder / 'images').iterdir()):
        content = path.read_bytes()
    (folder / 'images' / '3.png').write_bytes(content[: len(content) // 2])
    result = run(folder, 'train', '-opt', 'options.yml', '--force_yml', 'logger:save_checkpoint_freq=1000')
    assert result.returncode == 1 and '3.png: cannot be read as an image' in result.stderr
    (state,) = (folder / 'experiments/tiny/training_states').iterdir()
    assert f'A state of iteration {state.stem} is saved' in result.stderr
    assert torch.load(state)['iter'] == int(state.stem) > 0
    (folder / 'images' / '3.png').write_bytes(content)
    resumed = run(folder, 'train', '-opt', 'options.yml', '--auto_resume')
    assert resumed.returncode == 0
    whole = prepare(tmp_path / 'whole', SHORT)
    (whole / 'images' / '3.png').write_bytes(content)
    assert run(whole, 'train', '-opt', 'options.yml').returncode == 0
    for name, value in torch.load(whole / WEIGHTS)['params'].items():
        assert value.equal(torch.load(folder / WEIGHTS)['params'][name])


def test_an_experiment_is_named_wherever_weights_are(folder):
    begun = run(folder, 'train', '-opt', 'options.yml', '--force_yml', 'name=next', f'{BEGIN}tiny')
    assert begun.returncode == 0 and f'Loading CLIT model from {WEIGHTS}' in begun.stderr
    assert WEIGHTS in run(folder, 'info', 'tiny').stdout
    for arguments in (('info', 'tyni'), ('train', '-opt', 'options.yml', '--force_yml', f'{BEGIN}tyni')):
        result = run(folder, *arguments)
        assert result.returncode == 1
        assert "'tyni' is neither a checkpoint, nor a trained experiment" in result.stderr.splitlines()[-1]
        assert 'trained here: next, tiny' in result.stderr.splitlines()[-1]


def test_the_warnings_of_a_test_stand_above_its_table(folder):
    options = {
        'name': 'warned',
        'model_type': 'ImplicitSRModel',
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {'test_x2': SHORT['datasets']['val_x2'], 'test_x6': SHORT['datasets']['val_x6']},
        'network_g': SHORT['network_g'] | {'residual_weight': 0.75},
        'path': {'pretrain_network_g': WEIGHTS},
        'val': {'metrics': {'psnr': {'type': 'calculate_psnr_float'}}},
    }
    (folder / 'test.yml').write_text(json.dumps(options))
    result = run(folder, 'test', '-opt', 'test.yml', '--force_yml', 'datasets:test_x6=~')
    assert result.returncode == 0, result.stderr[-2000:]
    line = f'network_g is not that of {WEIGHTS}, which may change the results: residual_weight: 0.75 instead of 0.5.'
    trained = '1 of 2 branches of the network are trained; the others are not used.'
    summary = (folder / 'results/warned/summary.md').read_text()
    for place in (result.stdout, summary):
        assert place.index(line) < place.index('x2')
        assert trained in place
    assert 'Testing x6.5' not in result.stderr
    before = everything(folder)
    failed = run(folder, 'test', '-opt', 'test.yml', '--force_yml', 'network_g:num_heads=1')
    assert failed.returncode == 1 and 'num_heads: 1 instead of 2' in failed.stderr.splitlines()[-1]
    assert everything(folder) == before
