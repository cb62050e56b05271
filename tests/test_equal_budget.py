"""The script that compares all systems at an equal budget, with budgets of a few iterations."""

import argparse
import csv
import os

import equal_budget
import pytest
import torch
from equal_budget import SYSTEMS, Run
from skimage import data, io

from clit_basicsr.archs import Bicubic
from clit_basicsr.cli import check_weights, options
from clit_basicsr.data.pairs import make_pair
from clit_basicsr.metrics import calculate_psnr_float


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
    """Command line of tiny budgets on photographs."""
    folder = tmp_path_factory.mktemp('equal')
    for part, names in (('train', ('coffee', 'astronaut')), ('set', ('chelsea', 'cat'))):
        (folder / part).mkdir()
        for name in names:
            io.imsave(folder / part / f'{name}.png', getattr(data, name)()[50:170, 80 : 190 + len(name)])
    sizes = '--iters 7 --batch-size 1 --lq-size 8 --num-queries 9 --num-feat 4 --num-block 1 --workers 0'
    paths = ['--train', f'{folder}/train', '--sets', f'Pets={folder}/set', '--output', f'{folder}/out']
    return [*paths, *sizes.split(), '--scales', '2', '3.4']


@pytest.mark.parametrize('system', SYSTEMS)
def test_every_system_has_valid_options_and_the_same_budget(system, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = equal_budget.parser().parse_args(arguments)
    flags = argparse.Namespace(auto_resume=False, debug=False, launcher='none', opt='options.yml')
    if system != 'bicubic':
        opt = options.complete(equal_budget.training_options(args, Run(system, 3)), flags, str(tmp_path), True)
        assert (opt['train']['total_iter'], opt['manual_seed']) == (7, 3)
        assert opt['network_g']['encoder'] == equal_budget.network_options(args, 'liif')['encoder']
        weights = tmp_path / 'experiments' / f'{system}_seed3' / 'models' / 'net_g_latest.pth'
        weights.parent.mkdir(parents=True)
        weights.touch()
        monkeypatch.setattr(check_weights, 'check_fit', lambda *_: None)
    sets = equal_budget.parse_sets(args.sets)
    opt = options.complete(equal_budget.test_options(args, Run(system, 3), sets), flags, str(tmp_path), False)
    assert [one['scale'] for one in opt['datasets'].values()] == [2, 3.4]
    assert not opt.get('warnings')


@pytest.mark.slow
def test_two_systems_from_nothing_to_the_table_and_once_more(arguments, monkeypatch):
    command = [*arguments, '--systems', 'bicubic', 'clit']
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    equal_budget.main(command)
    folder = equal_budget.parser().parse_args(command).output
    with open(folder / 'table.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    about = [(row['system'], row['iterations'], row['scale']) for row in rows]
    assert about == [(name, iters, s) for name, iters in (('Bicubic', '0'), ('CLIT', '7')) for s in ('2', '3.4')]
    images = [io.imread(path) for path in sorted((folder.parent / 'set').iterdir())]
    expected = []
    for image in images:
        pair = make_pair(image, (2, 2), 'matlab')
        gt, lq = (torch.from_numpy(one).permute(2, 0, 1).unsqueeze(0) / 255 for one in pair)
        expected.append(calculate_psnr_float(Bicubic().upscale(lq, scale=2), gt, protocol='benchmark', scale=(2, 2)))
    assert float(rows[0]['psnr']) == pytest.approx(sum(expected) / 2, abs=1e-4)
    assert 10 < float(rows[2]['psnr']) < float(rows[0]['psnr'])  # after seven iterations
    text = (folder / 'table.md').read_text()
    assert f'| {float(rows[1]["psnr"]):.2f} |' in text and '| CLIT | 0 |' in text

    monkeypatch.setattr(equal_budget.subprocess, 'Popen', None)  # nothing is trained or measured again
    before = os.stat(folder / 'experiments' / 'clit_seed0' / 'models' / 'net_g_latest.pth').st_mtime_ns
    equal_budget.main(command)
    assert (folder / 'table.md').read_text() == text
    assert os.stat(folder / 'experiments' / 'clit_seed0' / 'models' / 'net_g_latest.pth').st_mtime_ns == before
    with pytest.raises(SystemExit, match=r'clit_seed0\.yml was written with other settings'):
        equal_budget.main([*command[:-2], 'clit', '--iters', '8'])
    with pytest.raises(SystemExit, match='--sets Pets: write NAME=FOLDER'):
        equal_budget.main(['--sets', 'Pets', *command[:2], *command[4:]])
