"""Encoders: the same features as the published trunks and as the hosts' networks have inside."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoders import HOSTS, SWINIR, host_network

from clit_basicsr.archs import LIIF, LIT, RDN
from clit_basicsr.archs.encoders import ENCODERS, build_encoder
from clit_basicsr.archs.encoders.trunk import RAW, Trunk, register_encoder
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.coords import make_coord

GOLDEN = Path(__file__).parent / 'golden'
PUBLISHED = {'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
GOLDEN_OPTIONS = {
    'encoder_rdn_A': {'type': 'RDN', 'num_block': 20, 'num_layer': 6, 'num_grow_ch': 32},
    'encoder_rdn_B': {'type': 'RDN'},
    'encoder_swinir': {
        'type': 'SwinIR',
        'img_size': 48,
        'embed_dim': 180,
        'depths': [6] * 6,
        'num_heads': [6] * 6,
        'window_size': 8,
        'mlp_ratio': 2.0,
        'conv_before_upsample': True,
    },
}


@pytest.mark.parametrize('name', sorted(GOLDEN_OPTIONS))
def test_features_of_the_published_encoders(name):
    data = np.load(GOLDEN / f'{name}.npz')
    meta = json.loads(bytes(data['meta']))
    generator = torch.Generator().manual_seed(meta['seed'])
    weights = {}
    for key, shape in sorted(meta['keys']):
        if 'attn_mask' in key or 'relative_position_index' in key:
            continue
        value = torch.randn(shape, generator=generator)
        if len(shape) >= 2:
            weights[key] = value * (1 / value[0].numel()) ** 0.5
        else:
            weights[key] = 1 + 0.1 * value if 'norm' in key and key.endswith('weight') else 0.1 * value
    assert sum(value.abs().double().sum() for value in weights.values()).item() == pytest.approx(data['check'].item())
    encoder = build_encoder({**GOLDEN_OPTIONS[name], **PUBLISHED}).eval()
    ours = encoder.state_dict()
    assert {key: list(ours[key].shape) for key, _ in meta['keys']} == dict(meta['keys'])
    encoder.load_state_dict({key: weights.get(key, ours[key]) for key, _ in meta['keys']})
    with torch.no_grad():
        feat = encoder(torch.from_numpy(data['inp']) * 0.5 + 0.5)
    expected = torch.from_numpy(data['feat'])
    assert encoder.out_channels == meta['out_dim'] == feat.shape[1]
    assert ((feat - expected).abs().max() / expected.abs().max()).item() < 1e-5


@pytest.mark.parametrize('kind', sorted(HOSTS))
def test_features_are_those_inside_the_host_network(kind):
    net, features = host_network(kind)
    encoder = build_encoder({'type': kind, **HOSTS[kind][1]}).eval()
    own = encoder.state_dict()
    encoder.load_state_dict({key: value for key, value in net.state_dict().items() if key in own})
    x = torch.rand(2, 3, 16, 12)
    with torch.no_grad():
        assert torch.equal(encoder(x), features(x))
    assert encoder.out_channels == features(x).shape[1]


def test_every_encoder_type_is_tested():
    assert set(HOSTS) == set(ENCODERS)


@pytest.mark.parametrize('upscale', [2, 3, 4])
def test_rdn_enlarges(upscale):
    net = RDN(num_feat=8, num_block=2, num_layer=3, num_grow_ch=4, upscale=upscale)
    out = net(torch.rand(2, 3, 5, 7))
    assert out.shape == (2, 3, 5 * upscale, 7 * upscale)
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ('opt', 'message'),
    [
        ({'type': 'EDSRR'}, 'must be one of'),
        ({'type': 'EDSR', 'num_feats': 8}, "no option 'num_feats'"),
        ({'type': 'EDSR', 'num_in_ch': 1}, 'must be 3'),
        ({'type': 'RRDBNet', 'scale': 2}, 'only scale 4'),
        ({'type': 'SwinIR', 'padding': 'reflect'}, "'window' or 'published'"),
        ({'type': 'SwinIR', 'ape': True}, 'ape'),
    ],
)
def test_wrong_options(opt, message):
    with pytest.raises(UserError, match=message):
        build_encoder(opt)


def test_feature_scale_follows_the_range():
    for img_range, expected in ((2, 1), (1, 1), (255, 2 / 255)):
        encoder = build_encoder({'type': 'EDSR', 'num_feat': 4, 'num_block': 1, 'img_range': img_range})
        assert encoder.feat_scale.item() == pytest.approx(expected)
    net = LIIF({'type': 'EDSR', 'num_feat': 4, 'num_block': 1, 'feat_scale': 0.25}, hidden_dims=[4])
    x = torch.rand(1, 3, 6, 5)
    assert torch.equal(net.encode(x).z, 0.25 * net.encoder(x))


def test_normalisation_travels_with_the_weights():
    other = {'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
    a = build_encoder({'type': 'EDSR', 'num_feat': 4, 'num_block': 1})
    b = build_encoder({'type': 'EDSR', 'num_feat': 4, 'num_block': 1, **other})
    b.load_state_dict(a.state_dict())
    x = torch.rand(1, 3, 6, 5)
    assert torch.equal(a(x), b(x))
    assert b.feat_scale.item() == pytest.approx(2 / 255)


def test_a_frozen_encoder_stays_as_it_is():
    net = LIIF({'type': 'SwinIR', **SWINIR, 'frozen': True}, hidden_dims=[4]).train()
    assert not net.encoder.training
    assert net.decoder.training
    net(torch.rand(1, 3, 8, 8), torch.zeros(1, 2, 2), torch.full((1, 2), 0.1)).sum().backward()
    assert all(p.grad is None for p in net.encoder.parameters())
    assert all(p.grad is not None for p in net.decoder.parameters())


@pytest.mark.parametrize('kind', HOSTS)
def test_reach_is_how_far_a_feature_looks(kind):
    torch.manual_seed(0)
    options = {key: value for key, value in HOSTS[kind][1].items() if not key.startswith('ups')}
    encoder, middle = build_encoder({'type': kind, **options}), 40
    x = torch.rand(1, 3, 2 * middle, 2 * middle, requires_grad=True)
    encoder.eval()(x)[0, :, middle, middle].abs().sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero() - middle  # (N, 2)
    farthest = int(seen.abs().max())
    if kind == 'RCAN':  # the whole image
        assert encoder.reach is None
        assert farthest == middle
    elif kind == 'SwinIR':  # windows: it depends on the place
        assert encoder.reach / 2 < farthest <= encoder.reach
    else:
        assert farthest == encoder.reach


class TestMargin:
    """SwinIR's windows: the image is mirrored up to whole windows, and queries land where they would without."""

    @staticmethod
    def net(**opt):
        torch.manual_seed(3)
        return LIT({'type': 'SwinIR', **SWINIR, **opt}, dim=8, num_heads=2, grid_size=3, hidden_dims=[8]).eval()

    @pytest.mark.parametrize(('padding', 'size'), [('window', (8, 12)), ('published', (12, 12))])
    def test_margin_is_mirrored_and_kept(self, padding, size):
        net = self.net(padding=padding)
        lq = torch.rand(1, 3, 8, 10)
        feat = net.encode(lq)
        assert (feat.z.shape[2:], feat.frame.size, feat.image_size) == (size, size, (8, 10))
        by_hand = torch.cat((lq, lq.flip(3)), dim=3)[..., :12]
        by_hand = torch.cat((by_hand, by_hand.flip(2)), dim=2)[:, :, : size[0]]
        assert torch.equal(feat.lq, by_hand)
        with torch.no_grad():
            assert torch.equal(feat.z, net.encoder(by_hand))

    def test_training_patches_of_whole_windows_get_no_margin(self):
        net = self.net(padding='published').train()
        assert net.encode(torch.rand(1, 3, 8, 8)).frame.size == (8, 8)

    @pytest.mark.parametrize('scale', [2, 3])
    def test_the_picture_is_cut_from_that_of_the_padded_image(self, scale):
        net = self.net(padding='published')
        lq = torch.rand(1, 3, 6, 9)
        out = net.upscale(lq, scale=scale)
        padded = net.encode(lq)
        h, w = padded.frame.size
        # The published way: the padded image is the image, all its HR pixels are asked for, the result is cut.
        whole = padded._replace(image_size=(h, w))
        cell = torch.tensor([[2 / (h * scale), 2 / (w * scale)]])
        with torch.no_grad():
            rgb = net.query(whole, make_coord((h * scale, w * scale)).unsqueeze(0), cell)
        expected = rgb.transpose(1, 2).unflatten(2, (h * scale, w * scale))[..., : 6 * scale, : 9 * scale]
        assert (out - expected).abs().max() < 1e-4

    def test_queries_of_an_image_with_a_margin(self):
        net = self.net()
        lq = torch.rand(2, 3, 5, 7)
        out = net.upscale(lq, size=(13, 16))
        with torch.no_grad():
            rgb = net.query(net.encode(lq), make_coord((13, 16)).expand(2, -1, 2), torch.tensor([[2 / 13, 2 / 16]] * 2))
        assert (rgb.transpose(1, 2).unflatten(2, (13, 16)) - out).abs().max() < 1e-4

    @pytest.mark.parametrize('size', [(1, 1), (1, 9), (3, 4)])
    def test_tiny_images(self, size):
        assert self.net().upscale(torch.rand(1, 3, *size), scale=2).isfinite().all()


