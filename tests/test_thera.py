"""Thera: parity with the published code, the field by tables, the published file, and its loss."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from helpers.golden import GOLDEN, relative_difference
from helpers.networks import build
from helpers.thera import cell_of, published_grads

from clit_basicsr import published
from clit_basicsr.archs import Thera, thera_field
from clit_basicsr.archs.encoders import ENCODERS
from clit_basicsr.archs.encoders.trunk import DIV2K_MEAN
from clit_basicsr.archs.features import Features
from clit_basicsr.archs.thera_arch import locate
from clit_basicsr.archs.thera_tails import reflected
from clit_basicsr.base.checkpoints import read_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.flax_file import write_flax
from clit_basicsr.cli import main
from clit_basicsr.cli.check_networks import check_network
from clit_basicsr.models.implicit_sr_model import self_ensemble
from clit_basicsr.ops.geometry.coords import Frame, make_coord
from clit_basicsr.published import thera

EDSR, RDN = ENCODERS['EDSR'], ENCODERS['RDN']
EDSR_64 = {'num_feat': 64, 'num_block': 16, 'res_scale': 1}


@pytest.fixture(scope='module')
def golden(tmp_path_factory):
    """The network of the published pickle, the other arrays of the golden file, its metadata, and the pickle's path."""
    data = {key: np.array(value) for key, value in np.load(GOLDEN / 'thera_air.npz').items()}
    path = tmp_path_factory.mktemp('published') / 'model.pkl'
    path.write_bytes(data.pop('checkpoint_pkl').tobytes())
    meta = json.loads(bytes(data.pop('meta')))
    return published.load_file(path), {key: torch.from_numpy(value) for key, value in data.items()}, meta, path


def test_values_gradients_and_variation(golden):
    net, data, _, _ = golden
    size = tuple(data['inp'].shape[-2:])
    feat = net.encode(data['inp'])
    assert relative_difference(feat.z.permute(0, 2, 3, 1), data['feat']) < 1e-5
    net.zero_grad()
    z = data['feat'].permute(0, 3, 1, 2).contiguous().requires_grad_()
    out = net.query(feat._replace(z=z), 2 * data['coord'], cell_of(data['t'], size))
    assert relative_difference(out, data['rgb']) < 1e-5
    (out * data['loss_weight']).sum().backward()
    grads = published_grads(net)
    assert relative_difference(z.grad.permute(0, 2, 3, 1), data['grad_feat']) < 1e-5
    for key in ('params/components', 'params/k', 'params/out_conv/kernel', 'params/out_conv/bias'):
        assert relative_difference(grads[key], data[f'grad/{key}']) < 1e-5, key
    net.zero_grad()
    out, variation = net(data['inp'], 2 * data['coord'], cell_of(data['t'], size), variation=True)
    assert variation.shape == (2,)
    assert abs(variation.mean() / data['tv'] - 1) < 1e-5
    loss = (out - data['target']).abs().mean() + 1e-4 * variation.mean()
    assert abs(loss / data['loss'] - 1) < 1e-5
    variation.mean().backward()
    assert relative_difference(net.components.grad, data['grad_tv/params/components']) < 1e-5
    assert net.kappa.grad is None or net.kappa.grad == data['grad_tv/params/k'] == 0


@pytest.mark.parametrize('name', ['x3', 'x2.5', 'aniso'])
def test_pictures_with_one_time(golden, name):
    net, data, meta, _ = golden
    inp, (height, width) = data['inp'][:1], meta['dense'][name]['size']
    cell = cell_of(meta['dense'][name]['t'], tuple(inp.shape[-2:]))
    with torch.no_grad():
        out = net(inp, make_coord((height, width)).unsqueeze(0), cell).view(height, width, 3)
    assert relative_difference(out, data[f'dense_{name}']) < 1e-5


def test_pictures_by_tables(golden):
    net, data, meta, _ = golden
    for name in ('x3', 'x2.5', 'aniso_tt'):
        out = net.upscale(data['inp'][:1], size=meta['dense'][name]['size'])
        assert relative_difference(out[0].permute(1, 2, 0), data[f'dense_{name}']) < 1e-5, name
    height, width = data['inp'].shape[-2:]
    scale = meta['gse']['size'][0] / height, meta['gse']['size'][1] / width
    out = self_ensemble(net, data['inp'][:1], scale, rotations=True)
    assert relative_difference(out[0].permute(1, 2, 0), data['gse_x2']) < 1e-5


