"""The configs for MMagic: each is accepted by the command, asks for what its option file asks BasicSR for, and what is
wrong in one is one line."""

import copy
from pathlib import Path

import pytest
import yaml
from helpers.mmagic import as_test, config, needs_mmagic
from helpers.training import OPTIONS, prepare

from clit_basicsr import cli
from clit_basicsr.base.errors import UserError
from clit_basicsr.cli.option_file import read_option_file

pytestmark = needs_mmagic
OPTION_FILES = Path(__file__).parents[1] / 'options'
FOLDER = OPTION_FILES / 'mmagic'
CONFIGS = sorted(path.name for path in FOLDER.glob('*-*'))
PAIRS = [(name, 'train_' + '_'.join(name.split('-')[:2])) for name in CONFIGS if 'div2k' in name]
PAIRS += [(name, 'quickstart_clit_edsr') for name in CONFIGS if 'quickstart' in name]


@pytest.fixture(scope='module')
def check():
    from clit_basicsr.hosts.mmagic import plugin

    plugin.register_all()
    from clit_basicsr.cli.check_mmagic import check_config

    return check_config


def read(name):
    from mmengine.config import Config

    return Config.fromfile(str(FOLDER / name))


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_are_accepted_for_training_and_test(name, check, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = read(name)
    check(cfg, training=True)
    assert cfg.experiment_name == Path(name).stem
    assert cfg.work_dir == f'./work_dirs/{cfg.experiment_name}'
    assert cfg.default_hooks.checkpoint.get('out_dir') is None  # or runs of one name in two folders would share one
    loaders = [loader.dataset for loader in cfg.test_dataloader]
    for dataset in loaders:
        Path(dataset.dataroot_gt).mkdir(parents=True, exist_ok=True)
        if dataset.get('dataroot_lq'):
            Path(dataset.dataroot_lq).mkdir(parents=True, exist_ok=True)
    check(cfg, training=False)
    assert len(cfg.test_dataloader) == len(loaders)
    names = [dataset.name for dataset in loaders]
    assert len(set(names)) == len(names)
    assert names == [evaluator.metrics[0].prefix for evaluator in cfg.test_evaluator]


@pytest.mark.parametrize(('name', 'options'), PAIRS)
def test_configs_are_the_option_files_of_basicsr(name, options):
    cfg, opt = plain(read(name).to_dict()), read_option_file(str(OPTION_FILES / f'{options}.yml'))
    generator = cfg['model']['generator']
    assert {**generator, 'type': generator['type'].removesuffix('Net')} == opt['network_g']
    assert cfg['train_cfg']['stages'] == opt['train']['stages']
    assert cfg['train_cfg']['val_interval'] == opt['val']['val_freq']
    optimizer = {'type': 'Adam', 'betas': [0.9, 0.999]}
    assert cfg['optim_wrapper']['optimizer'] == optimizer == opt['train']['optim_g']
    train, loader = opt['datasets']['train'], cfg['train_dataloader']
    assert loader['batch_size'] == train['batch_size_per_gpu']
    for key, value in loader['dataset'].items():
        assert train[key] == value
    assert cfg['randomness'] == {'seed': opt['manual_seed']}
    assert cfg['model']['test_cfg'].get('tile') == opt['val'].get('tile')


def test_the_tests_are_those_of_basicsr():
    sets = read_option_file(str(OPTION_FILES / 'test_clit_edsr.yml'))['datasets'].values()
    keys = ('dataroot_gt', 'scale', 'protocol')
    wanted = sorted([*(dataset[key] for key in keys), dataset.get('dataroot_lq') or ''] for dataset in sets)
    loaders = read(PAIRS[0][0]).to_dict()['test_dataloader']
    found = [loader['dataset'] for loader in loaders]
    assert sorted([*(dataset[key] for key in keys), dataset.get('dataroot_lq') or ''] for dataset in found) == wanted


def test_the_metafile_names_every_config():
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())
    assert sorted(model['Config'] for model in models['Models']) == [f'options/mmagic/{name}' for name in CONFIGS]
    assert {model['In Collection'] for model in models['Models']} == {one['Name'] for one in models['Collections']}


