"""What a file of weights may be of, and .safetensors wherever .pth may stand."""

import json
import struct
import time

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from helpers.loading import Loading
from helpers.networks import SMALL_CLIT as OPTIONS
from helpers.networks import SMALL_EDSR as EDSR
from helpers.networks import SWINIR
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clit_basicsr.archs import build_network, load_checkpoint, save_checkpoint
from clit_basicsr.archs.encoders import build_encoder, load_pretrained
from clit_basicsr.base.checkpoints import read_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.safetensors_file import MAX_HEADER, read_safetensors
from clit_basicsr.cli import main
from clit_basicsr.hosts.basicsr import resume


def make(options=OPTIONS, seed=1):
    torch.manual_seed(seed)
    return build_network(options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refused(action, *words):
    with pytest.raises(UserError) as error:
        action()
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


# .safetensors as .pth


@pytest.mark.parametrize('param_key', ['params', 'params_ema', None])
def test_pretrain_network_g_of_either_format(param_key, tmp_path):
    content = {'params': make().state_dict(), 'params_ema': make(seed=2).state_dict(), 'network_g': OPTIONS}
    save_checkpoint(tmp_path / 'net.pth', content)
    save_checkpoint(tmp_path / 'net.safetensors', content)  # the averaged weights alone
    into = make(seed=3)
    resume.load_network(Loading(), into, str(tmp_path / 'net.safetensors'), True, param_key)
    assert same(into.state_dict(), content['params_ema'])
    if param_key:
        resume.load_network(Loading(), into, str(tmp_path / 'net.pth'), True, param_key)
        assert same(into.state_dict(), content[param_key])


@pytest.mark.parametrize('encoder', [EDSR, SWINIR], ids=['EDSR', 'SwinIR'])
def test_pretrain_network_encoder_of_either_format(encoder, tmp_path):
    source = make({**OPTIONS, 'encoder': {**encoder, 'img_range': 3, 'rgb_mean': [0.1, 0.2, 0.3]}})
    found = []
    for suffix in ('pth', 'safetensors'):
        path = tmp_path / f'net.{suffix}'
        save_checkpoint(path, {'params': source.state_dict(), 'network_g': OPTIONS})
        into = build_encoder(encoder)
        found.append(load_pretrained(into, encoder, path).options)
        assert same(into.state_dict(), source.encoder.state_dict())
    assert found[0] == found[1]
    assert found[0]['img_range'] == 3


def test_metadata_of_other_programs_does_not_hide_the_weights(tmp_path):
    header = {'__metadata__': {'params': '1', 'params_ema': '2', 'deep': '[' * 10**5, 'note': 'x'}}
    header['a'] = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
    write(tmp_path / 'a.safetensors', header, struct.pack('<2f', 1, 2))
    content = read_checkpoint(tmp_path / 'a.safetensors')
    assert content['params']['a'].tolist() == [1, 2]
    assert content.keys() == {'params', 'deep', 'note'}


def write(path, header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)


def entry(start, stop, shape, dtype='F32'):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, stop]}


