"""Damaged checkpoints and training states: one line that names the file, or exactly the weights that were saved."""

import copy
import random
import zipfile
from pathlib import Path

import pytest
import torch

from clit_basicsr.archs import build_network, load_checkpoint, save_checkpoint
from clit_basicsr.base.checkpoints import read_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.hosts.basicsr import resume

OPTIONS = {
    'type': 'CLIT',
    'encoder': {'type': 'EDSR', 'num_feat': 4, 'num_block': 1},
    'num_branches': 2,
    'dim': 4,
    'num_heads': 2,
    'grid_size': 3,
    'hidden_dims': [4],
}


def flip_bit(data, rng):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut_off(data, rng):
    del data[rng.randrange(len(data)) :]


def zero_block(data, rng):
    start = rng.randrange(len(data))
    data[start : start + 512] = bytes(len(data[start : start + 512]))


def swap_blocks(data, rng):
    a, b = (64 * rng.randrange(len(data) // 64 - 1) for _ in range(2))
    data[a : a + 64], data[b : b + 64] = data[b : b + 64], data[a : a + 64]


BYTES = [flip_bit, flip_bit, cut_off, zero_block, swap_blocks]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with a network in both formats, and a training state."""
    folder = tmp_path_factory.mktemp('saved')
    torch.manual_seed(0)
    net = build_network(OPTIONS)
    content = {'params': net.state_dict(), 'params_ema': net.state_dict(), 'network_g': OPTIONS}
    for suffix in ('pth', 'safetensors'):
        save_checkpoint(folder / f'net.{suffix}', content)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.upscale(torch.rand(1, 3, 3, 3), scale=2)
    sum((parameter**2).sum() for parameter in net.parameters()).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    state = {'epoch': 1, 'iter': 7, 'optimizers': [optimizer.state_dict()], 'schedulers': [scheduler.state_dict()]}
    resume.save_atomically(state, folder / '7.state')
    return folder


def load(path):
    """Everything that the program takes from a file, as one flat table."""
    if path.suffix == '.state':
        return flat(resume.read_state({'path': {'models': str(path.parent)}}, path))
    return flat(load_checkpoint(path).state_dict())


def flat(value, where=''):
    if isinstance(value, dict):
        return {key: item for name, one in value.items() for key, item in flat(one, f'{where}/{name}').items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), where)
    return {where: value}


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype if torch.is_tensor(a[key]) else a[key] == b[key]
        for key in a
    )


def outcome(path, expected):
    """'refused' or 'loaded'; anything else fails."""
    try:
        found = load(path)
    except UserError as error:
        assert path.name in str(error), error
        assert '\n' not in str(error)
        assert len(str(error)) < 600
        return 'refused'
    assert same(found, expected), path
    return 'loaded'


@pytest.mark.parametrize('name', ['net.pth', 'net.safetensors', '7.state'])
def test_damaged_bytes(name, saved, tmp_path):
    whole, expected, rng = (saved / name).read_bytes(), load(saved / name), random.Random(name)
    outcomes = []
    for number in range(50):
        data = bytearray(whole)
        BYTES[number % len(BYTES)](data, rng)
        (tmp_path / name).write_bytes(data)
        outcomes.append(outcome(tmp_path / name, expected))
    # In a small archive most bytes are padding and names of records.
    assert outcomes.count('refused') >= 25


def test_every_flipped_bit_of_a_weight_is_found(saved, tmp_path):
    for name in ('net.pth', 'net.safetensors', '7.state'):
        whole = (saved / name).read_bytes()
        content = read_checkpoint(saved / name)
        tensor = next(value for value in flat(content).values() if torch.is_tensor(value) and value.numel() > 100)
        at = whole.index(tensor.numpy().tobytes())
        for bit in (0, 7, 8 * 30 + 3, 8 * 100):
            data = bytearray(whole)
            data[at + bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(data)
            assert outcome(tmp_path / name, {}) == 'refused'


@pytest.mark.parametrize('name', ['net.pth', '7.state'])
def test_swapped_records_of_an_archive_with_right_checksums(name, saved, tmp_path):
    path = tmp_path / name
    with zipfile.ZipFile(saved / name) as archive, zipfile.ZipFile(path, 'w') as other:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
        sizes = {}
        for key, data in records.items():
            if '/data/' in key:
                sizes.setdefault(len(data), []).append(key)
        a, b = next((x, y) for keys in sizes.values() for x in keys for y in keys if x < y and records[x] != records[y])
        records[a], records[b] = records[b], records[a]
        for key, data in records.items():
            other.writestr(key, data)
        other.comment = archive.comment
    with pytest.raises(UserError, match=rf'{path.name} is damaged: its content is not what was saved'):
        load(path)


def test_a_file_without_digest_loads_as_before(saved, tmp_path):
    content = torch.load(saved / 'net.pth', weights_only=True)
    assert content.keys() == {'params', 'params_ema', 'network_g'}  # nothing that other programs do not expect
    torch.save(content, tmp_path / 'net.pth')
    torch.save(content, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    for name in ('net.pth', 'old.pth'):
        assert outcome(tmp_path / name, load(saved / 'net.pth')) == 'loaded'


WRONG = {
    'params a list': lambda c: c.update(params_ema=[1, 2]),
    'params a tensor': lambda c: c.update(params_ema=torch.zeros(3)),
    'params empty': lambda c: c.update(params_ema={}),
    'params of numbers': lambda c: c.update(params_ema={'a': 1}),
    'a weight a text': lambda c: c['params_ema'].update({'conv_in.weight': 'x'}),
    'a weight a list': lambda c: c['params_ema'].update({'conv_in.weight': [1.0]}),
    'a weight None': lambda c: c['params_ema'].update({'conv_in.weight': None}),
    'a key a number': lambda c: c['params_ema'].update({3: torch.zeros(1)}),
    'a key missing': lambda c: c['params_ema'].pop('conv_in.weight'),
    'a key too many': lambda c: c['params_ema'].update(more=torch.zeros(1)),
    'another shape': lambda c: c['params_ema'].update({'conv_in.bias': torch.zeros(5)}),
    'no shape': lambda c: c['params_ema'].update({'conv_in.weight': torch.tensor(1.0)}),
    'whole numbers': lambda c: c['params_ema'].update({'conv_in.bias': torch.zeros(4, dtype=torch.int64)}),
    'complex numbers': lambda c: c['params_ema'].update({'conv_in.bias': torch.zeros(4, dtype=torch.complex64)}),
    'a sparse weight': lambda c: c['params_ema'].update({'conv_in.bias': torch.zeros(4).to_sparse()}),
    'NaN': lambda c: c['params_ema']['conv_in.bias'].fill_(float('nan')),
    'infinity': lambda c: c['params_ema']['conv_in.bias'][1:2].fill_(float('inf')),
    'no branch trained': lambda c: c['params_ema'].update(trained_branches=torch.tensor(0)),
    'too many branches trained': lambda c: c['params_ema'].update(trained_branches=torch.tensor(9)),
    'branches trained, a vector': lambda c: c['params_ema'].update(trained_branches=torch.ones(2).long()),
    'options a list': lambda c: c.update(network_g=[1]),
    'options a text': lambda c: c.update(network_g='CLIT'),
    'options None': lambda c: c.update(network_g=None),
    'options empty': lambda c: c.update(network_g={}),
    'type a number': lambda c: c['network_g'].update(type=3),
    'type a list': lambda c: c['network_g'].update(type=['CLIT']),
    'no encoder': lambda c: c['network_g'].pop('encoder'),
    'encoder a text': lambda c: c['network_g'].update(encoder='EDSR'),
    'encoder a list': lambda c: c['network_g'].update(encoder=[{}]),
    'encoder empty': lambda c: c['network_g'].update(encoder={}),
    'encoder type a list': lambda c: c['network_g']['encoder'].update(type=[1]),
    'blocks a text': lambda c: c['network_g']['encoder'].update(num_block='1'),
    'blocks negative': lambda c: c['network_g']['encoder'].update(num_block=-1),
    'features 0': lambda c: c['network_g']['encoder'].update(num_feat=0),
    'range a text': lambda c: c['network_g']['encoder'].update(img_range='x'),
    'mean too short': lambda c: c['network_g']['encoder'].update(rgb_mean=[0.5]),
    'dim a float': lambda c: c['network_g'].update(dim=4.5),
    'dim a text': lambda c: c['network_g'].update(dim='4'),
    'dim negative': lambda c: c['network_g'].update(dim=-4),
    'dim another': lambda c: c['network_g'].update(dim=6),
    'heads 0': lambda c: c['network_g'].update(num_heads=0),
    'hidden a number': lambda c: c['network_g'].update(hidden_dims=4),
    'hidden of texts': lambda c: c['network_g'].update(hidden_dims=['4']),
    'encoding unknown': lambda c: c['network_g'].update(position_encoding='other'),
    'encoding empty': lambda c: c['network_g'].update(position_encoding={}),
    'encoding of texts': lambda c: c['network_g'].update(position_encoding={'scale': 'a', 'dims': 'b'}),
    'an option too many': lambda c: c['network_g'].update(more=1),
    'an option key a number': lambda c: c['network_g'].update({3: 1}),
    'no weights': lambda c: [c.pop(key) for key in ('params', 'params_ema')],
}


@pytest.mark.filterwarnings('ignore:Initializing zero-element:UserWarning')
@pytest.mark.parametrize('wrong', WRONG)
def test_wrong_content(wrong, saved, tmp_path):
    content = copy.deepcopy(torch.load(saved / 'net.pth', weights_only=True))
    WRONG[wrong](content)
    for number, form in enumerate(('zip', 'legacy')):
        path = tmp_path / f'a{number}.pth'
        torch.save(content, path, _use_new_zipfile_serialization=form == 'zip')
        assert outcome(path, {}) == 'refused'


def first_parameter(state):
    return state['optimizers'][0]['state'][0]


WRONG_STATES = {
    'no iter': lambda s: s.pop('iter'),
    'iter a text': lambda s: s.update(iter='7'),
    'iter a float': lambda s: s.update(iter=7.5),
    'iter negative': lambda s: s.update(iter=-1),
    'iter a tensor': lambda s: s.update(iter=torch.tensor(7)),
    'no epoch': lambda s: s.pop('epoch'),
    'epoch None': lambda s: s.update(epoch=None),
    'no optimizers': lambda s: s.pop('optimizers'),
    'optimizers a dict': lambda s: s.update(optimizers={}),
    'optimizers of numbers': lambda s: s.update(optimizers=[1]),
    'no schedulers': lambda s: s.pop('schedulers'),
    'schedulers None': lambda s: s.update(schedulers=None),
    'no groups': lambda s: s['optimizers'][0].pop('param_groups'),
    'groups of texts': lambda s: s['optimizers'][0].update(param_groups=['a']),
    'groups without params': lambda s: s['optimizers'][0]['param_groups'][0].pop('params'),
    'state a list': lambda s: s['optimizers'][0].update(state=[]),
    'state of numbers': lambda s: s['optimizers'][0].update(state={0: 1}),
    'moments of other shapes': lambda s: first_parameter(s).update(exp_avg=torch.zeros(2)),
    'NaN in a moment': lambda s: first_parameter(s)['exp_avg_sq'].fill_(float('nan')),
}


@pytest.mark.parametrize('wrong', WRONG_STATES)
def test_wrong_training_states(wrong, saved, tmp_path):
    state = copy.deepcopy(torch.load(saved / '7.state', weights_only=True))
    WRONG_STATES[wrong](state)
    torch.save(state, tmp_path / '7.state')
    assert outcome(tmp_path / '7.state', {}) == 'refused'


def test_damaged_files_of_the_format_before_torch_1_6(saved, tmp_path):
    """Such a file has no checksum: a changed weight cannot be told, a changed structure can."""
    content = torch.load(saved / 'net.pth', weights_only=True)
    torch.save(content, tmp_path / 'whole.pth', _use_new_zipfile_serialization=False)
    whole, rng = (tmp_path / 'whole.pth').read_bytes(), random.Random(3)
    path: Path = tmp_path / 'a.pth'
    refused = 0
    for _ in range(20):
        path.write_bytes(whole[: rng.randrange(len(whole))])
        refused += outcome(path, {}) == 'refused'
    for _ in range(20):  # the pickles of structure and names come first
        data = bytearray(whole)
        data[rng.randrange(200)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        refused += outcome(path, load(saved / 'net.pth')) == 'refused'
    assert refused >= 30
