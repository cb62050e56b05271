"""Parity with the published code: its weights, inputs, outputs and gradients (tests/golden/*.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clit_basicsr import published

GOLDEN = Path(__file__).parent / 'golden'
FILES = sorted(path.stem for path in GOLDEN.glob('clit_*.npz'))


def relative_difference(a, b):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return ((a - b).abs().max() / b.abs().max()).item()


def load(name):
    """The network of ours with the file's weights, and the file. Published images are (x - 0.5) / 0.5."""
    data = dict(np.load(GOLDEN / f'{name}.npz'))
    meta = json.loads(bytes(data['meta']))
    weights = {key[3:]: torch.from_numpy(value) for key, value in data.items() if key.startswith('sd/')}
    return published.load(meta.pop('kind'), weights, **meta), {
        k: torch.from_numpy(np.array(v)) for k, v in data.items() if k != 'meta'
    }


def test_all_files_are_here():
    assert FILES == ['clit_n1_edsr', 'clit_n1_noattn', 'clit_n1_nobias_nocell', 'clit_n2_edsr', 'clit_n3_edsr']


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
    expected = published.renamed({k[5:]: v for k, v in data.items() if k.startswith('grad/')}, published.CLIT_KEYS)
    assert expected
    ours = {key: p.grad for key, p in net.named_parameters()}
    for key, value in expected.items():
        if (
            key == 'position_encoder.proj.bias'
        ):  # one value for all positions cancels in the softmax: the true gradient is 0
            assert ours[key].abs().max() < 1e-5 * ours['position_encoder.proj.weight'].abs().max()
        else:
            assert relative_difference(ours[key], value) < 1e-5, key
    assert all(grad is not None and grad.isfinite().all() for grad in ours.values())
