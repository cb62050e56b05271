"""Training under MMagic is training under BasicSR: every loss, rate, weight and figure, to the bit."""

import csv
import json
import math
import os
import re
import shutil

import clit_basicsr  # noqa: F401  isort: skip
import basicsr.train  # noqa: F401  all that the ranks need is imported before they fork
import numpy as np
import pytest
import torch
from helpers.mmagic import as_test, config, liif_of_mmagic, logged, merged, needs_mmagic, write
from helpers.mmagic_training import ITERS, STAGES, command, options
from helpers.ranks import fork, in_new_process
from helpers.training import changed, prepare
from PIL import Image

from clit_basicsr import cli
from clit_basicsr.archs.encoders import build_encoder, load_pretrained
from clit_basicsr.base.checkpoints import read_checkpoint

pytestmark = needs_mmagic
RESUMED = (30, 40)  # in the middle of a stage, and at the beginning of one


def scenarios(folder):
    """Everything that the tests look at, in a process of its own."""
    from clit_basicsr.hosts.mmagic import plugin

    torch.set_num_threads(1)
    plugin.register_all()
    import mmengine.runner  # noqa: F401

    codes = {}
    for count, launcher in ((1, 'none'), (2, 'pytorch')):
        for host in ('basicsr', 'mmagic'):
            opt = options(datasets__train__num_worker_per_gpu=2 - count)  # with two ranks, BasicSR would spawn them
            here = prepare(folder / f'{host}-{count}', opt)
            write(here, config(opt))
            arguments = {
                'basicsr': ('train', '-opt', 'options.yml', '--launcher', launcher),
                'mmagic': ('mmtrain', 'config.json', '--launcher', launcher),
            }[host]
            codes[f'{host} {count}'] = fork(command(here, *arguments), count, here / 'log', timeout=300)
    for iteration in RESUMED:
        here = folder / f'resumed-{iteration}'
        shutil.copytree(folder / 'mmagic-1', here)
        (here / 'work' / 'last_checkpoint').write_text(f'work/iter_{iteration}.pth')
        for file in here.glob('work/iter_*.pth'):
            if int(file.stem.split('_')[1]) > iteration:
                file.unlink()
        codes[f'resumed {iteration}'] = fork(
            command(here, 'mmtrain', 'config.json', '--resume'), 1, here / 'log', timeout=300
        )
    exchange(folder, codes)
    here = prepare(folder / 'liif')
    arguments = ('mmtrain', *liif_of_mmagic(), '--work-dir', 'work')
    codes['LIIF of MMagic'] = fork(command(here, *arguments), 1, here / 'log', timeout=300)
    for name, bad in (('one', {5}), ('three', {5, 6, 7})):
        here = prepare(folder / f'nan-{name}', options())
        write(here, config(second_stage(checkpoint(folder, 'mmagic', ITERS))) | SHORT)
        codes[f'nan {name}'] = fork(command_with_nan(here, bad), 1, here / 'log', timeout=300)
    here = prepare(folder / 'refused')
    codes['refused'] = fork(refused(here), 1, here / 'log', timeout=300)
    here = prepare(folder / 'otherwise')
    codes['otherwise'] = fork(resumed_otherwise(folder, here), 1, here / 'log', timeout=300)
    (folder / 'codes.json').write_text(json.dumps(codes))


def exchange(folder, codes):
    """The last checkpoint of each host in either's test and in `upscale`; the first stage's, before the second."""
    for origin in ('basicsr', 'mmagic'):
        here = folder / f'of-{origin}'
        last, first = checkpoint(folder, origin, 3 * ITERS), checkpoint(folder, origin, ITERS)
        prepare(here, basicsr_test(last))
        write(here, as_test(config(options())))
        for name, arguments in {
            'test': ('test', '-opt', 'options.yml'),
            'mmtest': ('mmtest', 'config.json', last, '--out', 'mmagic.json'),
            'upscale': ('upscale', 'images/1.png', '-s', '2.5x3', '-o', 'large.png', '--model', last),
        }.items():
            codes[f'{name} {origin}'] = fork(command(here, *arguments), 1, here / f'log-{name}', timeout=300)
        for host in ('basicsr', 'mmagic'):
            here = folder / f'{host}-after-{origin}'
            opt = second_stage(first)
            prepare(here, opt)
            write(here, {**config(opt), 'load_from': first})
            arguments = {'basicsr': ('train', '-opt', 'options.yml'), 'mmagic': ('mmtrain', 'config.json')}[host]
            codes[f'{host} after {origin}'] = fork(command(here, *arguments), 1, here / 'log', timeout=300)


SHORT = {
    'train_cfg': {
        'type': 'CumulativeTrainLoop',
        'stages': [{'branches': 1, 'iters': 9, 'lr': 0.01, 'milestones': [], 'scales': [[[1, 4]]]}],
        'val_interval': 100,
    },
    **dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg')),
}


