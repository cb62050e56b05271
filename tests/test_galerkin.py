"""SRNO and HIIF: parity with the published code, and one mean over all queries however a picture is cut."""

import math

import pytest
import torch
from helpers.golden import load, read, relative_difference
from helpers.networks import EDSR, build, queries

from clit_basicsr import published
from clit_basicsr.archs import HIIF, SRNO, galerkin, galerkin_sweeps
from clit_basicsr.archs.hiif_arch import LEVELS, bits
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.coords import make_coord, pixel_centers
from clit_basicsr.ops.geometry.ensemble import axis_neighbors

BOTH = ['SRNO', 'HIIF']


def filled(meta):
    """Weights of full size from a seed, by the recipe in the golden file."""
    generator, weights = torch.Generator().manual_seed(meta['seed']), {}
    for key, shape in sorted(meta['keys']):
        if 'sub_mean' in key or 'add_mean' in key:
            continue
        r = torch.randn(shape, generator=generator)
        if key.split('.')[-2] in ('kln', 'vln', 'norm') and key.endswith('weight'):
            weights[key] = 1 + 0.3 * r
        else:
            weights[key] = r * math.sqrt(1 / math.prod(shape[1:])) if len(shape) >= 2 else 0.1 * r
    return weights


@pytest.mark.parametrize('kind', ['srno', 'hiif'])
def test_full_size(kind):
    meta, _, data = read(f'{kind}_w256')
    weights = filled(meta)
    total = sum(value.double().abs().sum() for value in weights.values())
    assert abs(total / data['check'] - 1) < 1e-6
    net = published.load(kind, weights)
    assert (net.get_parameter('conv0.out1.weight').shape, net.conv0.num_heads) == ((256, 256), 16)
    out = net.upscale(data['inp'] * 0.5 + 0.5, size=tuple(data['dense0_out'].shape[-2:]))
    assert relative_difference((out - 0.5) / 0.5, data['dense0_out']) < 1e-5
    decoder = sum(p.numel() for key, p in net.named_parameters() if not key.startswith('encoder.'))
    assert decoder == {'srno': 794883, 'hiif': 1735071}[kind]


def test_values_and_gradients():
    net, data = load('hiif')
    inp = data['inp'].requires_grad_()
    out = (net(inp * 0.5 + 0.5, data['coord'].flatten(1, 2), data['cell']) - 0.5) / 0.5
    out = out.transpose(1, 2).unflatten(2, data['coord'].shape[1:3])
    assert relative_difference(out, data['out']) < 1e-5
    (out * data['loss_weight']).sum().backward()
    assert relative_difference(inp.grad, data['grad_inp']) < 1e-5
    meta, weights, _ = read('hiif')
    converted = published.convert(meta['kind'], weights)
    grads = {key: p.grad for key, p in net.named_parameters()}
    own = published.to_published(converted.network_g, net.state_dict() | grads, converted.unused)['sd']
    wanted = {key[5:]: value for key, value in data.items() if key.startswith('grad/')}
    assert len(wanted) > 5
    for key, value in wanted.items():
        assert relative_difference(own[key], value) < 1e-5, key


@pytest.mark.parametrize('name', BOTH)
def test_round_trip_to_the_published_layout(name):
    net = build(name)
    spec = {'type': name, 'encoder': EDSR, 'dim': 8, 'num_heads': 2}
    net = {'SRNO': SRNO, 'HIIF': HIIF}[name](**{key: value for key, value in spec.items() if key != 'type'})
    back = published.to_published(spec, net.state_dict())
    prefixed = {f'module.{key}': value for key, value in back['sd'].items()}
    alias = {'SRNO': 'srno', 'HIIF': 'hiifv3'}[name]
    converted = published.convert(alias, prefixed, **published.meta_of(back['args']))
    assert {key: converted.network_g[key] for key in ('type', 'dim', 'num_heads')} == {
        key: spec[key] for key in ('type', 'dim', 'num_heads')
    }
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in converted.params.items())
    with pytest.raises(UserError, match='hidden_dim'):
        published.to_published({**spec, 'hidden_dim': 8}, build(name).state_dict())


@pytest.mark.parametrize('name', BOTH)
@pytest.mark.parametrize('scale', [1, 2.5, 3, (2.0, 3.5), (1.3, 6)])
def test_the_folded_network_is_the_network(name, scale, monkeypatch):
    """In small chunks too, with blocks whose edges cut cells, for every image of a batch."""
    net, lq = build(name), torch.rand(2, 3, 9, 7)
    size = net.upscale(lq, scale=scale).shape[-2:]
    coord, cell = queries(size, 2)
    with torch.no_grad():
        expected = net.query(net.encode(lq), coord, cell).transpose(1, 2).unflatten(2, size)
    for chunk, block in ((1024, 256), (40, 11)):
        monkeypatch.setattr(galerkin_sweeps, 'CPU_CHUNK', chunk)
        monkeypatch.setattr(galerkin_sweeps, 'BLOCK', block)
        assert (net.upscale(lq, scale=scale) - expected).abs().max() < 2e-6


