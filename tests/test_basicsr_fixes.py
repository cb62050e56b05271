"""Each fix of BasicSR, on the host's own models and files: what is asserted here is not so without the fixes."""

import logging
import multiprocessing
import os
from pathlib import Path

import basicsr.models.base_model
import basicsr.train
import pytest
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.dist_util import init_dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from clit_basicsr.base.errors import UserError
from clit_basicsr.hosts.basicsr import fixes as basicsr_fixes
from clit_basicsr.hosts.basicsr import resume as basicsr_resume
from clit_basicsr.hosts.basicsr import sampler

OTHER = 'other.pth'  # a checkpoint without `params`


class OneImage(Dataset):
    opt = {'name': 'set_x2'}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {'lq': torch.rand(3, 4, 4), 'gt': torch.rand(3, 8, 8), 'lq_path': 'folder/image.png'}


def make_opt(root, **train):
    folders = {name: str(root / name) for name in ('models', 'training_states', 'visualization')}
    for folder in folders.values():
        Path(folder).mkdir(exist_ok=True)
    return {
        'name': 'fixes',
        'model_type': 'SRModel',
        'num_gpu': 0,
        'dist': False,
        'rank': 0,
        'world_size': 1,
        'is_train': True,
        'auto_resume': True,
        'network_g': {'type': 'MSRResNet', 'num_feat': 4, 'num_block': 1, 'upscale': 2},
        'path': {**folders, 'log': str(root)},
        'val': {'save_img': True, 'metrics': None},
        'train': {
            'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [2, 4], 'gamma': 0.5},
            'pixel_opt': {'type': 'L1Loss'},
            **train,
        },
    }


def step(model, current_iter):
    model.update_learning_rate(current_iter)
    generator = torch.Generator().manual_seed(current_iter)
    lq, gt = torch.rand(1, 3, 4, 4, generator=generator), torch.rand(1, 3, 8, 8, generator=generator)
    model.feed_data({'lq': lq, 'gt': gt})
    model.optimize_parameters(current_iter)


def weights(model):
    return nn.utils.parameters_to_vector(model.net_g.parameters()).detach().clone()


@pytest.fixture
def one_process(tmp_path):
    """A distributed run of one process on the CPU."""
    if torch.cuda.is_available():
        pytest.skip('the host sets up NCCL where there is a GPU')
    variables = {'RANK': '0', 'WORLD_SIZE': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '0'}
    kept, method = dict(os.environ), torch.multiprocessing.get_start_method(allow_none=True)
    os.environ.update(variables)
    init_dist('pytorch', init_method=f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(kept)
    torch.multiprocessing.set_start_method(method, force=True)


def test_applied_once():
    before = basicsr.train.create_train_val_dataloader, SRModel.nondist_validation
    basicsr_fixes.apply()
    assert before == (basicsr.train.create_train_val_dataloader, SRModel.nondist_validation)


def test_resume_on_the_cpu_from_the_root_path_ends_in_the_same_weights(tmp_path, monkeypatch):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # the host looks for ./experiments
    torch.manual_seed(0)
    model = SRModel(make_opt(tmp_path))
    for i in range(1, 7):
        step(model, i)
        if i == 3:
            model.save(epoch=1, current_iter=3)
    opt = make_opt(tmp_path)
    state = basicsr.train.load_resume_state(opt)
    assert opt['resumed'] == {'epoch': 1, 'iter': 3}
    again = SRModel(opt)
    again.resume_training(state)
    for i in range(4, 7):
        step(again, i)
    assert torch.equal(weights(model), weights(again))
    assert again.get_current_learning_rate() == model.get_current_learning_rate() == [2.5e-4]


def save_at(root, *iterations):
    model = SRModel(make_opt(root))
    step(model, 1)
    for i in iterations:
        model.save(epoch=0, current_iter=i)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda root: os.truncate(root / 'training_states/10.state', 500),
        lambda root: os.truncate(root / 'models/net_g_10.pth', 500),
        lambda root: (root / 'training_states/10.state').write_bytes(b''),
        lambda root: (root / 'models/net_g_10.pth').unlink(),
        lambda root: torch.save([1, 2], root / 'training_states/10.state'),
    ],
    ids=['state cut', 'network cut', 'state empty', 'network missing', 'state of something else'],
)
def test_auto_resume_skips_a_spoilt_checkpoint(spoil, tmp_path, capsys):
    save_at(tmp_path, 9, 10)  # 9 is newer than 10 as a word
    spoil(tmp_path)
    opt = make_opt(tmp_path)
    assert basicsr.train.load_resume_state(opt)['iter'] == 9
    assert opt['path']['resume_state'].endswith('9.state')
    assert opt['path']['pretrain_network_g'].endswith('net_g_9.pth')
    assert '10.state is skipped' in capsys.readouterr().out


def test_auto_resume_takes_the_newest_and_nothing_where_there_is_nothing(tmp_path):
    assert basicsr.train.load_resume_state(make_opt(tmp_path)) is None
    save_at(tmp_path, 9, 10)
    assert basicsr.train.load_resume_state(make_opt(tmp_path))['iter'] == 10


def test_a_state_asked_for_by_name_is_not_passed_over(tmp_path):
    save_at(tmp_path, 9, 10)
    (tmp_path / 'models/net_g_10.pth').unlink()
    opt = make_opt(tmp_path)
    opt['auto_resume'] = False
    opt['path']['resume_state'] = str(tmp_path / 'training_states/10.state')
    with pytest.raises(UserError, match=r'net_g_10\.pth does not exist'):
        basicsr.train.load_resume_state(opt)
    opt['path']['resume_state'] = str(tmp_path / 'training_states/9.state')
    assert basicsr.train.load_resume_state(opt)['iter'] == 9