@pytest.mark.parametrize('variant', ['air', 'plus', 'pro'])
@pytest.mark.parametrize('bands', [1, 2**22])
@pytest.mark.parametrize('scale', [1, 2, (3, 2), 1.7, (2.6, 4.3), 9])
def test_tables_are_the_field(variant, bands, scale, monkeypatch):
    """Every piece of a picture, however it is cut, with components that the heat equation has damped away."""
    monkeypatch.setattr(thera_field, 'BAND_NUMBERS', bands)
    net, lq = build(f'Thera_{variant}'), torch.rand(2, 3, 9, 7)
    out = net.upscale(lq, scale=scale)
    size = tuple(out.shape[-2:])
    cell = torch.tensor([[2 / size[0], 2 / size[1]]]).expand(2, 2)
    with torch.no_grad():
        feat = net.encode(lq)
        expected = net.query(feat, make_coord(size).expand(2, -1, 2), cell).transpose(1, 2).unflatten(2, size)
    assert (out - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    part = net.upscale_part(feat, size, (2, 8), (1, 6), None)
    assert (part - out[..., 2:8, 1:6]).abs().max() < 2e-6 * max(1, expected.abs().max())


@pytest.mark.parametrize('scale', [16, 15.9])
def test_bands_bound_what_is_made_at_a_time(scale, monkeypatch):
    """A band's numbers for every colour of an LR pixel; at large scales its HR pixels are most of them."""
    name, sizes = ('whole_factors' if scale == 16 else 'any_factors'), []
    answer = getattr(thera_field, name)

    def noted(field, z, rows, cols, time):
        values = answer(field, z, rows, cols, time)
        sizes.append(values.numel())
        return values

    monkeypatch.setattr(thera_field, name, noted)
    net, lq = build('Thera_air'), torch.rand(1, 3, 24, 20)
    expected = net.upscale(lq, scale=scale)
    assert len(sizes) == 1
    sizes.clear()
    monkeypatch.setattr(thera_field, 'BAND_NUMBERS', 6 * 20 * 3 * (12 + 16 * 16))
    assert (net.upscale(lq, scale=scale) - expected).abs().max() < 2e-6
    assert len(sizes) > 3 and max(sizes) <= thera_field.BAND_NUMBERS


def test_damped_components_are_left_out():
    weight, bias = torch.randn(16, 5), torch.randn(16)
    components = torch.tensor([[0.5, 60.0, 0.1, 30.0], [0.0, 0.0, 50.0, -30.0]])
    field = thera_field.Field(weight, bias, components, torch.tensor(0.06), (0.0, 0.0, 0.0))
    z = torch.rand(1, 5, 2, 2)
    assert field.kept(z, (0.25, 0.25)).components.tolist() == components[:, :1].tolist()
    assert field.kept(z, (0.25, 1e-4)).components.tolist() == components[:, [0, 2, 3]].tolist()
    assert field.kept(z, (0.0, 0.0)).components.tolist() == components.tolist()
    broken = field._replace(components=torch.full((2, 4), torch.nan))
    assert broken.kept(z, (0.25, 0.25)).components.shape == (2, 4)


@pytest.mark.parametrize(('n', 'n_hr'), [(5, 10), (7, 20), (6, 15), (48, 61), (3, 3), (1, 4), (510, 1275)])
def test_places_of_queries(n, n_hr):
    """By whole numbers on a grid, and from rounded coordinates: borders go to the higher pixel in both."""
    pixel, delta = thera_field.dense_axis(n, n_hr, 0, n_hr)
    exact = [divmod((2 * i + 1) * n, 2 * n_hr) for i in range(n_hr)]
    assert pixel.tolist() == [one[0] for one in exact]
    assert torch.allclose(delta, torch.tensor([one[1] / (2 * n_hr) - 0.5 for one in exact]), atol=1e-7)
    found, place = locate(make_coord((n_hr, 1)).unsqueeze(0), Frame((n, 1)))
    assert found[0, :, 0].tolist() == pixel.tolist()
    assert (place[0, :, 0] - delta).abs().max() < 1e-7 * n + 1e-7
    outside, beyond = locate(torch.tensor([[[-1.5, 0], [1.5, 0]]]), Frame((n, 1)))
    assert outside[0, :, 0].tolist() == [0, n - 1]
    assert beyond[0, :, 0].tolist() == [-0.25 * n - 0.5, 0.25 * n + 0.5]


def test_reflection_goes_on_in_short_images():
    assert reflected(8, 8).tolist() == list(range(8))
    assert reflected(8, 3).tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert reflected(8, 1).tolist() == [0] * 8


def test_a_cell_of_nothing_is_the_unfiltered_signal():
    net, lq = build('Thera_air'), torch.rand(1, 3, 4, 5)
    coord = torch.rand(1, 50, 2) * 2 - 1
    with torch.no_grad():
        sharp, small = (net(lq, coord, torch.full((1, 2), size)) for size in (0.0, 1e-6))
        assert (sharp - small).abs().max() < 1e-5
        assert (sharp - net(lq, coord, torch.full((1, 2), 0.3))).abs().max() > 1e-3


@pytest.mark.parametrize('name', ['edsr-baseline/air', 'edsr-baseline/plus', 'edsr-baseline/pro', 'rdn/plus'])
def test_all_published_names_have_a_place(name):
    """Names and shapes of the published trees, of full size, there and back, without allocating them."""
    keys = json.loads(bytes(np.load(GOLDEN / 'thera_published_keys.npz')['keys']))[name]
    weights = {key: torch.empty(()).expand(shape) for key, shape in keys.items()}
    converted = published.convert('thera', weights)
    with torch.device('meta'):
        net = Thera(**{key: value for key, value in converted.network_g.items() if key != 'type'})
    own = {key: tuple(p.shape) for key, p in net.named_parameters()}
    assert own == {key: tuple(value.shape) for key, value in converted.params.items()}
    assert converted.network_g['variant'] == name.partition('/')[2]
    back = published.to_published(converted.network_g, converted.params)
    assert {key: list(value.shape) for key, value in back['sd'].items()} == {k: list(v) for k, v in keys.items()}
    assert back['args'] == dict(zip(('backbone', 'size'), name.split('/'), strict=True))


def test_added_parameters():
    with torch.device('meta'):
        for variant, count in (('air', 8385), ('plus', 1413153), ('pro', 4630699)):
            net = Thera({'type': 'EDSR', 'num_feat': 64, 'num_block': 16}, variant)
            own = [p.numel() for key, p in net.named_parameters() if not key.startswith('encoder.')]
            assert sum(own) == count, variant


def test_convert_there_and_back(golden, tmp_path):
    _, _, _, path = golden
    ours, again = str(tmp_path / 'ours.pth'), str(tmp_path / 'again.pkl')
    assert main(['convert', str(path), ours]) == 0
    assert main(['convert', ours, again, '--to-published']) == 0
    first, second = (read_checkpoint(file)['model'] for file in (str(path), again))
    assert first['args'] == second['args'] == {'backbone': 'edsr-baseline', 'size': 'air'}
    assert first['sd'].keys() == second['sd'].keys()
    assert all(torch.equal(value, second['sd'][key]) for key, value in first['sd'].items())
    assert main(['convert', ours, str(tmp_path / 'again.pth'), '--to-published']) == 1


class Harmful:
    def __reduce__(self):
        return (print, ('this must not run',))


@pytest.mark.parametrize('content', [Harmful(), [1, 2], {'model': 3}, {'model': {'params': {'k': np.ones(2, int)}}}])
def test_other_pickles_are_refused(content, tmp_path, capsys):
    path = tmp_path / 'model.pkl'
    path.write_bytes(pickle.dumps(content))
    for data in (path.read_bytes(), path.read_bytes()[:-3]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r'model\.pkl is not|which is int64'):
            read_checkpoint(path)
    assert 'must not run' not in capsys.readouterr().out


@pytest.mark.parametrize('variant', ['air', 'plus'])
def test_training_begins_at_the_lr_pixels(variant):
    """The published beginning is brighter by the mean."""
    lq, encoder = torch.rand(2, 3, 6, 7), {'type': 'EDSR', 'num_feat': 8, 'num_block': 1}
    torch.manual_seed(0)
    net, old = (Thera(encoder, variant, init=init).eval() for init in ('nearest', 'published'))
    for scale in (2, (3, 2.5)):
        out = net.upscale(lq, scale=scale)
        # On a border of two LR pixels the higher one is the nearest.
        y, x = (thera_field.dense_axis(n, n_hr, 0, n_hr)[0] for n, n_hr in zip((6, 7), out.shape[-2:], strict=True))
        nearest = lq[:, :, y][..., x]
        assert (out - nearest).abs().max() < 1e-6
        assert (old.upscale(lq, scale=scale) - nearest).mean() > 0.3
    count = net.components.shape[1]
    assert net.components[:, 0].tolist() == [0, 0]
    assert 2 * math.pi < net.components.norm(dim=0).max() <= 4 * math.pi
    assert (old.components.norm(dim=0) > 4 * math.pi).sum() > count / 2


def test_wrong_options():
    encoder = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1}
    for options, message in (
        ({'variant': 'max'}, 'variant must be one of air, plus, pro'),
        ({'num_components': 0}, 'at least 1'),
        ({'init': 'zero'}, 'init must be one of nearest, published; got zero'),
        ({'tail': {'widths': [8]}}, 'tail does not fit Thera air'),
        ({'variant': 'pro', 'tail': {'embed_dim': 9, 'depths': [1], 'num_heads': [2]}}, 'divisor of embed_dim'),
        ({'variant': 'plus', 'tail': {'widths': [0]}}, 'widths must be whole numbers of at least 1; got 0'),
        ({'variant': 'pro', 'tail': {'depths': [-1], 'num_heads': [2]}}, 'depths must be whole numbers of at least 1'),
        ({'variant': 'pro', 'tail': {'num_heads': [0, 1]}}, 'num_heads must be whole numbers of at least 1'),
        ({'variant': 'pro', 'tail': {'embed_dim': 0}}, 'embed_dim must be whole numbers of at least 1'),
        ({'variant': 'pro', 'tail': {'drop_path_rate': 1}}, 'drop_path_rate must be at least 0 and below 1'),
    ):
        with pytest.raises(UserError, match=message):
            Thera(encoder, **options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'variant': 'plus', 'tail': {'widths': [10**20]}}, 'network_g:tail:widths must be at least 1 and below'),
        ({'variant': 'pro', 'tail': {'depths': [10**9]}}, 'network_g:tail:depths must be at least 1 and below'),
        ({'num_components': 10**13}, 'network_g:num_components must be at least 1 and below'),
        ({'num_components': None, 'variant': 'plum'}, '^network_g: variant must be one of'),
    ],
)
def test_sizes_in_option_files(options, message):
    """What would take all memory is refused before it is built."""
    encoder = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1}
    with pytest.raises(UserError, match=message):
        check_network({'type': 'Thera', 'encoder': encoder, **options}, 'network_g', Thera)


