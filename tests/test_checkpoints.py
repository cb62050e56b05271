"""Checkpoints that know their options, safetensors, and the conversion of published files."""

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.golden import FILES, PEERS, read, relative_difference

from clit_basicsr import published
from clit_basicsr.archs import build_network, load_checkpoint, save_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.safetensors_file import read_safetensors, write_safetensors
from clit_basicsr.cli import convert, info, main
from clit_basicsr.hosts.basicsr.resume import save_network

OPTIONS = {
    'type': 'CLIT',
    'encoder': {'type': 'EDSR', 'num_feat': 8, 'num_block': 1},
    'num_branches': 2,
    'dim': 8,
    'num_heads': 2,
    'grid_size': 3,
    'hidden_dims': (8,),
}


def run(module, *arguments):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(argument) for argument in arguments]))


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.fixture
def net():
    torch.manual_seed(1)
    net = build_network(OPTIONS)
    net.trained_branches.fill_(1)
    return net.eval()


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_checkpoint_needs_no_option_file(suffix, net, tmp_path):
    path = str(tmp_path / f'net.{suffix}')
    wrong = {key: torch.zeros_like(value) for key, value in net.state_dict().items()}
    save_checkpoint(path, {'params': wrong, 'params_ema': net.state_dict(), 'network_g': OPTIONS})
    loaded = load_checkpoint(path)
    assert same_weights(loaded.state_dict(), net.state_dict())
    assert loaded.num_trained_branches == 1
    x = torch.rand(1, 3, 5, 6)
    assert torch.equal(loaded.upscale(x, scale=2.5), net.upscale(x, scale=2.5))
    assert [p.name for p in tmp_path.iterdir()] == [f'net.{suffix}']


def test_what_training_saves(net, tmp_path):
    class Model:
        opt = {'rank': 0, 'network_g': OPTIONS, 'path': {'models': str(tmp_path)}}

        def get_bare_model(self, one):
            return one

    save_network(Model(), net, 'net_g', 7)
    loaded = load_checkpoint(str(tmp_path / 'net_g_7.pth'))
    assert same_weights(loaded.state_dict(), net.state_dict())


def test_safetensors_of_every_type(tmp_path):
    tensors = {str(t): torch.arange(-3, 5).to(t).reshape(2, 4) for t in (torch.float64, torch.float32, torch.bfloat16)}
    tensors |= {str(t): torch.arange(8).to(t) for t in (torch.float16, torch.int64, torch.int32, torch.int16)}
    tensors |= {'u8': torch.arange(3, dtype=torch.uint8), 'b': torch.tensor([True, False, True])}
    tensors |= {'scalar': torch.tensor(2.5), 'empty': torch.zeros(0, 3), 'turned': torch.rand(3, 5).t()}
    write_safetensors(tmp_path / 'a.safetensors', tensors, {'ä': 'ö'})
    read_back, metadata = read_safetensors(tmp_path / 'a.safetensors')
    assert same_weights(read_back, tensors)
    assert metadata == {'ä': 'ö'}


def test_safetensors_by_hand(tmp_path):
    header = json.dumps({'x': {'dtype': 'F32', 'shape': [1, 2], 'data_offsets': [0, 8]}}).encode()
    (tmp_path / 'a.safetensors').write_bytes(struct.pack('<Q', len(header)) + header + struct.pack('<2f', 1.5, -2))
    tensors, metadata = read_safetensors(tmp_path / 'a.safetensors')
    assert tensors['x'].tolist() == [[1.5, -2.0]]
    assert metadata == {}