def test_a_save_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch, caplog):
    path = tmp_path / 'net_g_latest.pth'
    basicsr_resume.save_atomically({'value': 1}, path)

    def half(content, file):
        Path(file).write_bytes(b'half of it')
        raise OSError('no space left')

    monkeypatch.setattr(torch, 'save', half)
    monkeypatch.setattr(basicsr_resume.time, 'sleep', lambda _: None)
    monkeypatch.setattr(logging.getLogger('basicsr'), 'propagate', True)
    basicsr_resume.save_atomically({'value': 2}, path)
    assert torch.load(path) == {'value': 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert 'is not saved' in caplog.text


def test_checkpoints_of_the_host_go_through_it(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(basicsr_resume.os, 'replace', lambda source, target: written.append(Path(target).name))
    save_at(tmp_path, 5)
    assert written == ['net_g_5.pth', '5.state']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda opt: opt['network_g'].update(num_block=2), r'MSRResNet: 4 missing \(body\.1\.conv1\.weight, '),
        (
            lambda opt: opt['network_g'].update(num_feat=8),
            r'of another size \(conv_first\.weight \(4, 3, 3, 3\) instead of',
        ),
        (lambda opt: opt['path'].update(pretrain_network_g=OTHER), r"other\.pth has no 'params', only weights"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(change, message, tmp_path, monkeypatch):
    save_at(tmp_path, 5)
    opt = make_opt(tmp_path)
    opt['path']['pretrain_network_g'] = str(tmp_path / 'models/net_g_5.pth')
    torch.save({'weights': {}}, tmp_path / OTHER)
    monkeypatch.chdir(tmp_path)
    change(opt)
    with pytest.raises(UserError, match=message) as error:
        SRModel(opt)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('name', 'options'), [('AdamW', {'weight_decay': 0.1}), ('SGD', {'momentum': 0.9})])
def test_optimizers_beyond_adam_train_and_resume(name, options, tmp_path):
    model = SRModel(make_opt(tmp_path, optim_g={'type': name, 'lr': 1e-2, **options}))
    before = weights(model)
    step(model, 1)
    assert isinstance(model.optimizer_g, getattr(torch.optim, name))
    assert model.optimizer_g.defaults | options == model.optimizer_g.defaults
    assert not torch.equal(before, weights(model))


@pytest.mark.parametrize(
    ('optim', 'message'),
    [
        ({'type': 'AdamV', 'lr': 1e-2}, 'did you mean Adam'),
        ({'type': 'lr_scheduler', 'lr': 1e-2}, 'unknown optimizer'),
        ({'type': 'LBFGS', 'lr': 1e-2}, 'unknown optimizer'),
        ({'type': 'Adam', 'lr': 1e-2, 'beta': [0.9, 0.99]}, "no option 'beta'"),
    ],
)
def test_wrong_optimizers_are_named(optim, message, tmp_path):
    with pytest.raises(UserError, match=message):
        SRModel(make_opt(tmp_path, optim_g=optim))


def test_optimizers_and_schedulers_can_be_set_up_twice(tmp_path):
    opt = make_opt(tmp_path)
    model = SRModel(opt)
    assert model.opt['train']['optim_g']['type'] == 'Adam'
    assert model.opt['train']['scheduler'] == {'type': 'MultiStepLR', 'milestones': [2, 4], 'gamma': 0.5}
    model.setup_optimizers()
    model.setup_schedulers()
    assert (len(model.optimizers), len(model.schedulers)) == (2, 3)  # one more for each optimizer


def test_pictures_of_two_validation_sets_stand_apart(tmp_path):
    model = SRModel(make_opt(tmp_path))
    for name in ('set_x2', 'set_x3'):
        dataset = OneImage()
        dataset.opt = {'name': name}
        model.validation(DataLoader(dataset), 7, None, save_img=True)
    folder = tmp_path / 'visualization'
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob('*.png')) == [
        'set_x2/image/image_7.png',
        'set_x3/image/image_7.png',
    ]
    assert model.opt['path']['visualization'] == str(folder)


def test_distributed_on_the_cpu_trains_and_validates_the_bare_network(one_process, tmp_path):
    assert torch.distributed.get_backend() == 'gloo'
    model = SRModel(make_opt(tmp_path) | {'dist': True})
    assert isinstance(model.net_g, DistributedDataParallel)
    step(model, 1)
    wrapped = model.net_g
    wrapped.forward = None  # to call it would be an error: the other ranks are not in the validation
    model.validation(DataLoader(OneImage()), 1, None, save_img=False)
    assert model.net_g is wrapped
    assert wrapped.module.training


def test_a_network_without_parameters_is_not_wrapped(one_process, tmp_path):
    model = SRModel(make_opt(tmp_path) | {'dist': True})
    assert isinstance(model.model_to_device(nn.Upsample(scale_factor=2)), nn.Upsample)


@pytest.mark.parametrize(('method', 'expected'), [('forkserver', 'fork'), ('spawn', None), ('fork', None)])
def test_workers_are_forked_in_place_of_a_fork_server(monkeypatch, method, expected):
    monkeypatch.setattr(multiprocessing, 'get_start_method', lambda allow_none: method)
    for workers in (0, 1):
        loader = DataLoader(OneImage(), num_workers=workers)
        sampler.fork_workers(loader)
        context = loader.multiprocessing_context
        assert (context and context.get_start_method()) == (expected if workers else None)
