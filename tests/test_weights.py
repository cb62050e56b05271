"""The networks that come with the package: packed, named, read, and refused where they are damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.awkward_pictures import color
from helpers.tiny_network import CARD, OPTIONS, answer, build, levels, save

import clit_basicsr
from clit_basicsr import weights
from clit_basicsr.archs import build_network, save_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.cli import main
from clit_basicsr.pictures import files

sys.path.insert(0, str(Path(__file__).parents[1] / 'scripts'))
import pack_weights

SUMMARY = {
    'psnr': 'psnr',
    'rows': [
        {'data_set': 'Set5', 'scale': [2, 2], 'protocol': 'benchmark', 'lr': 'given', 'values': {'psnr': 37.81234}},
        {'data_set': 'Set5', 'scale': [2, 3.5], 'protocol': 'benchmark', 'lr': 'pil', 'values': {'psnr': 34.2}},
    ],
}


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A box with one network, packed from an experiment by the script; the working directory is beside it."""
    box = tmp_path / 'box'
    box.mkdir()
    monkeypatch.setattr(weights, 'FOLDER', box)
    monkeypatch.chdir(tmp_path)
    options = {**OPTIONS, 'encoder': {**OPTIONS['encoder'], 'rgb_mean': [0.4488, 0.4371, 0.404]}}  # no half precision
    net = build(options)
    averaged = {name: value * 1.25 if value.is_floating_point() else value for name, value in net.state_dict().items()}
    averaged.update((name, value) for name, value in net.named_buffers() if name in averaged)
    os.makedirs('experiments/run/models')
    content = {'params': net.state_dict(), 'params_ema': averaged, 'network_g': options}
    save_checkpoint('experiments/run/models/net_g_latest.pth', content)
    Path('card.json').write_text(json.dumps(CARD))
    Path('summary.json').write_text(json.dumps(SUMMARY))
    assert pack('clit-light', '--figures', 'summary.json') == 0
    net.load_state_dict(averaged)
    return net


def pack(name, *arguments, model='run', card='card.json'):
    line = ['pack_weights.py', model, name, '--card', card, *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', line)
        return pack_weights.main()


def test_a_packed_network_is_the_averaged_one_in_half_precision(packed, capsys):
    net = clit_basicsr.load()
    assert not net.training
    buffers = dict(packed.named_buffers())
    expected = packed.state_dict()
    assert net.state_dict().keys() == expected.keys()
    for name, value in net.state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name] if name in buffers else expected[name].half().float()), name
    lq = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    found, wanted = (one.upscale(lq, scale=(2, 3.3)) for one in (net, packed))
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()
    size = os.path.getsize(weights.FOLDER / 'clit-light.safetensors')
    numbers = sum(parameter.numel() for parameter in net.parameters())
    assert 2 * numbers < size < 2 * numbers + 16_384
    card = weights.card_of('clit-light')
    assert (card['bytes'], card['parameters'], card['license']) == (size, numbers, 'CC0-1.0')
    assert [(one['scale'], one['psnr']) for one in card['figures']] == [('2', 37.812), ('2x3.5', 34.2)]
    before = card['sha256']
    assert pack('clit-light') == 1  # what is there stays
    assert 'already exists; use -f to overwrite it' in capsys.readouterr().err
    assert pack('clit-light', '-f') == 0
    assert weights.card_of('clit-light')['sha256'] == before  # the same weights, the same file


def test_which_network_is_taken(packed, capsys):
    """A file before an experiment, an experiment before the package; without a name always the package's."""
    save('a.png', color())

    def answered(*arguments):
        assert main(['upscale', 'a.png', '-s', '2.5', '-o', 'b.png', '-f', *arguments]) == 0
        return capsys.readouterr().out.splitlines()[0], files.read('b.png').pixels

    def is_of(net, pixels):
        return np.abs(pixels - levels(answer(net, color(), scale=2.5))).max() < 0.51

    first, pixels = answered()
    assert first == 'clit-light: LIT on cpu, single precision' and is_of(clit_basicsr.load(), pixels)
    assert np.array_equal(answered('--model', 'clit-light')[1], pixels)
    assert np.array_equal(clit_basicsr.upscale('a.png', 2.5), pixels)
    torch.manual_seed(3)
    other = build_network(OPTIONS).eval()
    os.makedirs('experiments/clit-light/models')
    content = {'params': other.state_dict(), 'network_g': OPTIONS}
    save_checkpoint('experiments/clit-light/models/net_g_5.pth', content)
    assert not is_of(other, pixels)
    assert is_of(other, answered('--model', 'clit-light')[1])
    assert np.array_equal(answered()[1], pixels)
    save_checkpoint('copy.pth', {'params': packed.state_dict(), 'network_g': {**OPTIONS, 'encoder': encoder(packed)}})
    Path('copy.pth').rename('clit-light')
    assert is_of(packed, answered('--model', 'clit-light')[1])
    assert main(['upscale', 'a.png', '-s', '2', '-o', 'c.png', '--model', 'clit-lite']) == 1
    line = capsys.readouterr().err
    assert 'trained here: clit-light, run; in the package: clit-light.' in line and line.count('\n') == 1
    with pytest.raises(UserError, match='in the package: clit-light'):
        clit_basicsr.load('nowhere')


