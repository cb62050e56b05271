"""Parity with the published code: its weights, inputs, outputs and gradients (tests/golden/*.npz)."""

import numpy as np
import pytest
import torch
from helpers.golden import FILES, PEERS, load, read, relative_difference

from clit_basicsr import published
from clit_basicsr.archs.encoders import ENCODERS, layouts


def test_all_files_are_here():
    assert FILES == ['clit_n1_edsr', 'clit_n1_noattn', 'clit_n1_nobias_nocell', 'clit_n2_edsr', 'clit_n3_edsr']
    assert PEERS == [
        'liif',
        'liif_dense_x3',
        'lit_freq',
        'lit_freq_ensemble',
        'lit_freq_ensemble_dense_x3',
        'lte',
        'lte_dense_x3',
        'metasr',
        'metasr_dense_x3',
    ]


@pytest.mark.parametrize('name', FILES)
def test_predictions_of_every_branch(name):
    net, data = load(name)
    feat = net.encode(data['inp'] * 0.5 + 0.5)
    for branch in range(len(data['scales'])):
        out = net.query(feat, data['sample_coord'], data['cell'], data['scales'][: branch + 1])
        assert relative_difference((out - 0.5) / 0.5, data[f'pred_{branch}']) < 1e-5


@pytest.mark.parametrize('name', [name for name in FILES if name != 'clit_n1_nobias_nocell'])
def test_dense_output(name):
    net, data = load(name)
    scale = data['dense_scale'].item()
    assert np.allclose(np.array(net.plan_scales((scale, scale)))[:, 0], data['dense_stage_scales'])
    out = net.upscale(data['inp'][:1] * 0.5 + 0.5, scale=scale)
    assert relative_difference((out.permute(0, 2, 3, 1) - 0.5) / 0.5, data['dense_out']) < 1e-5


@pytest.mark.parametrize('name', FILES)
def test_gradients(name):
    net, data = load(name)
    lq = (data['inp'] * 0.5 + 0.5).requires_grad_()
    out = net(lq, data['sample_coord'], data['cell'], data['scales'])
    ((out - 0.5) / 0.5 * data['loss_weight']).sum().backward()
    assert relative_difference(lq.grad * 0.5, data['grad_inp']) < 1e-5
    encoder = ((f'encoder.{theirs}', f'encoder.{ours}') for theirs, ours in ENCODERS['EDSR'].layouts[1])
    layout = (*encoder, *published.LAYOUTS['clit'])
    expected, unknown = layouts.rename({k[5:]: v for k, v in data.items() if k.startswith('grad/')}, layout)
    assert expected
    assert all(published.UNUSED.fullmatch(key) for key in unknown)
    ours = {key: p.grad for key, p in net.named_parameters()}
    for key, value in expected.items():
        if (
            key == 'position_encoder.proj.bias'
        ):  # one value for all positions cancels in the softmax: the true gradient is 0
            assert ours[key].abs().max() < 1e-5 * ours['position_encoder.proj.weight'].abs().max()
        else:
            assert relative_difference(ours[key], value) < 1e-5, key
    assert all(grad is not None and grad.isfinite().all() for grad in ours.values())


@pytest.mark.parametrize('name', PEERS)
def test_values_of_the_peers(name):
    net, data = load(name)
    with torch.no_grad():
        out = net(data['inp'] * 0.5 + 0.5, data['coord'], data['cell'])
    assert relative_difference((out - 0.5) / 0.5, data['out']) < 1e-5


@pytest.mark.parametrize('name', [name for name in PEERS if name.endswith('dense_x3')])
def test_dense_output_of_the_peers(name):
    net, data = load(name)
    out = net.upscale(data['inp'] * 0.5 + 0.5, size=tuple(data['out_size'].tolist()))
    assert relative_difference((out.flatten(2).transpose(1, 2) - 0.5) / 0.5, data['out']) < 1e-5


@pytest.mark.parametrize('name', FILES + PEERS)
def test_round_trip_to_the_published_layout(name):
    meta, weights, _ = read(name)
    kind = meta.pop('kind')
    converted = published.convert(kind, weights, **meta)
    net = published.load(kind, weights, **meta)
    back = published.to_published(converted.network_g, net.state_dict(), converted.unused)
    assert back['name'] == kind
    assert back['sd'].keys() == weights.keys()
    assert all(torch.equal(back['sd'][key], value) for key, value in weights.items())
    again = published.convert(back['name'], back['sd'], **published.meta_of(back['args']))
    assert again.network_g == converted.network_g