WRONG = [
    # changes, what is said
    ({'model.generator.type': 'CLTNet'}, "model:generator:type: 'CLTNet' is not known; the nearest is 'CLITNet'"),
    ({'model.generator.num_branch': 3}, 'num_branch is not an option; the nearest one is model:generator:num_branches'),
    ({'model.generator.dim': 'wide'}, 'model:generator:dim must be a whole number'),
    ({'model.generator.encoder.num_feet': 3}, 'the nearest one is model:generator:encoder:num_feat'),
    ({'model.type': 'ImplicitRS'}, "the nearest is 'ImplicitSR'"),
    ({'model.pixel_los': {}}, 'model:pixel_los is not an option; the nearest one is model:pixel_loss'),
    ({'train_dataloader.num_worker': 1}, 'the nearest one is train_dataloader:num_workers'),
    ({'train_dataloader.dataset.lq_sice': 8}, 'the nearest one is train_dataloader:dataset:lq_size'),
    ({'train_dataloader.dataset.type': 'RandomScaleDatset'}, "the nearest is 'RandomScaleDataset'"),
    ({'val_dataloader.1.dataset.scal': 2}, 'the nearest one is val_dataloader:1:dataset:scale'),
    ({'val_evaluator.0.metrics.0.type': 'PSNRFlot'}, "val_evaluator:0:metrics:0:type: 'PSNRFlot' is not known"),
    ({'train_cfg.stages.1.branchs': 2}, "stage 2: key 'branchs' is not known; the nearest valid one is 'branches'"),
    ({'train_cfg.stages.0.lr': '1e-4'}, 'stage 1: lr: must be a number above 0'),
    ({'train_cfg.stages.2.pixel_opt.type': 'L3Loss'}, "train_cfg:stages:2:pixel_opt:type: 'L3Loss' is not known"),
    ({'train_cfg.start_stages': 2}, 'the nearest one is train_cfg:start_stage'),
    ({'train_cfg.stages': None}, 'train_cfg:stages is missing'),
    ({'optim_wrapper.optimizer.type': 'Adamm'}, "optim_wrapper:optimizer:type: 'Adamm' is not known"),
    ({'custom_hooks': [{'type': 'EMAHok'}]}, "custom_hooks:0:type: 'EMAHok' is not known; the nearest is 'EMAHook'"),
    ({'train_dataloder': {}}, 'train_dataloder is not a block of a config; the nearest one is train_dataloader'),
    ({'val_evaluator': None}, 'val_evaluator is missing (there is val_dataloader and val_cfg)'),
    ({'train_cfg': None}, 'train_cfg is missing'),
    ({'model': None}, 'model is missing'),
    ({'trian_cfg': {}}, 'the nearest one is train_cfg'),
    ({'model.pixel_loss': {'type': 'L1Los'}}, "model:pixel_loss:type: 'L1Los' is not known; the nearest is 'L1Loss'"),
    ({'model.test_cfg': {'scale': 0}}, 'model:test_cfg:scale: must be a number of at least 1'),
    (
        {'model.test_cfg': {'tile': {'tile_size': 48, 'tile_pad': 2}}},
        'model:test_cfg:tile: tile_size must be at least 1 and tile_pad at least',
    ),
    ({'model.test_cfg': {'tile': 5}}, 'model:test_cfg:tile must be a block of tile_size and tile_pad'),
    ({'model.test_cfg': {'self_ensemble': 'no'}}, 'self_ensemble must be true or false or rotations'),
    ({'model.train_cfg': [1]}, 'model:train_cfg must be a block'),
    ({'model.train_cfg': {'variation_weight': ''}}, 'model:train_cfg:variation_weight must be a number'),
    ({'train_cfg.val_interval': 0}, 'train_cfg:val_interval must be at least 1'),
    ({'train_cfg.nonfinite_limit': 'x'}, 'train_cfg:nonfinite_limit must be a number'),
    ({'train_dataloader.batch_size': 0}, 'train_dataloader:batch_size must be at least 1'),
    ({'val_dataloader.0.num_workers': -1}, 'val_dataloader:0:num_workers must be at least 0'),
    ({'train_dataloader.persistent_workers': True, 'train_dataloader.num_workers': 0}, 'needs num_workers above 0'),
    ({'randomness.sed': 3}, 'the nearest one is randomness:seed'),
    ({'randomness.seed': -1}, 'randomness:seed must be at least 0'),
    ({'log_level': 'LOUD'}, 'log_level must be one of CRITICAL, ERROR, WARNING, INFO, DEBUG'),
    ({'optim_wrapper.optimizer.lr': 0.1}, 'optim_wrapper:optimizer:lr: each of train_cfg:stages has its own lr'),
    ({'optim_wrapper.paramwise_cfg': {'custom_keys': {'encoder': {'lr_mult': 0.1}}}}, 'leave lr_mult out'),
    ({'default_hooks.checkpoint.intervall': 5}, 'the nearest one is default_hooks:checkpoint:interval'),
    ({'default_hooks.checkpoint.by_epoch': True}, 'default_hooks:checkpoint:by_epoch must be False'),
    ({'default_hooks': {}}, 'default_hooks:checkpoint:by_epoch must be False'),
    ({'default_hooks.logger.interval': 0}, 'default_hooks:logger:interval must be at least 1'),
]


