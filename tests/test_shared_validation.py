"""Validation with the pictures dealt out over two ranks: every figure and file is that of one process."""

import csv
import json
import os
import re
import time
from datetime import timedelta

import basicsr.train  # noqa: F401  all that the ranks need is imported before they fork
import pytest
import torch
import yaml
from basicsr.models.sr_model import SRModel
from helpers.ranks import fork, in_new_process
from helpers.training import changed, prepare
from torch.utils.data import DataLoader, Dataset

from clit_basicsr import cli
from clit_basicsr.base import ranks
from clit_basicsr.models import ImplicitSRModel

COUNT = 5  # pictures: the second rank has none in the last round
SETS = ('x2', 'x6.5')

# The weights move only where a stage begins, and there alike however many ranks train.
STAGES = [
    {'branches': n, 'iters': 2, 'lr': 1e-30, 'milestones': [], 'scales': [[[1, 2]] * n], 'warmup_iter': -1}
    for n in (1, 2)
]


def options():
    opt = changed(train__stages=STAGES, val__val_freq=2, logger__save_checkpoint_freq=100)
    opt['network_g']['num_branches'] = 2
    opt['datasets']['train']['num_worker_per_gpu'] = 0
    return opt


def command(folder, *arguments):
    def work(rank):
        os.chdir(folder)
        enlarge = ImplicitSRModel.test
        ImplicitSRModel.test = lambda self: (print('a picture is enlarged'), enlarge(self))
        return cli.main(arguments)

    return work


def scenarios(folder):
    """Everything that the tests look at, in a process of its own."""
    torch.set_num_threads(1)
    codes = {}
    for count, launcher in ((1, 'none'), (2, 'pytorch')):
        here = prepare(folder / f'{count}', options(), count=COUNT)
        arguments = ('-opt', 'options.yml', '--launcher', launcher)
        codes[f'train {count}'] = fork(command(here, 'train', *arguments), count, here / 'train')
        write_test_options(folder, here)
        codes[f'test {count}'] = fork(command(here, 'test', *arguments), count, here / 'test')
        codes[f'host {count}'] = fork(
            lambda rank, here=here, n=count: validate_hosts(here, rank, n), count, here / 'host'
        )
    here = prepare(folder / 'damaged', options(), count=COUNT)
    write_test_options(folder, here)
    damaged = here / 'images' / '3.png'  # rank 1 reads it
    damaged.write_bytes(damaged.read_bytes()[:-200])
    codes['damaged'] = fork(command(here, 'test', *arguments), 2, here / 'log')
    codes['defect'] = fork(run_into_a_defect, 2, folder / 'defect')
    codes['slow'] = fork(lambda rank: take_long(folder, rank), 2, folder / 'slow')
    (folder / 'codes.json').write_text(json.dumps(codes))


def write_test_options(folder, here):
    opt = options()
    opt = {key: opt[key] for key in ('name', 'num_gpu', 'manual_seed', 'network_g', 'val', 'datasets')}
    opt['model_type'] = 'ImplicitSRModel'
    opt['datasets'] = {f'test_{name}': opt['datasets'][f'val_{name}'] for name in ('x2', 'x6')}
    opt['path'] = {'pretrain_network_g': str(folder / '1/experiments/tiny/models/net_g_latest.pth')}
    (here / 'options.yml').write_text(yaml.safe_dump(opt))


class Pictures(Dataset):
    opt = {'name': 'set'}

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        lq, gt = (torch.rand(3, side, side, generator=generator) for side in (9, 18))
        return {'lq': lq, 'gt': gt, 'lq_path': f'folder/{index}.png'}


def hosts_options(folder, count, rank):
    return {
        'model_type': 'SRModel',
        'num_gpu': 0,
        'dist': count > 1,
        'rank': rank,
        'world_size': count,
        'is_train': True,
        'network_g': {'type': 'MSRResNet', 'num_feat': 4, 'num_block': 1, 'upscale': 2},
        'path': {'visualization': str(folder / 'sr' / 'visualization')},
        'val': {
            'metrics': {
                'psnr': {'type': 'calculate_psnr', 'crop_border': 2},
                'low': {'type': 'calculate_psnr', 'crop_border': 0, 'better': 'lower'},
            },
        },
        'train': {
            'optim_g': {'type': 'Adam', 'lr': 1e-3},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5},
            'pixel_opt': {'type': 'L1Loss'},
        },
    }


def validate_hosts(folder, rank, count):
    """The host's own model: figures of two validations, the second with other weights."""
    torch.manual_seed(rank)  # rank 0's weights are the ones that count
    if count > 1:
        torch.distributed.init_process_group('gloo')
    model, found = SRModel(hosts_options(folder, count, rank)), []
    for iteration, factor in ((1, 1.0), (2, 0.5)):
        for parameter in model.net_g.parameters():
            parameter.data *= factor
        model.validation(DataLoader(Pictures()), iteration, None, save_img=True)
        found.append([model.metric_results, model.best_metric_results['set']])
        found = json.loads(json.dumps(found))  # a copy
    (folder / f'host{rank}.json').write_text(json.dumps(found))


def run_into_a_defect(rank):
    torch.distributed.init_process_group('gloo')
    ranks.for_each_picture(
        DataLoader(Pictures()), lambda data: {}['no such key'] if '3' in data['lq_path'][0] else 0, int
    )