@pytest.mark.parametrize(
    ('key', 'shape', 'message'),
    [
        ('params/components', (64,), 'params/components, which has not two axes'),
        ('params/out_conv/kernel', (1, 16, 128), 'params/out_conv/kernel, which has 3 axes'),
    ],
)
def test_arrays_of_other_shapes_are_one_line(golden, key, shape, message, tmp_path):
    content = read_checkpoint(golden[3])['model']
    content['sd'][key] = torch.zeros(shape)
    write_flax(content, str(tmp_path / 'model.pkl'))
    with pytest.raises(UserError, match=message):
        published.load_file(tmp_path / 'model.pkl')


def test_the_published_file_does_not_hold_everything(caplog):
    small = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 1.99996, 'rgb_mean': list(DIV2K_MEAN)}
    options = {'type': 'Thera', 'encoder': small, 'num_components': 5}
    published.to_published(options, Thera(small, num_components=5).state_dict())
    assert 'has num_components: 32' in caplog.text and '64 channels, 16 blocks and res_scale 1' in caplog.text
    assert thera.remarks({'variant': 'air'}, EDSR.published_spec(EDSR_64)) == []
    for spec in (
        EDSR.published_spec(EDSR_64 | {'res_scale': 0.1}),
        RDN.published_spec({'num_block': 16, 'num_layer': 8, 'num_grow_ch': 64, 'num_feat': 32}),
    ):
        assert 'or RDN of 64 channels and 16 blocks' in thera.remarks({'variant': 'air'}, spec)[0]
    rcan = {'type': 'RCAN', 'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4}
    with pytest.raises(UserError, match='the published Thera has no encoder RCAN; train it with EDSR or RDN'):
        published.to_published({'type': 'Thera', 'encoder': rcan}, Thera(rcan).state_dict())


def test_variation_is_the_slope_of_the_field():
    """By finite differences of the unfiltered signal, in double precision."""
    net, lq = build('Thera_air').double(), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    net.components.data *= 0.1
    coord = (torch.rand(2, 7, 2, dtype=torch.float64) * 2 - 1) * 0.9
    zero, size = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([4.0, 5.0], dtype=torch.float64)
    with torch.no_grad():
        feat: Features = net.encode(lq)
        slopes = []
        for axis in (0, 1):
            step = torch.zeros(2, dtype=torch.float64)
            step[axis] = 1e-5
            change = net.query(feat, coord + step, zero) - net.query(feat, coord - step, zero)
            slopes.append(change / 0.5 / (2 * step[axis] * size[axis] / 2))
        expected = torch.stack(slopes, dim=-1).abs().mean(dim=(1, 2, 3))
        found = net(lq, coord, torch.full((2, 2), 0.1, dtype=torch.float64), variation=True)[1]
    assert torch.allclose(found, expected, rtol=1e-4)