class TestRegistration:
    class Complete(Trunk):
        host = torch.nn.Identity
        layouts = ()
        normalization = RAW
        published_layout = None
        paper = None

        @classmethod
        def describe(cls, weights, hints):
            return None

    def test_a_complete_class_is_known_by_its_hosts_name(self, monkeypatch):
        monkeypatch.setattr('clit_basicsr.archs.encoders.trunk.ENCODERS', known := {})
        assert register_encoder(self.Complete) is self.Complete
        assert known == {'Identity': self.Complete}

    @pytest.mark.parametrize('part', ['host', 'layouts', 'normalization', 'published_layout', 'paper', 'describe'])
    def test_a_part_that_is_missing_is_an_error_at_registration(self, part):
        parts = {key: value for key, value in vars(self.Complete).items() if key != part}
        with pytest.raises(UserError, match=f'Incomplete does not define {part} '):
            register_encoder(type('Incomplete', (Trunk,), parts))

    def test_a_published_encoder_needs_its_specification(self):
        parts = {**vars(self.Complete), 'published_layout': ()}
        with pytest.raises(UserError, match='does not define published_spec '):
            register_encoder(type('Incomplete', (Trunk,), parts))

    @pytest.mark.parametrize('kind', sorted(HOSTS))
    def test_weights_describe_their_encoder_and_no_other(self, kind):
        """Each encoder knows its own weights, and the options that their shapes show build the same trunk."""
        options = {'type': kind, **HOSTS[kind][1]}
        weights = build_encoder(options).state_dict()
        found = {name: cls.describe(weights, {}) for name, cls in ENCODERS.items()}
        assert [name for name, description in found.items() if description is not None] == [kind]
        again = build_encoder(found[kind]).state_dict()
        assert {key: value.shape for key, value in again.items()} == {k: v.shape for k, v in weights.items()}
