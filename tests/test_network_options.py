"""Weights of one network in another of the same shapes: what no weight shows is said."""

import copy
import logging
import types
from pathlib import Path

import pytest
import torch
import yaml
from helpers.loading import Loading
from helpers.mmagic import needs_mmagic
from helpers.training import OPTIONS

from clit_basicsr.archs.checkpoint import save_checkpoint
from clit_basicsr.archs.network_options import differing_options
from clit_basicsr.archs.networks import build_network
from clit_basicsr.hosts.basicsr import resume

OPTIONS_FOLDER = Path(__file__).parents[1] / 'options'
CLIT = OPTIONS['network_g']
# Options that no weight shows, each with what is said of it.
HIDDEN = {
    'num_heads: 1 instead of 2': {'num_heads': 1, 'position_encoding': None},
    'residual_weight: 1 instead of 0.75': {'residual_weight': 1},
    'upsampling_padding: border instead of zeros': {'upsampling_padding': 'border'},
    'encoder:res_scale: 0.1 instead of 1': {'encoder': {**CLIT['encoder'], 'res_scale': 0.1}},
}
SAME = {
    'defaults': {'residual_weight': 0.75, 'cell': True, 'hidden_dims': (8,)},
    'scale of a plain call': {'upscale': 3},
    'buffers': {'encoder': {**CLIT['encoder'], 'img_range': 255, 'rgb_mean': [0, 0, 0], 'frozen': True}},
}


@pytest.mark.parametrize('line', HIDDEN)
def test_an_option_in_no_weight_changes_the_answer_and_is_named(line):
    held = {**CLIT, 'position_encoding': HIDDEN[line].get('position_encoding', 'paper')}
    asked = held | HIDDEN[line]
    assert differing_options(asked, held) == [line]
    assert differing_options(held, held) == []
    torch.manual_seed(0)
    net, other = build_network(held).eval(), build_network(asked).eval()
    other.load_state_dict(net.state_dict())
    image = torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    assert (net.upscale(image, scale=14.3) - other.upscale(image, scale=14.3)).abs().max() > 1e-5


@pytest.mark.parametrize('name', SAME)
def test_what_changes_no_answer_is_not_named(name):
    assert differing_options(CLIT | SAME[name], CLIT) == []
    assert differing_options(CLIT, CLIT | SAME[name]) == []


def test_one_encoding_under_two_names():
    blocks = [{**CLIT, 'position_encoding': one} for one in ('published', {'scale': 10, 'dims': 64}, 'paper')]
    assert differing_options(*blocks[:2]) == []
    assert differing_options(*blocks[1:]) == ["position_encoding: {'scale': 10, 'dims': 64} instead of paper"]


def test_other_types_and_damaged_blocks():
    assert differing_options(CLIT, {'type': 'LIIF'}) == ['type: CLIT instead of LIIF']
    for held in ({}, {'type': 'no such'}, {'type': None}, {'type': 3}, {'type': ['CLIT']}, {'type': {}}):
        assert differing_options(CLIT, held) == []
    long = differing_options(CLIT, {**CLIT, 'num_heads': 'x' * 10_000})
    assert len(long) == 1 and len(long[0]) < 100
    for encoder in ('none', {'type': ['EDSR']}, {}, [CLIT['encoder']]):
        assert differing_options(CLIT, {**CLIT, 'encoder': encoder})
    lines = differing_options(CLIT, {**CLIT, 'a\nb': 1, 3: 4, 'dim': 'x\ny'})
    assert lines == ['dim: 4 instead of x y']
    assert differing_options({'type': 'RCAN', 'res_scale': 1, **PAIR}, {'type': 'RCAN', 'res_scale': 0.5, **PAIR}) == [
        'res_scale: 1 instead of 0.5'
    ]


@pytest.mark.parametrize('file', sorted(OPTIONS_FOLDER.glob('test_*_*.yml')), ids=lambda file: file.stem)
def test_the_option_files_of_tests_have_the_networks_of_the_trainings(file):
    blocks = [yaml.safe_load((OPTIONS_FOLDER / name).read_text())['network_g'] for name in (file.name, training(file))]
    assert differing_options(*blocks) == []


def training(file):
    return file.name.replace('test_', 'train_')


PAIR = {'num_in_ch': 3, 'num_out_ch': 3}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_test_says_that_its_network_is_another(suffix, tmp_path):
    net, path = build_network(CLIT), str(tmp_path / f'net{suffix}')
    save_checkpoint(path, {'params': net.state_dict(), 'network_g': CLIT})
    model = Loading({'network_g': CLIT | {'residual_weight': 1, 'upscale': 2}})
    for _ in range(2):  # as the averaged network is loaded too
        resume.load_network(model, build_network(model.opt['network_g']), path)
    assert model.opt['warnings'] == [
        f'network_g is not that of {path}, which may change the results: residual_weight: 1 instead of 0.75.'
    ]
    model = Loading({'network_g': copy.deepcopy(CLIT)})
    resume.load_network(model, net, path)
    assert 'warnings' not in model.opt


@needs_mmagic
@pytest.mark.parametrize('weight', [0.75, 1])
def test_mmtest_says_it_too(weight, caplog):
    from clit_basicsr.hosts.mmagic.checkpoints import PlainCheckpointHook

    model = types.SimpleNamespace(network_g=CLIT | {'residual_weight': weight})
    runner = types.SimpleNamespace(_resume=False, model=model, logger=logging.getLogger('runner'))
    PlainCheckpointHook().after_load_checkpoint(runner, {'state_dict': {}, 'network_g': CLIT})
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(': ', 1)[1] for line in said] == ['residual_weight: 1 instead of 0.75.'] * (weight == 1)
