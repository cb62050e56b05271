"""encode -> prepare -> query: what a decoder derives from features once gives the same values as deriving it anew."""

import pytest
import torch
from helpers.networks import NETWORKS, build, queries

from clit_basicsr.archs import CLIT, LIT
from clit_basicsr.archs.lit_branch import FINE_PIXELS_PER_QUERY, frequencies
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops import use_backend
from clit_basicsr.ops.attention.windows import TapProducts
from clit_basicsr.ops.geometry.coords import make_coord

EDSR = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
SMALL = {'encoder': EDSR, 'dim': 8, 'num_heads': 2, 'grid_size': 5, 'hidden_dims': [16, 16]}


def clit(**options):
    torch.manual_seed(0)
    return CLIT(**{**SMALL, **options}).eval()


@pytest.mark.parametrize('count', [1, 7, 500])
@pytest.mark.parametrize('name', NETWORKS)
def test_prepared_features_give_the_same_bits(name, count):
    net, lq = build(name), torch.rand(2, 3, 7, 6)
    coord, cell = queries((25, 20), 2)
    coord = coord[:, torch.randperm(500)[:count]]
    with torch.no_grad():
        feat = net.encode(lq)
        prepared = net.prepare(feat)
        assert torch.equal(net.query(prepared, coord, cell), net.query(feat, coord, cell))
        half = coord * 0.5  # again from the same, elsewhere
        assert torch.equal(net.query(prepared, half, cell), net.query(feat, half, cell))


@pytest.mark.parametrize('name', NETWORKS)
def test_gradients_flow_through_prepared_features(name):
    net, lq = build(name).train(), torch.rand(2, 3, 7, 6)
    coord, cell = queries((15, 12), 2)
    gradients = []
    for step in (net.prepare, lambda feat: feat):
        image = lq.clone().requires_grad_()
        net.query(step(net.encode(image)), coord, cell).square().sum().backward()
        gradients.append(image.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize('padding', ['zeros', 'border'])
@pytest.mark.parametrize('grid_size', [1, 3, 7])
@pytest.mark.parametrize('scales', [[4, 4, 1.125], [(4, 1), (3.3, 1)], [(1.5, 2.5), (2.7, 1.3), (1.9, 3.1)]])
def test_windows_of_upsampled_maps_equal_whole_maps(scales, grid_size, padding):
    """Few queries read windows of the upsampled maps; the reference makes the whole maps. Corners included."""
    net, lq = clit(grid_size=grid_size, upsampling_padding=padding), torch.rand(2, 3, 6, 5)
    size = (67, 51)
    corners = make_coord(size)[[0, 50, 66 * 51, -1, 25]]
    coord = torch.cat((corners, torch.rand(4, 2) * 2 - 1)).expand(2, -1, 2)
    cell = torch.tensor([2 / size[0], 2 / size[1]]).expand(2, 2)
    with torch.no_grad():
        feat = net.encode(lq)
        fine = torch.tensor(scales[0]).prod() * 30
        assert fine > 0
        found = net.query(net.prepare(feat), coord, cell, scales)
        with use_backend('reference'):
            expected = net.query(feat, coord, cell, scales)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_windows_are_used_for_few_queries_and_only_without_gradients(monkeypatch):
    net, lq, calls = clit(), torch.rand(1, 3, 6, 5), []
    make = TapProducts.make
    monkeypatch.setattr(TapProducts, 'make', lambda *arguments: calls.append(1) or make(*arguments))
    fine = 24 * 20
    for count, expected in ((fine // FINE_PIXELS_PER_QUERY - 1, 1), (fine // FINE_PIXELS_PER_QUERY, 0)):
        coord, cell = torch.zeros(1, count, 2), torch.tensor([[0.1, 0.1]])
        calls.clear()
        with torch.no_grad():
            net.query(net.encode(lq), coord, cell, [4, 1.2])
        assert len(calls) == expected
    calls.clear()
    net.query(net.encode(lq), torch.zeros(1, 1, 2), torch.tensor([[0.1, 0.1]]), [4, 1.2])
    assert calls == []


def test_prepared_features_serve_every_scale_and_stay_small():
    """27 C numbers for each LR pixel and upsampled branch, whatever the scale."""
    net, lq = clit(), torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        prepared = net.prepare(net.encode(lq))
        for maps in prepared.maps.branches[1:]:
            assert sum(t.numel() for t in maps) == 27 * 8 * 6 * 5 + 3 * 8
        coord = torch.rand(1, 3, 2) - 0.5
        for scales in ([2.0], [4, 1.5], [4, 4, 3]):
            product = torch.tensor(scales).prod()
            cell = torch.tensor([[2 / (6 * product), 2 / (5 * product)]])
            fresh = net.query(net.encode(lq), coord, cell, scales)
            assert torch.equal(net.query(prepared, coord, cell, scales), fresh)


def test_only_active_branches_are_prepared():
    net, lq = clit(), torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        assert len(net.prepare(net.encode(lq), [2]).maps.branches) == 1
        net.trained_branches.fill_(2)
        assert len(net.prepare(net.encode(lq)).maps.branches) == 2


def test_prepared_features_show_their_attention():
    net, lq = clit(), torch.rand(1, 3, 6, 5)
    coord, cell = torch.rand(1, 2, 2) - 0.5, torch.tensor([[0.05, 0.05]])
    feat = net.encode(lq)
    for a, b in zip(net.attention(net.prepare(feat), coord, cell), net.attention(feat, coord, cell), strict=True):
        assert torch.equal(a.weights, b.weights)


class TestPositionEncoding:
    def test_a_block_gives_the_published_frequencies(self):
        assert torch.equal(frequencies({'scale': 10, 'dims': 64}), frequencies('published'))
        expected = torch.tensor([2 ** (8 * i / 7) - 1 for i in range(8)])
        assert torch.allclose(frequencies({'scale': 8, 'dims': 32}), expected)
        net = LIT(**SMALL, position_encoding={'scale': 8, 'dims': 32})
        assert net.position_encoder.proj.weight.shape == (2, 32)

    @pytest.mark.parametrize(
        'encoding, message',
        [
            ('papier', "must be 'paper'"),
            (3, "must be 'paper'"),
            ({'scale': 8}, 'keys scale and dims'),
            ({'scale': 8, 'dims': 32, 'x': 1}, 'keys scale and dims'),
            ({'scale': 'a', 'dims': 32}, 'scale must be a number'),
            ({'scale': 8, 'dims': 30}, 'multiple of 4'),
            ({'scale': 8, 'dims': 0}, 'multiple of 4'),
        ],
    )
    def test_other_encodings_are_refused(self, encoding, message):
        with pytest.raises(UserError, match=message):
            frequencies(encoding)
