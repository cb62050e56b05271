"""Networks that were made half precision as a whole: `net.half()` and `net.bfloat16()`."""

import pytest
import torch
from helpers.networks import NETWORKS

from clit_basicsr.archs import build_network
from clit_basicsr.ops.geometry.coords import make_coord

EDSR = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    ('name', 'dtype', 'tolerance'),
    [
        *((name, torch.bfloat16, 2e-2) for name in NETWORKS),
        ('CLIT', torch.float16, 2.5e-3),
        ('LTE', torch.float16, 2.5e-3),
    ],
)
def test_pictures_and_queries_are_those_of_single_precision(name, dtype, tolerance):
    torch.manual_seed(0)
    kind, options = NETWORKS[name]
    options = {**options, 'type': kind, **({} if kind == 'Bicubic' else {'encoder': EDSR})}
    net = build_network(options).eval()
    lq = torch.rand(2, 3, 9, 12)
    size = (21, 28)
    whole = net.upscale(lq, size=size)
    coord = make_coord(size, (0, 21), (0, 28)).expand(2, -1, 2)
    cell = torch.tensor([[2 / 21, 2 / 28]]).expand(2, 2)
    half = net.to(dtype)
    for image in (lq, lq.to(dtype)):
        found = half.upscale(image, size=size)
        assert found.dtype == image.dtype
        assert (found.float() - whole).abs().max() < tolerance * whole.abs().max()
    with torch.no_grad():
        feat = half.encode(lq.to(dtype))
        for features in (feat, half.prepare(feat, half.plan_scales((21 / 9, 28 / 12)))):
            rgb = half.query(features, coord, cell).float()  # (B, Q, 3)
            assert (rgb.transpose(1, 2).unflatten(2, size) - whole).abs().max() < tolerance * whole.abs().max()


@pytest.mark.parametrize('name', ['LIT', 'LIT_frequency', 'UltraSR'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_frequencies_are_not_rounded(name, dtype):
    kind, options = NETWORKS[name]
    net = build_network({**options, 'type': kind, 'encoder': EDSR})
    exact = {key: value.clone() for key, value in net.named_buffers() if key.endswith('freqs')}
    assert any((value.to(dtype) - value).abs().max() > 1e-3 for value in exact.values())
    half = net.to(dtype).to('cpu')
    assert all(value.dtype == dtype for value in half.parameters())
    found = {key: value for key, value in half.named_buffers() if key in exact}
    for key, value in exact.items():
        assert found[key].dtype == torch.float32
        assert found[key].equal(value)
    assert all(value.dtype == torch.float64 for key, value in net.double().named_buffers() if key in exact)