@pytest.mark.parametrize(
    ('changes', 'said'), WRONG, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ''
)
def test_mistakes_are_one_line_with_the_nearest_name(changes, said, check):
    from mmengine.config import Config

    cfg = Config(config(copy.deepcopy(OPTIONS)))
    check(cfg, training=True)
    for key, value in changes.items():
        if '.' in key:
            cfg.merge_from_dict({key: value})
        else:
            cfg[key] = value
    with pytest.raises(UserError) as caught:
        check(cfg, training=True)
    assert said in str(caught.value) and '\n' not in str(caught.value)


def test_missing_test_sets_are_named_and_left_out(check, tmp_path, monkeypatch, capsys):
    from mmengine.config import Config

    prepare(tmp_path / 'here')
    monkeypatch.chdir(tmp_path / 'here')
    cfg = Config(as_test(config(copy.deepcopy(OPTIONS))))
    cfg.test_dataloader[0].dataset.dataroot_gt = 'absent'
    check(cfg, training=False)
    assert capsys.readouterr().err.startswith('basicsr: skipped x2: folder absent does not exist')
    assert [loader.dataset.name for loader in cfg.test_dataloader] == ['x6.5']
    assert [evaluator.metrics[0].prefix for evaluator in cfg.test_evaluator] == ['x6.5']
    cfg.test_dataloader[0].dataset.dataroot_gt = 'absent'
    with pytest.raises(UserError, match='none of the test sets exists'):
        check(cfg, training=False)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['mmtrain', 'absent.py'], 'config absent.py does not exist'),
        (['mmtrain', '.'], 'config . is a folder'),
        (['mmtest', 'broken.py', 'absent.pth'], 'checkpoint absent.pth does not exist'),
        (['mmtrain', 'broken.py'], 'config broken.py cannot be read (NameError'),
        (['mmtrain', 'config.json', '--cfg-options', 'model.generator.dims=4'], 'is model:generator:dim'),
        (['mmtrain', 'config.json', '--cfg-options', 'batch_size'], '--cfg-options takes key=value'),
        (['mmtrain', 'config.json', '--cfg-options', 'train_cfg.stages.9.lr=1'], '--cfg-options: Index 9 exceeds'),
        (['mmtrain', 'config.json', '--work-dir', 'broken.py'], 'work_dir broken.py cannot be written to'),
        (['mmtest', 'config.json', 'broken.py', '--out', 'broken.py/a.json'], 'cannot be written to'),
        (['mmtest', 'config.json', 'broken.py', '--out', 'figures.txt'], 'its name must end in .json'),
    ],
)
def test_the_command_says_so_and_makes_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    from helpers.mmagic import write

    prepare(tmp_path / 'here')
    monkeypatch.chdir(tmp_path / 'here')
    write(tmp_path / 'here', config(copy.deepcopy(OPTIONS)))
    (tmp_path / 'here' / 'broken.py').write_text('model = nothing\n')
    before = sorted(path.name for path in (tmp_path / 'here').iterdir())
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('basicsr: error: ') and said in error
    assert sorted(path.name for path in (tmp_path / 'here').iterdir()) == before


def test_help_is_that_of_mmagic(capsys):
    for command, flag in (('mmtrain', '--auto-scale-lr'), ('mmtest', '--out')):
        with pytest.raises(SystemExit) as caught:
            cli.main([command, 'config.py', '--help'])
        shown = capsys.readouterr().out
        assert caught.value.code == 0 and f'basicsr {command}' in shown and flag in shown