HEADERS = {
    'overlap': ({'a': entry(0, 8, [2]), 'b': entry(4, 12, [2])}, 'overlap'),
    'the same bytes twice': ({'a': entry(0, 12, [3]), 'b': entry(0, 12, [3])}, 'overlap'),
    'gap': ({'a': entry(0, 4, [1]), 'b': entry(8, 12, [1])}, 'gap'),
    'turned': ({'a': entry(0, 16, [4]), 'b': entry(16, 12, [1])}, 'b'),
    'beyond the end': ({'a': entry(0, 1 << 40, [1 << 38])}, 'as long as the file'),
    'offset of 100 digits': ({'a': entry(0, 10**100, [3])}, 'offsets'),
    'offset negative': ({'a': entry(-4, 8, [3])}, 'offsets'),
    'offsets of texts': ({'a': entry('0', '12', [3])}, 'offsets'),
    'offsets missing': ({'a': {'dtype': 'F32', 'shape': [3]}}, 'offsets'),
    'shape negative': ({'a': entry(0, 12, [-1, -3])}, 'shape'),
    'shape of floats': ({'a': entry(0, 12, [3.0])}, 'shape'),
    'shape of booleans': ({'a': entry(0, 12, [3, True])}, 'shape'),
    'shape a number': ({'a': entry(0, 12, 3)}, 'shape'),
    'shape too small': ({'a': entry(0, 12, [2])}, 'other bytes'),
    'shape too large': ({'a': entry(0, 12, [1 << 40, 1 << 40])}, 'other bytes'),
    'empty and huge': ({'a': entry(0, 12, [3]), 'b': entry(12, 12, [0, 1 << 60])}, 'shape'),
    'type unknown': ({'a': entry(0, 12, [3], 'F8')}, "unknown type 'F8'"),
    'type a list': ({'a': entry(0, 12, [3], ['F32'])}, 'unknown type'),
    'entry a number': ({'a': 3}, 'offsets'),
    'metadata of numbers': ({'__metadata__': {'a': 1}, 'a': entry(0, 12, [3])}, 'tensors and texts'),
    'metadata a list': ({'__metadata__': [], 'a': entry(0, 12, [3])}, 'tensors and texts'),
    'a list': ([1, 2], 'tensors and texts'),
    'twice the same name': (
        b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},'
        b'"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        'twice',
    ),
    'deep': (b'[' * 100_000, 'a.safetensors'),
    'not UTF-8': (b'{"\xff": 1}', 'a.safetensors'),
    'not JSON': (b'{"a": ', 'a.safetensors'),
}


@pytest.mark.parametrize('kind', HEADERS)
def test_safetensors_headers_that_cannot_be(kind, tmp_path):
    header, word = HEADERS[kind]
    write(tmp_path / 'a.safetensors', header, bytes(12))
    refused(lambda: read_safetensors(tmp_path / 'a.safetensors'), 'a.safetensors', word)


def test_a_header_of_100_megabytes_is_not_read(tmp_path):
    path = tmp_path / 'a.safetensors'
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', 100_000_000))
        file.truncate(100_000_100)
    assert MAX_HEADER < 100_000_000
    began = time.monotonic()
    refused(lambda: read_safetensors(path), 'the header is longer')
    assert time.monotonic() - began < 1


# What a file says that it is of


def test_a_file_names_only_networks_of_this_package(tmp_path, monkeypatch):
    built = []

    class Downloads(nn.Module):
        def __init__(self, path=None):
            super().__init__()
            built.append(path)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Downloads', Downloads)
    for kind in ('Downloads', 'SpyNet', 'DFDNet', 'VGGStyleDiscriminator'):
        torch.save({'params': {}, 'network_g': {'type': kind}}, tmp_path / 'a.pth')
        refused(lambda: load_checkpoint(tmp_path / 'a.pth'), 'a.pth', kind, 'CLIT, HIIF', 'option file')
    assert main(['info', str(tmp_path / 'a.pth')]) == 1
    assert built == []
    build_network({'type': 'Downloads', 'path': 'x'})  # an option file may
    assert built == ['x']


LARGE = {
    'branches': {'num_branches': 1_000_000},
    'branches, fewer': {'num_branches': 1000},
    'dim': {'dim': 10**9},
    'grid': {'dim': 1000, 'grid_size': 1001},
    'hidden': {'hidden_dims': [10**9]},
    'hidden, many': {'hidden_dims': [1000] * 1000},
    'bias': {'position_encoding': {'scale': 1, 'dims': 10**9}},
    'frequencies': {'frequency_dims': 10**12},
    'infinite': {'upscale': float('inf')},
    'blocks': {'encoder': {**EDSR, 'num_block': 1_000_000}},
    'blocks, fewer': {'encoder': {**EDSR, 'num_block': 1000}},
    'features': {'encoder': {**EDSR, 'num_feat': 10**9}},
    'depths': {'encoder': {**SWINIR, 'depths': [1000] * 1000}},
    'image': {'encoder': {**SWINIR, 'img_size': 1000, 'window_size': 1000}},
    'mlp': {'encoder': {**SWINIR, 'mlp_ratio': 1e12}},
    'RRDB': {'encoder': {'type': 'RRDBNet', 'num_block': 1000, 'num_feat': 1000}},
}