def command_with_nan(folder, bad):
    """A training in which the losses of these iterations are NaN."""

    def work(rank):
        from clit_basicsr.hosts.mmagic.implicit_sr import ImplicitSR

        forward, losses = ImplicitSR.forward_train, []

        def forward_train(self, *args):
            losses.append(forward(self, *args)['loss'])
            return {'loss': losses[-1] * math.nan if len(losses) in bad else losses[-1]}

        ImplicitSR.forward_train = forward_train
        return command(folder, 'mmtrain', 'config.json')(rank)

    return work


REFUSED = {
    'param_scheduler': ({'param_scheduler': {'type': 'MultiStepLR', 'milestones': [1]}}, 'leave it out'),
    'sampler': ({'train_dataloader': {'sampler': {'type': 'InfiniteSampler'}}}, 'orders the images itself'),
    'load_from': ({'train_cfg': {'start_stage': 2}}, 'start_stage above 1 needs load_from'),
    'branches': ({'model': {'generator': {'num_branches': 2}}}, '3 branches, but model:generator has 2'),
    'accumulative': ({'optim_wrapper': {'accumulative_counts': 2}}, 'accumulative_counts must be 1'),
    'dataset': ({'train_dataloader': {'dataset': {'lq_size': 9999}}}, 'is below the LR patch'),
    'variation': ({'model': {'train_cfg': {'variation_weight': 1}}}, 'model:train_cfg:variation_weight: CLIT has no'),
    'scales': (
        {'train_dataloader': {'dataset': {'scale_per_image': True, 'num_queries': 4}}},
        'the branches of CLIT need one scale for a whole batch',
    ),
}


def refused(folder):
    """What the loop refuses; the errors go to stderr one after the other."""

    def work(rank):
        os.chdir(folder)
        codes = []
        for name, (changes, _) in REFUSED.items():
            write(folder, merged(config(changed(datasets__train__num_worker_per_gpu=0)), {**changes, 'work_dir': name}))
            print(f'== {name}', flush=True)
            codes.append(cli.main(('mmtrain', 'config.json')))
        return 0 if set(codes) == {1} else 3

    return work


# Changes of a training that is resumed from iteration 50, its 10th of stage 3, and what is said of them.
OTHERWISE = {
    'batch': ({'train_dataloader': {'batch_size': 3}}, 'train_dataloader:batch_size: 3, but 2 when the checkpoint was'),
    'network': (
        {'model': {'generator': {'encoder': {'res_scale': 0.5}}}},
        'model:generator:encoder:res_scale: 0.5, but left',
    ),
    'finished': ({'train_cfg': {'stages': [dict(STAGES[0], lr=0.1), *STAGES[1:]]}}, 'train_cfg:stages:0:lr: 0.1, but'),
    'foreign': ({'load_from': 'ours.pth'}, 'is not one that MMagic saved in a training'),
    'optimizer': ({'load_from': 'weights.pth'}, 'has no state of the optimizer'),
    'betas': (
        {
            'optim_wrapper': {'optimizer': {'betas': [0.5, 0.6]}},
            'model': {'pixel_loss': {'type': 'L1Loss', 'loss_weight': 0.5}},
            'custom_hooks': [{'type': 'EMAHook', 'ema_type': 'BasicSREMA', 'decay': 0.5}],
        },
        'Changed since the checkpoint was saved: optim_wrapper:optimizer:0:betas: [0.5, 0.6], before [0.9, 0.99].',
    ),
}


def resumed_otherwise(folder, here):
    """Resumes with other options; all but the last are errors."""

    def work(rank):
        os.chdir(here)
        file = checkpoint(folder, 'mmagic', 50)
        shutil.copy(checkpoint(folder, 'basicsr', 50), 'ours.pth')
        content = torch.load(file, weights_only=True)
        torch.save({key: value for key, value in content.items() if key != 'optimizer'}, 'weights.pth')
        codes = []
        for name, (changes, _) in OTHERWISE.items():
            resumed = {**config(options(datasets__train__num_worker_per_gpu=0)), 'resume': True, 'load_from': file}
            write(here, merged(resumed, {**changes, 'work_dir': name}))
            print(f'== {name}', flush=True)
            codes.append(cli.main(('mmtrain', 'config.json')))
        return 0 if codes == [1] * (len(OTHERWISE) - 1) + [0] else 3

    return work


def checkpoint(folder, host, iteration):
    names = {'basicsr': 'basicsr-1/experiments/tiny/models/net_g_{}.pth', 'mmagic': 'mmagic-1/work/iter_{}.pth'}
    return str(folder / names[host].format(iteration))


