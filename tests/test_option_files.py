"""The option files: each is accepted by the command, and the network that it describes is built and answers."""

import argparse
import re
from pathlib import Path

import pytest
import torch

from clit_basicsr import weights
from clit_basicsr.archs import build_network
from clit_basicsr.base.checkpoints import read_checkpoint
from clit_basicsr.cli import check_weights, options
from clit_basicsr.cli.option_file import read_option_file

FOLDER = Path(__file__).parent.parent / 'options'
PATHS = [path for path in FOLDER.rglob('*.yml') if 'mmagic' not in path.parts]
FILES = sorted(str(path.relative_to(FOLDER)) for path in PATHS)
TRAINING = [name for name in FILES if not Path(name).name.startswith(('test', 'quickstart'))]
# Of the package's own network, on other sets than the paper's tables.
LIGHT = 'test_clit_light.yml'
TESTS = [name for name in FILES if Path(name).name.startswith('test') and name != LIGHT]
# The decoders of the paper, each of which has an option file for each of the paper's encoders.
DECODERS = ('LIT', 'CLIT', 'LIIF', 'LTE', 'MetaSR', 'UltraSR', 'IPE')
TYPES = {name.lower(): name for name in DECODERS}
# Later decoders, with one encoder.
OTHERS = {'srno': 'SRNO', 'hiif': 'HIIF', 'thera_air': 'Thera', 'thera_plus': 'Thera'}
ENCODERS = {'edsr': 'EDSR', 'rdn': 'RDN', 'swinir': 'SwinIR'}


def completed(name, folder, monkeypatch, is_train=True):
    """The options as `basicsr train` or `test` has them, with the folders that they expect in the working directory."""
    monkeypatch.chdir(folder)
    opt = read_option_file(str(FOLDER / name))
    opt['num_gpu'] = 0
    for dataset in opt['datasets'].values():
        for key in ('dataroot_gt', 'dataroot_lq'):
            if dataset.get(key):
                Path(dataset[key]).mkdir(parents=True, exist_ok=True)
                name = dataset.get('filename_tmpl', '{}').format('0801') if key == 'dataroot_lq' else '0801'
                Path(dataset[key], f'{name}.png').touch()  # its name is found, its content is not read
    if not is_train and opt['path']['pretrain_network_g'] not in (None, *weights.names()):
        Path(opt['path']['pretrain_network_g']).parent.mkdir(parents=True)
        Path(opt['path']['pretrain_network_g']).touch()
        monkeypatch.setattr(check_weights, 'check_fit', lambda *_: None)  # nor is its content
    args = argparse.Namespace(auto_resume=False, debug=False, launcher='none', opt='options.yml')
    return options.complete(opt, args, str(folder), is_train)


def test_every_decoder_has_a_file_for_every_encoder():
    wanted = {f'train_{decoder}_{encoder}.yml' for decoder in TYPES for encoder in ENCODERS}
    wanted |= {'train_liif_edsr_cumulative.yml', 'train_lte_edsr_cumulative.yml'}
    wanted |= {f'train_{decoder}_edsr.yml' for decoder in OTHERS}
    wanted |= {f'ablations/table4_grid_{grid}.yml' for grid in (1, 3, 5, 7, 9, 15, 25)}
    wanted |= {f'ablations/table3_{row}.yml' for row in ('no_attention', 'no_cell', 'ensemble', 'frequency')}
    assert wanted <= set(FILES)