class Allocated(TorchDispatchMode):
    """Notes the numbers of the largest tensor with memory that an operator returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        if torch.is_tensor(value) and not value.is_meta:
            self.largest = max(self.largest, value.numel())
        return value


@pytest.mark.parametrize('kind', LARGE)
def test_sizes_beyond_the_weights_are_refused_before_memory_and_time_are_spent(kind, tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'params': make().state_dict(), 'network_g': {**OPTIONS, **LARGE[kind]}}, path)
    began, allocated = time.monotonic(), Allocated()
    with allocated:
        refused(lambda: load_checkpoint(path), str(path))
    assert time.monotonic() - began < 2
    assert allocated.largest < 100_000


def test_expanded_tensors_do_not_widen_the_bounds(tmp_path):
    weights = make().state_dict() | {'more': torch.zeros(1).expand(10**6, 10**6)}
    torch.save({'params': weights, 'network_g': {**OPTIONS, 'dim': 10**6}}, tmp_path / 'a.pth')
    refused(lambda: load_checkpoint(tmp_path / 'a.pth'), 'dim is 1e+06')
    torch.save({'params': weights, 'network_g': OPTIONS}, tmp_path / 'a.pth')
    refused(lambda: load_checkpoint(tmp_path / 'a.pth'), 'more')


@pytest.mark.parametrize('key', ['pretrained', 'pretrain_path', 'load_path'])
def test_paths_in_options_of_a_file_are_not_read(key, tmp_path):
    torch.save({'params': make().state_dict()}, tmp_path / 'other.pth')
    options = {**OPTIONS, 'encoder': {**EDSR, key: str(tmp_path / 'other.pth')}}
    torch.save({'params': make().state_dict(), 'network_g': options}, tmp_path / 'a.pth')
    refused(lambda: load_checkpoint(tmp_path / 'a.pth'), 'a.pth', 'has no option', key)


@pytest.mark.parametrize('encoder', [EDSR, SWINIR], ids=['EDSR', 'SwinIR'])
def test_outlines_change_nothing(encoder, tmp_path):
    """The check on the meta device leaves the weights, the random numbers and later networks as they were."""
    net = make({**OPTIONS, 'encoder': encoder})
    save_checkpoint(tmp_path / 'a.pth', {'params': net.state_dict(), 'network_g': {**OPTIONS, 'encoder': encoder}})
    loaded = load_checkpoint(tmp_path / 'a.pth')
    assert same(loaded.state_dict(), net.state_dict())
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])
    assert not any(value.is_meta for value in make().parameters())
    # Nothing counts the tensors of networks built afterwards.
    build_network({**OPTIONS, 'num_branches': 60})


# Weights that are not finite


def broken(tmp_path, suffix='pth'):
    net = make()
    net.conv_in.weight.data[0, 0, 0] = float('nan')
    net.conv_in.bias.data[1] = float('inf')
    path = tmp_path / f'a.{suffix}'
    save_checkpoint(path, {'params': net.state_dict(), 'network_g': OPTIONS})
    return path


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_weights_that_are_not_finite(suffix, tmp_path):
    path = broken(tmp_path, suffix)
    words = str(path), '4 values are NaN or infinite, in 2 of', 'first in conv_in.weight'
    refused(lambda: load_checkpoint(path), *words)
    into = make(seed=2)
    before = {key: value.clone() for key, value in into.state_dict().items()}
    refused(lambda: resume.load_network(Loading(), into, str(path)), *words)
    refused(lambda: resume.load_network(Loading(), into, str(path), strict=False), *words)
    assert same(into.state_dict(), before)


def test_a_pretrained_encoder_that_is_not_finite(tmp_path):
    net = make()
    net.encoder.conv_first.bias.data[3] = float('nan')
    save_checkpoint(tmp_path / 'a.pth', {'params': net.state_dict()})
    refused(lambda: load_pretrained(build_encoder(EDSR), EDSR, tmp_path / 'a.pth'), 'a.pth', '1 values', 'conv_first.b')
