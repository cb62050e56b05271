"""`basicsr convert`: what it writes, what it refuses, and how a network becomes publishable."""

import pytest
import torch
from helpers.networks import SMALL_CLIT as OPTIONS
from helpers.networks import SMALL_EDSR as EDSR

from clit_basicsr.archs import build_network, load_checkpoint, save_checkpoint
from clit_basicsr.base.checkpoints import read_checkpoint
from clit_basicsr.cli import main

PUBLISHABLE = {'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}


def make(options=OPTIONS, seed=1):
    torch.manual_seed(seed)
    return build_network(options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The working directory, with a.pth, both of whose weights differ, and a photograph."""
    monkeypatch.chdir(tmp_path)
    content = {'params': make().state_dict(), 'params_ema': make(seed=2).state_dict(), 'network_g': OPTIONS}
    save_checkpoint('a.pth', content)
    (tmp_path / 'photo.jpg').write_bytes(b'a photograph')
    (tmp_path / 'b.pth').write_bytes(b'something precious')
    return tmp_path


def convert(capsys, *arguments):
    code = main(['convert', *arguments])
    captured = capsys.readouterr()
    assert captured.err.count('\n') == (1 if code else 0)
    return code, captured.err


def test_convert_overwrites_only_with_f_and_its_input_never(workplace, capsys):
    before = (workplace / 'a.pth').read_bytes()
    assert 'b.pth already exists; use -f to overwrite it' in convert(capsys, 'a.pth', 'b.pth')[1]
    assert (workplace / 'b.pth').read_bytes() == b'something precious'
    for force in ((), ('-f',)):
        assert 'inputs are never overwritten' in convert(capsys, 'a.pth', './a.pth', *force)[1]
    assert (workplace / 'a.pth').read_bytes() == before
    assert convert(capsys, 'a.pth', 'b.pth', '-f')[0] == 0
    assert same(load_checkpoint('b.pth').state_dict(), make(seed=2).state_dict())


@pytest.mark.parametrize('name', ['photo.jpg', 'c.onnx', 'c', 'c.pth.txt', 'c.PTH'])
def test_convert_writes_checkpoints_only(name, workplace, capsys):
    before = sorted(workplace.iterdir())
    assert '.pth, .pt, .safetensors' in convert(capsys, 'a.pth', name, '-f')[1]
    assert sorted(workplace.iterdir()) == before
    assert (workplace / 'photo.jpg').read_bytes() == b'a photograph'


@pytest.mark.parametrize(
    ('output', 'flags', 'there'),
    [
        ('c.pt', (), {'params': 1, 'params_ema': 2}),
        ('c.pth', ('--param_key', 'params'), {'params': 1}),
        ('c.pth', ('--param_key', 'params_ema'), {'params': 2}),
        ('c.safetensors', (), {'params': 2}),
        ('c.safetensors', ('--param_key', 'params'), {'params': 1}),
    ],
)
def test_which_weights_convert_takes(output, flags, there, workplace, capsys):
    assert convert(capsys, 'a.pth', output, *flags)[0] == 0
    content = read_checkpoint(output)
    assert {key for key in content if key.startswith('params')} == set(there)
    for key, seed in there.items():
        assert same(content[key], make(seed=seed).state_dict())


def test_a_param_key_that_is_not_there(workplace, capsys):
    assert 'params_ema or params' in convert(capsys, 'a.pth', 'c.pth', '--param_key', 'ema')[1]
    save_checkpoint('d.pth', {'params': make().state_dict(), 'network_g': OPTIONS})
    assert (
        "no 'params_ema'; --param_key can be params"
        in convert(capsys, 'd.pth', 'c.pth', '--to-published', '--param_key', 'params_ema')[1]
    )


def test_convert_checks_what_it_converts(workplace, capsys):
    weights = make().state_dict()
    weights['conv_in.weight'][0, 0, 0] = float('nan')
    save_checkpoint('a.pth', {'params': weights, 'network_g': OPTIONS})
    assert '3 values are NaN or infinite' in convert(capsys, 'a.pth', 'c.pth')[1]
    torch.save({'params': {}, 'network_g': OPTIONS}, 'a.pth')
    assert 'a.pth: the weights do not fit CLIT' in convert(capsys, 'a.pth', 'c.pth')[1]
    assert not (workplace / 'c.pth').exists()


LIT = {key: value for key, value in OPTIONS.items() if key != 'num_branches'} | {'type': 'LIT'}
READY = {'position_encoding': 'published', 'encoder': {**EDSR, **PUBLISHABLE}}
# A network that the published code cannot build, words of the message, and the options that they name.
UNPUBLISHABLE = {
    'bias': ({**OPTIONS, **READY, 'position_encoding': 'paper'}, READY, ['position_encoding: published']),
    'encoder': ({**OPTIONS, **READY, 'encoder': EDSR}, READY, ['img_range: 2', 'rgb_mean: [0.5, 0.5, 0.5]']),
    'values': ({**OPTIONS, **READY, 'aggregation': 'sum'}, {'aggregation': 'flatten'}, ['aggregation: flatten']),
    'upsampling': (
        {**OPTIONS, **READY, 'upsampling_padding': 'border'},
        {'upsampling_padding': 'zeros'},
        ['upsampling_padding: zeros'],
    ),
    'residual': ({**OPTIONS, **READY, 'residual_weight': 1}, {'residual_weight': 0.75}, ['residual_weight: 0.75']),
    'frequencies': (
        {**LIT, **READY, 'frequency_dims': 8},
        {'first_conv': False, 'grid_size': 7},
        ['first_conv: false', 'grid_size: 7'],
    ),
    'ensemble': (
        {**LIT, **READY, 'local_ensemble': True, 'first_conv': False},
        {'local_ensemble': False, 'first_conv': True},
        ['local_ensemble: false', 'first_conv: true'],
    ),
    'LTE': (
        {'type': 'LTE', 'encoder': READY['encoder'], 'dim': 8, 'hidden_dims': [8], 'local_ensemble': False},
        {'local_ensemble': True},
        ['local_ensemble: true'],
    ),
    'MetaSR': (
        {'type': 'MetaSR', 'encoder': READY['encoder'], 'hidden_dims': [8]},
        {'hidden_dims': [256]},
        ['hidden_dims: [256]'],
    ),
}


@pytest.mark.parametrize('kind', UNPUBLISHABLE)
def test_the_message_names_what_makes_a_network_publishable(kind, workplace, capsys):
    options, remedy, words = UNPUBLISHABLE[kind]
    save_checkpoint('n.pth', {'params': make(options).state_dict(), 'network_g': options})
    code, error = convert(capsys, 'n.pth', 'c.pth', '--to-published')
    assert code == 1
    assert all(word in error for word in words), error
    options = {**options, **remedy}
    save_checkpoint('n.pth', {'params': make(options).state_dict(), 'network_g': options})
    assert convert(capsys, 'n.pth', 'new/c.pth', '--to-published')[0] == 0
    assert read_checkpoint('new/c.pth')['model'].keys() == {'name', 'args', 'sd'}


# Published files with wrong content


WRONG_SPECS = {
    'sd a list': lambda s: s.update(sd=[]),
    'sd of numbers': lambda s: s.update(sd={'a': 1}),
    'sd empty': lambda s: s.update(sd={}),
    'name a list': lambda s: s.update(name=['liif']),
    'name unknown': lambda s: s.update(name='edsr'),
    'args a list': lambda s: s.update(args=[]),
    'encoder_spec a list': lambda s: s['args'].update(encoder_spec=[1]),
    'args of encoder_spec a text': lambda s: s['args'].update(encoder_spec={'args': 'x'}),
    'res_scale a text': lambda s: s['args'].update(encoder_spec={'args': {'res_scale': 'x'}}),
    'a weight missing': lambda s: s['sd'].pop('imnet.layers.0.weight'),
    'the first weight missing': lambda s: s['sd'].pop('encoder.head.0.weight'),
    'a weight a number': lambda s: s['sd'].update({'imnet.layers.0.weight': torch.tensor(1.0)}),
    'a weight empty': lambda s: s['sd'].update({'imnet.layers.0.weight': torch.zeros(0, 0)}),
    'a weight of the encoder a number': lambda s: s['sd'].update({'encoder.head.0.weight': torch.tensor(1.0)}),
    'NaN': lambda s: s['sd']['imnet.layers.0.bias'].fill_(float('nan')),
}


@pytest.mark.parametrize('kind', WRONG_SPECS)
def test_published_files_with_wrong_content(kind, workplace, capsys):
    options = {'type': 'LIIF', 'encoder': READY['encoder'], 'hidden_dims': [8]}
    save_checkpoint('n.pth', {'params': make(options).state_dict(), 'network_g': options})
    assert convert(capsys, 'n.pth', 'theirs.pth', '--to-published')[0] == 0
    spec = read_checkpoint('theirs.pth')['model']
    WRONG_SPECS[kind](spec)
    torch.save({'model': spec}, 'theirs.pth')
    code, error = convert(capsys, 'theirs.pth', 'c.pth')
    assert code == 1
    assert 'theirs.pth' in error
    assert main(['info', 'theirs.pth']) == 1
    assert not (workplace / 'c.pth').exists()