def test_safetensors_of_the_library(tmp_path):
    library = pytest.importorskip('safetensors.torch')
    tensors = {'a': torch.rand(2, 3), 'n': torch.tensor(3)}
    library.save_file(tensors, tmp_path / 'a.safetensors', {'k': 'v'})
    assert same_weights(read_safetensors(tmp_path / 'a.safetensors')[0], tensors)
    write_safetensors(tmp_path / 'b.safetensors', tensors, {'k': 'v'})
    assert same_weights(library.load_file(tmp_path / 'b.safetensors'), tensors)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_damaged_files(suffix, net, tmp_path):
    path = tmp_path / f'net.{suffix}'
    save_checkpoint(str(path), {'params': net.state_dict(), 'network_g': OPTIONS})
    whole = path.read_bytes()
    for content in (b'', whole[:5], whole[: len(whole) // 2], whole[:-1], b'\xff' * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match=path.name) as error:
            load_checkpoint(str(path))
        assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'params': {}}, 'no network_g'),
        ({'model': {}}, 'basicsr convert'),
        ({'network_g': OPTIONS}, 'holds no weights'),
        ({'params': {}, 'network_g': OPTIONS}, 'do not fit CLIT'),
        ({'params': {}, 'network_g': {'type': 'XLIT'}}, "'XLIT' is not a known network"),
        ({'params': {}, 'network_g': {**OPTIONS, 'heads': 2}}, "no option 'heads'"),
    ],
)
def test_files_of_something_else(content, message, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(str(tmp_path / 'a.pth'))
    assert '\n' not in str(error.value)


def test_options_that_are_not_plain(net, tmp_path):
    with pytest.raises(UserError, match='ndarray'):
        save_checkpoint(str(tmp_path / 'a.pth'), {'params': {}, 'network_g': {'x': np.zeros(2)}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', [*FILES[:1], FILES[3], *(name for name in PEERS if not name.endswith('dense_x3'))])
def test_published_file_there_and_back(name, tmp_path, capsys):
    meta, weights, data = read(name)
    converted = published.convert(meta['kind'], weights, **{k: v for k, v in meta.items() if k != 'kind'})
    args = published.to_published(converted.network_g, converted.params, converted.unused)['args']
    torch.save({'model': {'name': meta['kind'], 'args': args, 'sd': weights}, 'epoch': 3}, tmp_path / 'theirs.pth')
    run(convert, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    run(convert, tmp_path / 'ours.pth', tmp_path / 'ours.safetensors')
    run(convert, '--to-published', tmp_path / 'ours.pth', tmp_path / 'back.pth')
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['model']
    assert same_weights(back['sd'], weights)
    assert (back['name'], back['args']) == (meta['kind'], args)
    for file in ('ours.pth', 'ours.safetensors'):
        net = load_checkpoint(str(tmp_path / file))
        assert same_weights(net.state_dict(), published.load_file(str(tmp_path / 'theirs.pth')).state_dict())
        if 'out' in data:
            with torch.no_grad():
                out = net(data['inp'] * 0.5 + 0.5, data['coord'], data['cell'])
            assert relative_difference((out - 0.5) / 0.5, data['out']) < 1e-5
    for file in ('theirs.pth', 'ours.pth', 'ours.safetensors'):
        run(info, tmp_path / file)
        assert f'network: {type(net).__name__}' in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ['back.pth', 'ours.pth', 'ours.safetensors', 'theirs.pth']


def test_networks_without_published_code(tmp_path):
    encoder = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
    for options, message in (
        ({**OPTIONS, 'encoder': encoder}, 'position_encoding: paper'),
        ({**OPTIONS, 'position_encoding': 'published'}, 'range 255'),
        ({'type': 'Bicubic'}, 'no published code exists for Bicubic'),
    ):
        with pytest.raises(UserError, match=message):
            published.to_published(options, build_network(options).state_dict())


@pytest.mark.parametrize('options', [(), ('--to-published',)])
def test_a_conversion_that_cannot_be_written_leaves_nothing(tmp_path, capsys, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    meta, weights, _ = read(FILES[0])
    converted = published.convert(meta['kind'], weights, **{k: v for k, v in meta.items() if k != 'kind'})
    save_checkpoint('in.pth', {'network_g': converted.network_g, 'params': converted.params})

    def full(content, path, *_, **__):
        Path(path).write_bytes(b'half of it')
        raise RuntimeError('[enforce fail] PytorchStreamWriter failed writing file')

    monkeypatch.setattr(torch, 'save', full)
    assert main(['convert', 'in.pth', 'out.pth', *options, '--param_key', 'params']) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert 'out.pth cannot be written (' in error
    assert not list(Path().glob('out*'))


@pytest.mark.parametrize('encoding', ['published', {'scale': 8, 'dims': 32}, {'scale': 2.5, 'dims': 8}])
def test_any_published_positional_encoding_loads_and_goes_back(encoding):
    torch.manual_seed(2)
    encoder = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
    options = {**OPTIONS, 'encoder': encoder, 'position_encoding': encoding}
    net = build_network(options).eval()
    spec = published.to_published(options, net.state_dict())
    block = {'scale': 10, 'dims': 64} if encoding == 'published' else encoding
    bias = spec['args']['pb_spec']['args']
    assert (bias['posenc_scale'], bias['enc_dims']) == (block['scale'], block['dims'])
    converted = published.convert(spec['name'], spec['sd'], **published.meta_of(spec['args']))
    assert converted.network_g['position_encoding'] == encoding
    again = published.load(spec['name'], spec['sd'], **published.meta_of(spec['args']))
    lq = torch.rand(1, 3, 5, 6)
    assert torch.equal(again.upscale(lq, scale=(2.5, 3)), net.upscale(lq, scale=(2.5, 3)))
    with pytest.raises(UserError, match='enc_dims'):
        wrong = {**published.meta_of(spec['args']), 'posenc_dims': block['dims'] + 4}
        published.convert(spec['name'], spec['sd'], **wrong)


def test_an_encoder_without_published_code_is_refused():
    options = {**OPTIONS, 'position_encoding': 'published', 'encoder': {'type': 'MSRResNet', 'num_feat': 8}}
    options['encoder'] |= {'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
    with pytest.raises(UserError, match='encoder MSRResNet'):
        published.to_published(options, build_network(options).state_dict())


def test_branches_that_are_not_trained_are_not_published():
    encoder = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
    options = {**OPTIONS, 'encoder': encoder, 'position_encoding': 'published', 'num_branches': 2}
    net = build_network(options)
    assert published.to_published(options, net.state_dict())
    net.trained_branches.fill_(1)
    with pytest.raises(UserError, match='1 of 2 branches are trained'):
        published.to_published(options, net.state_dict())
    # The weight of earlier branches means nothing to a single one.
    one = {**options, 'num_branches': 1, 'residual_weight': 1}
    assert published.to_published(one, build_network(one).state_dict())