@pytest.mark.parametrize('name', TRAINING)
def test_training_options(name, tmp_path, monkeypatch):
    opt = completed(name, tmp_path, monkeypatch)
    network_g = opt['network_g']
    assert opt['name'] == Path(name).stem
    assert opt['train']['total_iter'] == sum(stage['iters'] for stage in opt['train']['stages'])
    types = TYPES | OTHERS
    decoders = '|'.join(types)
    if match := re.fullmatch(rf'train_({decoders})_(edsr|rdn|swinir)(_cumulative)?\.yml', name):
        assert network_g['type'] == types[match[1]]
        assert network_g['encoder']['type'] == ENCODERS[match[2]]
        assert (len(opt['train']['stages']) > 1) == bool(match[3] or match[1] == 'clit')
    elif grid := re.fullmatch(r'ablations/table4_grid_(\d+)\.yml', name):
        assert network_g['grid_size'] == int(grid[1])
    # The networks of RDN and SwinIR at their full size are built here too, but answer a single query.
    net = build_network(network_g).eval()
    with torch.no_grad():
        out = net(torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 2), torch.tensor([[0.1, 0.1]]))
    assert out.shape == (1, 1, 3)
    assert out.isfinite().all()


@pytest.mark.parametrize('name', TESTS)
def test_test_options(name, tmp_path, monkeypatch):
    opt = completed(name, tmp_path, monkeypatch, is_train=False)
    assert opt['name'] == Path(name).stem
    sets = {one['name']: one for one in opt['datasets'].values()}
    assert all(phase == f'test_{one["name"]}' for phase, one in opt['datasets'].items())
    wanted = [f'{name}_x{scale}' for name in ('Set5', 'Set14', 'B100', 'Urban100') for scale in (2, 3, 4, 6, 8)]
    assert {*wanted, 'DIV2K_x2', 'DIV2K_x12'} <= set(sets)
    for name, one in sets.items():
        scale = int(name.rpartition('_x')[2])
        assert (one['scale'], bool(one['dataroot_lq'])) == (scale, scale <= 4)
        if scale <= 4:
            assert (Path(one['dataroot_lq']).name, one['filename_tmpl']) == (f'X{scale}', f'{{}}x{scale}')
    if opt['path']['pretrain_network_g']:
        trained = read_option_file(str(FOLDER / f'{Path(opt["path"]["pretrain_network_g"]).parts[1]}.yml'))
        trained['network_g'].get('encoder', {}).pop('padding', None)  # of the picture, not of the weights
        opt['network_g'].get('encoder', {}).pop('padding', None)
        assert opt['network_g'] == trained['network_g']


def test_options_of_the_network_in_the_package(tmp_path, monkeypatch):
    opt = completed(LIGHT, tmp_path, monkeypatch, is_train=False)
    for name, one in ((one['name'], one) for one in opt['datasets'].values()):
        assert name == f'{Path(one["dataroot_gt"]).parent.name}_x{one["scale"]:g}' and one['downsampling'] == 'matlab'
    trained = read_option_file(str(FOLDER / 'train_clit_light.yml'))['network_g']
    assert opt['network_g'] == trained
    packed = read_checkpoint(FOLDER.parent / opt['path']['pretrain_network_g'])['network_g']
    assert packed == opt['network_g']


def test_comments_name_their_own_file():
    for name in [*TRAINING, *TESTS, LIGHT]:
        text = (FOLDER / name).read_text()
        named = set(re.findall(r'-opt (\S+)', text))
        assert named == {f'options/{name}'}


def test_a_network_of_the_package_by_its_name_unless_there_is_such_a_file_or_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opt = {'datasets': {}, 'path': {'pretrain_network_g': 'clit-light'}}
    options.expand_paths(opt)
    assert opt['path']['pretrain_network_g'] == str(weights.file_of('clit-light'))
    own = Path('experiments/clit-light/models/net_g_latest.pth')  # as with -m
    own.parent.mkdir(parents=True)
    own.touch()
    opt = {'datasets': {}, 'path': {'pretrain_network_g': 'clit-light'}}
    options.expand_paths(opt)
    assert opt['path']['pretrain_network_g'] == str(own)
    Path('clit-light').touch()
    opt = {'datasets': {}, 'path': {'pretrain_network_g': 'clit-light'}}
    options.expand_paths(opt)
    assert opt['path']['pretrain_network_g'] == 'clit-light'