def basicsr_test(file):
    opt = options()
    opt['model_type'] = 'ImplicitSRModel'
    opt['datasets'] = {f'test_{name}': opt['datasets'][f'val_{name}'] for name in ('x2', 'x6')}
    opt['path'] = {'pretrain_network_g': file, 'param_key_g': 'params_ema'}
    return {key: value for key, value in opt.items() if key not in ('train', 'logger')}


def second_stage(file):
    stages = [STAGES[0], dict(STAGES[1], iters=3, milestones=[], init='zero')]
    opt = options(path={'pretrain_network_g': file, 'param_key_g': 'params_ema'}, train__ema_decay=0)
    opt['train'].update(stages=stages, start_stage=2)
    return opt


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp('mmagic')
    in_new_process('test_mmagic_training', found, timeout=1200)
    codes = json.loads((found / 'codes.json').read_text())
    assert codes.pop('nan three') == [1]
    assert {code for rank_codes in codes.values() for code in rank_codes} == {0}, codes
    return found


def steps(folder, rank=0):
    """Losses and learning rates of a run."""
    return json.loads((folder / f'steps-{rank}.json').read_text())


def figures_of_basicsr(folder, iteration):
    with open(folder / 'validation.csv', newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['iteration'] == str(iteration)]
    return {row['dataset']: row['value'] for row in rows}


def figures_of_mmagic(line):
    return {key.removesuffix('/PSNR'): f'{value:.6f}' for key, value in line.items() if key.endswith('/PSNR')}


@pytest.mark.parametrize('ranks', [1, 2])
def test_losses_and_rates_are_equal(folder, ranks):
    for rank in range(ranks):
        losses, rates = steps(folder / f'basicsr-{ranks}', rank)
        assert len(losses) == len(rates) == 3 * ITERS
        assert len(set(losses)) == 3 * ITERS
        assert (losses, rates) == tuple(steps(folder / f'mmagic-{ranks}', rank))


def test_rates_follow_the_stages(folder):
    rates = [rate for (rate,) in steps(folder / 'mmagic-1')[1]]
    assert rates[:8] == [0.002, 0.004, 0.006, 0.008, 0.01, 0.01, 0.01, 0.005]
    assert rates[ITERS : ITERS + 4] == [0.004, 0.002, 0.002, 0.001]


@pytest.mark.parametrize('ranks', [1, 2])
@pytest.mark.parametrize('iteration', [10, 30, 60])
def test_weights_are_equal(folder, ranks, iteration):
    ours = read_checkpoint(folder / f'basicsr-{ranks}/experiments/tiny/models/net_g_{iteration}.pth')
    theirs = read_checkpoint(folder / f'mmagic-{ranks}/work/iter_{iteration}.pth')
    assert ours['network_g'] == theirs['network_g']
    assert_equal(ours['params'], theirs['params'])
    assert_equal(ours['params_ema'], theirs['params_ema'])
    assert not torch.equal(ours['params']['conv_in.weight'], ours['params_ema']['conv_in.weight'])


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.parametrize('ranks', [1, 2])
def test_figures_are_equal(folder, ranks):
    validations = logged(folder / f'mmagic-{ranks}' / 'work')
    assert [line['step'] for line in validations] == [25, 50, 60]
    for line in validations:
        ours = figures_of_basicsr(folder / f'basicsr-{ranks}/experiments/tiny', line['step'])
        assert figures_of_mmagic(line) == ours


def test_pictures_are_equal_and_none_is_overwritten(folder):
    theirs = {file.name: file for file in folder.glob('mmagic-1/work/*/vis_data/vis_image/*.png')}
    assert len(theirs) == 3 * 2 * 3  # pictures, scales, validations
    for picture in range(3):
        for scale in ('x2', 'x6.5'):
            for iteration in (25, 50, 60):
                ours = folder / f'basicsr-1/experiments/tiny/visualization/{scale}/{picture}_{iteration}.png'
                same = theirs[f'{picture}_{scale.replace(".", "_")}_{iteration}.png']
                assert np.array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(same)))