@pytest.mark.parametrize('name', BOTH)
def test_tiles_change_nothing(name, monkeypatch):
    """At three sizes; whether features are kept or made anew for each sweep."""
    net = build(name)
    encoded = []
    net.encoder.register_forward_hook(lambda *_: encoded.append(1))
    for size, scale in (((1, 1), 3), ((13, 19), 2.5), ((30, 22), (2, 3.7))):
        lq = torch.rand(1, 3, *size)
        whole, tile = net.upscale(lq, scale=scale), {'tile_size': 8, 'tile_pad': net.reach + 4}
        tiles = math.ceil(size[0] / 8) * math.ceil(size[1] / 8)
        for limit, sweeps in ((2**29, 1), (0, 3)):
            monkeypatch.setattr(galerkin_sweeps, 'KEPT_BYTES', limit)
            encoded.clear()
            assert (net.upscale(lq, scale=scale, tile=tile) - whole).abs().max() < 2e-6
            assert len(encoded) <= sweeps * tiles
            assert tiles == 1 or len(encoded) == sweeps * tiles
        parts = torch.full_like(whole, torch.nan)
        for rows, cols, part in net.upscale_tiles(lq, scale=scale, tile=tile):
            parts[..., rows, cols] = part
        assert (parts - whole).abs().max() < 2e-6


@pytest.mark.parametrize('name', BOTH)
def test_queries_in_passes(name, monkeypatch):
    net, lq = build(name), torch.rand(2, 3, 6, 5)
    coord, cell = queries((13, 11), 2)
    with torch.no_grad():
        expected = net(lq, coord, cell)
        monkeypatch.setattr(galerkin, 'QUERIES', 40)
        assert (net(lq, coord, cell) - expected).abs().max() < 1e-6
        each = cell.unsqueeze(1).expand(-1, coord.shape[1], 2)
        assert (net(lq, coord, each) - expected).abs().max() < 1e-6


@pytest.mark.parametrize('name', BOTH)
def test_values_depend_on_all_queries_and_strips_are_apart(name):
    net, lq = build(name), torch.rand(1, 3, 8, 9)
    whole = net.upscale(lq, scale=2.5)
    net.rows = 6
    strips = net.upscale(lq, scale=2.5)
    tiled = net.upscale(lq, scale=2.5, tile={'tile_size': 3, 'tile_pad': net.reach + 4})
    assert (strips - whole).abs().max() > 1e-4
    assert (tiled - strips).abs().max() < 2e-6
    coord, cell = queries(whole.shape[-2:], 1)
    width = whole.shape[-1]
    with torch.no_grad():
        for start in (0, 6, 12, 18):
            part = coord[:, start * width : (start + 6) * width]
            expected = net(lq, part, cell).transpose(1, 2).unflatten(2, (-1, width))
            assert (strips[..., start : start + 6, :] - expected).abs().max() < 2e-6


@pytest.mark.parametrize('name', BOTH)
def test_beyond_the_largest_scale_the_cell_stays(name):
    net, lq = build(name), torch.rand(1, 3, 5, 4)
    net.max_scale = 4
    coord, cell = queries((30, 24), 1)
    with torch.no_grad():
        feat = net.encode(lq)
        expected = net.query(feat, coord, cell * 1.5)
        assert (net.query(feat, coord, cell) - expected).abs().max() < 1e-6
        assert (net.upscale(lq, scale=6) - expected.transpose(1, 2).unflatten(2, (30, 24))).abs().max() < 2e-6
        net.max_scale = None
        assert (net.query(feat, coord, cell) - expected).abs().max() > 1e-6


def test_bits_of_places():
    """By hand: 0.40625 is .01101 in binary; on the half pixel at the edge the code adds 1 / n to the amount."""
    places = torch.tensor([0.40625 + 1e-6, 1.0 - 1e-6, -0.25])
    found = torch.stack(bits(places, 8), dim=1)
    assert found.tolist() == [[0, 1, 1, 0, 1, 0], [1] * LEVELS, [0, 1, 1, 0, 0, 0]]
    # At x2 the places are 1/4 and 3/4, give or take the rounding of fp32, which decides all bits behind the second.
    low, _ = axis_neighbors(pixel_centers(200), 100, 1.0)
    digits = torch.stack(bits(low.dx, 100), dim=1)[2:-2]
    assert {tuple(row) for row in digits.int().tolist()} == {
        (0, 1, 0, 0, 0, 0), (0, 0, 1, 1, 1, 1), (1, 1, 0, 0, 0, 0), (1, 0, 1, 1, 1, 1),
    }  # fmt: skip


@pytest.mark.parametrize('kind', [SRNO, HIIF])
def test_wrong_options(kind):
    for options, message in (
        ({'dim': 9, 'num_heads': 2}, 'multiple of num_heads'),
        ({'dim': 4, 'num_heads': 4}, 'twice it'),
        ({'rows': 0}, 'rows must be'),
        ({'max_scale': 0.5}, 'max_scale must be'),
    ):
        with pytest.raises(UserError, match=message):
            kind(EDSR, **options)


@pytest.mark.parametrize('size', [(18, 14), (23, 19), (27, 21)])
@pytest.mark.parametrize('name', BOTH)
def test_coordinates_in_double_precision_are_the_same_places(name, size):
    """Areas and bits hang on the rounding of single precision."""
    net, lq, coord = build(name), torch.rand(1, 3, 9, 7), make_coord(size).expand(1, -1, 2)
    cell = torch.tensor([[2 / size[0], 2 / size[1]]])
    with torch.no_grad():
        feat = net.encode(lq)
        single, double = net.query(feat, coord, cell), net.query(feat, coord.double(), cell.double())
    assert (single - double).abs().max() < 1e-6 * single.abs().max()