def take_long(folder, rank):
    """Rank 1 needs longer for all of its pictures than collectives wait, rank 0 no time at all."""
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=2))

    def work(data):
        time.sleep(rank * 1.4)
        return [data['lq_path'][0], rank]

    found = ranks.for_each_picture(DataLoader(Pictures()), work, int)
    (folder / f'slow{rank}.json').write_text(json.dumps(found))


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    in_new_process('test_shared_validation', folder)
    return folder, json.loads((folder / 'codes.json').read_text())


def table(folder):
    with open(folder / 'experiments' / 'tiny' / 'validation.csv', newline='') as file:
        return list(csv.DictReader(file))


def test_training_on_two_ranks_measures_what_one_process_measures(done):
    folder, codes = done
    assert (codes['train 1'], codes['train 2']) == ([0], [0, 0]), (folder / '2/train0').read_text()[-2000:]
    one, two = table(folder / '1'), table(folder / '2')
    assert one == two
    keys = [(int(row['iteration']), row['dataset'], row['metric']) for row in two]
    assert keys == [(i, name, metric) for i in (2, 4) for name in SETS for metric in ('psnr', 'host_psnr')]
    assert one[2]['value'] != one[6]['value']  # at x6.5, the second stage uses its branch; at x2 the first one alone


def test_each_rank_enlarges_its_share(done):
    counts = [(done[0] / log).read_text().count('a picture is enlarged') for log in ('2/train0', '2/train1', '2/test0')]
    assert counts == [12, 8, 6]  # two sets: 3 and 2 pictures each, at two iterations in training


def test_no_rank_waits_for_longer_than_a_picture_takes(done):
    folder, codes = done
    assert codes['slow'] == [0, 0], (folder / 'slow0').read_text()[-2000:]
    found = [json.loads((folder / f'slow{rank}.json').read_text()) for rank in (0, 1)]
    assert found == [[[f'folder/{i}.png', i % 2] for i in range(COUNT)]] * 2


def test_the_log_and_its_best_figures_are_those_of_one_process(done):
    folder, _ = done
    logs = [(folder / name).read_text() for name in ('1/train0', '2/train0', '2/train1')]
    one, two, second = [re.findall(r'# (\w+): ([\d.]+)\tBest: ([\d.]+) @ (\d) iter', log) for log in logs]
    assert len(one) == 8
    assert two == one
    assert second == []  # rank 0 alone speaks


@pytest.mark.parametrize('kind', ['experiments/tiny/visualization', 'results/tiny/visualization', 'sr/visualization'])
def test_every_picture_is_saved_and_is_the_same(kind, done):
    saved = [
        {
            str(path.relative_to(done[0] / name / kind)): path.read_bytes()
            for path in (done[0] / name / kind).rglob('*.png')
        }
        for name in ('1', '2')
    ]
    # two iterations in training and with the host's model, one in a test
    assert len(saved[0]) == {'e': 2 * COUNT * 2, 'r': COUNT * 2, 's': COUNT * 2}[kind[0]]
    assert saved[0] == saved[1]


def test_a_test_on_two_ranks_writes_one_summary_with_the_same_figures(done):
    folder, codes = done
    assert (codes['test 1'], codes['test 2']) == ([0], [0, 0]), (folder / '2/test1').read_text()[-2000:]
    one, two = ((folder / name / 'results/tiny/summary.json').read_text() for name in ('1', '2'))
    assert one == two
    assert 'summary.csv' in (folder / '2/test0').read_text()
    assert 'summary.csv' not in (folder / '2/test1').read_text()


def test_a_model_of_the_host_has_the_same_figures_on_every_rank(done):
    folder, codes = done
    assert (codes['host 1'], codes['host 2']) == ([0], [0, 0]), (folder / '2/host1').read_text()[-2000:]
    one, *two = (json.loads((folder / name).read_text()) for name in ('1/host0.json', '2/host0.json', '2/host1.json'))
    assert two == [one, one]
    (first, _), (second, records) = one
    best = {'psnr': max(first['psnr'], second['psnr']), 'low': min(first['low'], second['low'])}
    assert {metric: records[metric]['val'] for metric in best} == best
    assert first['psnr'] != second['psnr']


def test_a_damaged_picture_ends_all_ranks_with_one_line(done):
    folder, codes = done
    assert codes['damaged'] == [1, 1]
    said = ''.join((folder / f'damaged/log{rank}').read_text() for rank in (0, 1))
    assert len(re.findall('basicsr: error: ', said)) == 1
    assert re.search(r'basicsr: error: .*3\.png', said)
    assert 'Traceback' not in said


def test_a_defect_shows_its_traceback_once_and_ends_all_ranks(done):
    folder, codes = done
    assert codes['defect'] == [1, 70]  # 70: an exception that nobody caught
    assert (folder / 'defect0').read_text() == ''
    assert "KeyError: 'no such key'" in (folder / 'defect1').read_text()


def test_means_are_summed_in_the_order_of_the_pictures():
    values = [{'psnr': value} for value in (1e16, 1.0, -1e16, 1.0)]
    assert ranks.mean_values(values) == {'psnr': 0.25}  # 0.5 exactly, but in floats 1e16 + 1 = 1e16