@pytest.mark.parametrize('iteration', RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one(folder, iteration):
    whole, resumed = steps(folder / 'mmagic-1'), steps(folder / f'resumed-{iteration}')
    assert [values[iteration:] for values in whole] == resumed
    one, other = (
        torch.load(folder / run / 'work/iter_60.pth', weights_only=True) for run in ('mmagic-1', f'resumed-{iteration}')
    )
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal(one[part], other[part])
    assert one['optimizer']['state'].keys() == other['optimizer']['state'].keys()
    for key, state in one['optimizer']['state'].items():
        assert_equal(state, other['optimizer']['state'][key])
    figures = [figures_of_mmagic(logged(folder / run / 'work')[-1]) for run in ('mmagic-1', f'resumed-{iteration}')]
    assert figures[0] == figures[1]


def test_a_checkpoint_of_either_host_serves_in_both(folder):
    expected = figures_of_basicsr(folder / 'basicsr-1/experiments/tiny', 60)
    for origin in ('basicsr', 'mmagic'):
        here = folder / f'of-{origin}'
        figures = json.loads((here / 'mmagic.json').read_text())
        assert figures_of_mmagic(figures) == expected
        assert figures_of_basicsr(here / 'results/tiny', 'tiny') == expected
    one, other = (folder / f'of-{origin}/large.png' for origin in ('basicsr', 'mmagic'))
    assert one.read_bytes() == other.read_bytes()


def test_a_checkpoint_of_either_host_begins_a_training_in_both(folder):
    runs = [
        tuple(map(tuple, steps(folder / f'{host}-after-{origin}')[:1]))
        for host in ('basicsr', 'mmagic')
        for origin in ('basicsr', 'mmagic')
    ]
    assert len(runs[0][0]) == 3
    assert len(set(runs)) == 1


def test_checkpoints_hold_tensors_and_plain_values_alone(folder):
    content = torch.load(folder / 'mmagic-1/work/iter_60.pth', weights_only=True)
    assert content['message_hub']['runtime_info']['iter'] == 59
    assert content['network_g']['type'] == 'CLIT'
    assert content['meta']['seed'] == 3


def test_info_compare_and_convert_read_them(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder / 'of-mmagic')
    file = checkpoint(folder, 'mmagic', 60)
    assert cli.main(['info', file]) == 0
    described = capsys.readouterr().out
    assert 'network: CLIT' in described and 'weights: params, params_ema' in described
    assert 'trained branches: 3 of 3' in described
    assert cli.main(['convert', file, 'ours.pth']) == 0
    assert_equal(read_checkpoint('ours.pth')['params_ema'], read_checkpoint(file)['params_ema'])
    assert cli.main(['compare', 'images/1.png', '-m', file, '-s', '2', '-o', 'compared.png']) == 0
    assert (folder / 'of-mmagic/compared.png').is_file()


def test_mmagics_own_liif_trains_and_its_encoder_is_taken_over(folder):
    (file,) = folder.glob('liif/work_dirs/**/iter_3.pth')
    weights = torch.load(file, weights_only=True)['state_dict']
    losses, rates = steps(folder / 'liif')
    assert losses == [] and rates == [[1e-4]] * 3  # their own loop
    opt = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1}
    encoder = build_encoder(opt)
    load_pretrained(encoder, opt, file)
    assert torch.equal(encoder.conv_first.weight, weights['generator.conv_first.weight'])
    assert torch.equal(encoder.body[0].conv1.weight, weights['generator.body.0.conv1.weight'])


def test_a_loss_that_is_not_finite_leaves_the_weights(folder):
    log = (folder / 'nan-one/log0').read_text()
    assert 'Iteration 5: the loss is not finite; the step is skipped.' in log
    losses, rates = steps(folder / 'nan-one')
    assert [math.isnan(loss) for loss in losses] == [number == 5 for number in range(1, 10)]
    assert len(rates) == 8
    weights = read_checkpoint(folder / 'nan-one/work/iter_9.pth')['params']
    assert all(value.isfinite().all() for value in weights.values())
    error = (folder / 'nan-three/log0').read_text().strip().splitlines()[-1]
    assert error.startswith('basicsr: error: iteration 7: the loss is not finite')


def said(log, name):
    """What one of several runs in a log wrote."""
    parts = re.split(r'^== ', log.read_text(), flags=re.MULTILINE)
    (part,) = (part for part in parts if part.startswith(f'{name}\n'))
    assert 'Traceback' not in part
    return part


@pytest.mark.parametrize('name', REFUSED)
def test_what_the_loop_refuses_is_one_line(folder, name):
    part = said(folder / 'refused/log0', name)
    errors = [line for line in part.splitlines() if line.startswith('basicsr: error: ')]
    assert len(errors) == 1 and REFUSED[name][1] in errors[0]


@pytest.mark.parametrize('name', OTHERWISE)
def test_a_training_is_not_resumed_as_another(folder, name):
    assert OTHERWISE[name][1] in said(folder / 'otherwise/log0', name)


def test_a_resumed_run_follows_its_config(folder):
    content = torch.load(folder / 'otherwise/betas/iter_60.pth', weights_only=True)
    assert [list(group['betas']) for group in content['optimizer']['param_groups']] == [[0.5, 0.6]]
    text = said(folder / 'otherwise/log0', 'betas')
    for line in ('model:pixel_loss:loss_weight: 0.5, before 1.0', 'custom_hooks:EMAHook:0:decay: 0.5, before 0.9'):
        assert f'Changed since the checkpoint was saved: {line}.' in text