def encoder(net):
    mean = net.encoder.input_mean.flatten().tolist()
    return {**OPTIONS['encoder'], 'rgb_mean': mean}


def test_an_empty_box_says_so_and_what_there_is(packed, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, 'FOLDER', tmp_path / 'nothing')
    save('a.png', color())
    assert main(['upscale', 'a.png', '-s', '2', '-o', 'b.png']) == 1
    line = capsys.readouterr().err
    assert line.count('\n') == 1
    for words in ('clit-light, the default, does not come with', 'trained here: run', 'no network comes with'):
        assert words in line
    assert not os.path.exists('b.png')


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


DAMAGE = {
    'a bit of the weights': ('safetensors', flip, 'SHA-256 is not that of its card; install the package again'),
    'cut off': ('safetensors', lambda path: path.write_bytes(path.read_bytes()[:-100]), 'SHA-256 is not that'),
    'no card': ('json', Path.unlink, 'cannot be read (No such file or directory)'),
    'an empty card': ('json', lambda path: path.write_text(''), 'is damaged or not a card'),
    'a card without digest': ('json', lambda path: path.write_text(json.dumps(CARD)), 'figures is missing'),
    'a list': ('json', lambda path: path.write_text('[]'), 'a card is a table'),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_network_is_refused_in_one_line(packed, capsys, damage):
    suffix, spoil, words = DAMAGE[damage]
    path = weights.FOLDER / f'clit-light.{suffix}'
    spoil(path)
    save('a.png', color())
    for model in ([], ['--model', 'clit-light'], ['--model', str(weights.FOLDER / 'clit-light.safetensors')]):
        assert main(['upscale', 'a.png', '-s', '2', '-o', 'b.png', *model]) == 1
        line = capsys.readouterr().err
        assert words in line and line.count('\n') == 1, line
    assert not os.path.exists('b.png')


def test_info_shows_the_card(packed, capsys):
    assert main(['info', 'clit-light']) == 0
    out = capsys.readouterr().out
    for words in ('a network for tests', 'license: CC0-1.0', 'Set5, PSNR in dB (benchmark, LR given): x2 37.81', 'LIT'):
        assert words in out


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'license': ''}, "license is ''"),
        ({'data': []}, 'data is []'),
        ({'data': [{'name': 'x', 'origin': 'y'}]}, 'each entry of data has'),
        ({'hours': '8'}, "hours is '8'"),
        ({'sha256': '0'}, 'sha256 must not be in it'),
        ({'licence': 'CC0'}, 'licence is not a key of a card'),
    ],
)
def test_cards_that_lack_something_are_refused(packed, capsys, change, message):
    Path('other.json').write_text(json.dumps({**CARD, **change}))
    assert pack('new', card='other.json') == 1
    assert message in capsys.readouterr().err
    assert weights.names() == ['clit-light']


def test_files_that_are_too_large_are_refused(packed, capsys, monkeypatch):
    size = os.path.getsize(weights.FOLDER / 'clit-light.safetensors')
    assert pack('Clit Light') == 1
    assert 'lower-case letters' in capsys.readouterr().err
    monkeypatch.setattr(weights, 'MOST_BYTES', size - 1)
    assert pack('new') == 1
    assert 'the file would have' in capsys.readouterr().err
    monkeypatch.setattr(weights, 'MOST_BYTES', size)
    monkeypatch.setattr(weights, 'MOST_BYTES_TOGETHER', 2 * size - 1)
    assert pack('new') == 1
    assert 'all files together would have' in capsys.readouterr().err
    assert sorted(os.listdir(weights.FOLDER)) == ['clit-light.json', 'clit-light.safetensors']
    monkeypatch.setattr(weights, 'MOST_BYTES_TOGETHER', 2 * size)
    assert pack('new') == 0 and weights.names() == ['clit-light', 'new']
    large = {name: value * 1e6 if value.is_floating_point() else value for name, value in packed.state_dict().items()}
    save_checkpoint('large.pth', {'params': large, 'network_g': {**OPTIONS, 'encoder': encoder(packed)}})
    assert pack('large', model='large.pth') == 1
    assert 'half precision cannot hold' in capsys.readouterr().err


def test_what_is_committed_in_the_box_is_whole():
    """Cards, digests and sizes of the networks that come with the package, whichever they are, and that they load."""
    code = 'from clit_basicsr import load, weights; print([(name, load(name).training) for name in weights.names()])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([(name, False) for name in weights.names()])
    found = list(weights.FOLDER.glob('*.safetensors'))
    cards = {path.stem for path in weights.FOLDER.glob('*.json')}
    assert cards == {path.stem for path in found}
    sizes = [path.stat().st_size for path in found]
    assert max(sizes, default=0) <= weights.MOST_BYTES and sum(sizes) <= weights.MOST_BYTES_TOGETHER
