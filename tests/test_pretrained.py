"""Pretrained encoders: trunks out of the files of the host, of the original repositories and of MMagic."""

import pytest
import torch
from helpers.encoders import HOSTS, MEAN, NORMALIZATION, check, host_network, options

from clit_basicsr.archs import LIIF, LIT
from clit_basicsr.archs.encoders import ENCODERS, build_encoder, layouts, load_pretrained
from clit_basicsr.base.errors import UserError


@pytest.mark.parametrize('key', ['params', 'params_ema'])
@pytest.mark.parametrize('kind', sorted(HOSTS))
def test_host_checkpoint(kind, key, tmp_path):
    net, features = host_network(kind)
    wrong = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    torch.save({'params': wrong, key: net.state_dict()}, tmp_path / 'net_g_10.pth')
    x = torch.rand(2, 3, 16, 12)
    encoder, result = check(kind, tmp_path / 'net_g_10.pth', x, features(x))
    assert encoder.input_range.item() == NORMALIZATION[kind]
    assert encoder.feat_scale.item() == pytest.approx(min(1, 2 / NORMALIZATION[kind]))
    assert result.dropped
    assert not any(name.startswith(('body', 'layers', 'conv_first', 'RDBs')) for name in result.dropped)
    assert '\n' not in result.message


def test_weights_alone_without_upsampler(tmp_path):
    net, features = host_network('EDSR')
    trunk = {k: v for k, v in net.state_dict().items() if not k.startswith(('upsample', 'conv_last'))}
    torch.save({f'module.{k}': v for k, v in trunk.items()}, tmp_path / 'a.pth')
    x = torch.rand(1, 3, 8, 8)
    assert check('EDSR', tmp_path / 'a.pth', x, features(x))[1].dropped == []


@pytest.mark.parametrize(
    ('kind', 'layout', 'more', 'img_range'),
    [
        ('EDSR', ENCODERS['EDSR'].layouts[1], {'sub_mean.bias': -255 * torch.tensor(MEAN)}, 255),
        ('RCAN', ENCODERS['RCAN'].layouts[1], {'sub_mean.bias': -255 * torch.tensor(MEAN)}, 255),
        ('RDN', ENCODERS['RDN'].layouts[1], {}, 1),
        ('RRDBNet', ENCODERS['RRDBNet'].layouts[1], {}, 1),
        ('MSRResNet', ENCODERS['MSRResNet'].layouts[1], {}, 1),
    ],
)
def test_layouts_of_other_repositories(kind, layout, more, img_range, tmp_path):
    net, features = host_network(kind)
    own = build_encoder(options(kind))
    trunk = {k: v for k, v in net.state_dict().items() if k in own.state_dict()}
    theirs = layouts.rename_back(trunk, layout, n=99, m=98)
    assert set(theirs) != set(trunk)
    torch.save({**theirs, **more, 'tail.0.weight': torch.zeros(1)}, tmp_path / 'a.pt')
    x = torch.rand(1, 3, 8, 8)
    encoder, result = check(kind, tmp_path / 'a.pt', x, features(x))
    assert encoder.input_range.item() == img_range
    assert 'tail.0.weight' in result.dropped


def test_original_rdn_has_range_255(tmp_path):
    net, _ = host_network('RDN')
    torch.save({**net.state_dict(), 'UPNet.0.weight': torch.zeros(1)}, tmp_path / 'a.pt')
    encoder = build_encoder(options('RDN'))
    load_pretrained(encoder, options('RDN'), str(tmp_path / 'a.pt'))
    assert (encoder.input_range.item(), encoder.input_mean.abs().max().item()) == (255, 0)


def test_mmagic_checkpoint(tmp_path):
    net, features = host_network('EDSR')
    net.img_range = 1  # as MMagic's EDSRNet works
    state = {f'generator.{k}': v for k, v in net.state_dict().items()} | {'data_preprocessor.mean': torch.zeros(3)}
    torch.save({'meta': {'iter': 3}, 'state_dict': state}, tmp_path / 'iter_3.pth')
    x = torch.rand(1, 3, 8, 8)
    check('EDSR', tmp_path / 'iter_3.pth', x, features(x))


def test_encoders_of_our_own_and_of_published_networks(tmp_path):
    source = LIIF(options('EDSR', img_range=2, rgb_mean=[0.5, 0.5, 0.5]), hidden_dims=[4])
    torch.save({'params': source.state_dict()}, tmp_path / 'ours.pth')
    encoder = {k.removeprefix('encoder.'): v for k, v in source.state_dict().items() if k.startswith('encoder.')}
    encoder = {k: v for k, v in encoder.items() if k not in ('input_mean', 'input_range', 'feat_scale')}
    sd = {f'encoder.{k}': v for k, v in layouts.rename_back(encoder, ENCODERS['EDSR'].layouts[1], n=2).items()}
    torch.save({'model': {'name': 'liif', 'args': {}, 'sd': sd}}, tmp_path / 'published.pth')
    x = torch.rand(1, 3, 6, 5)
    for name in ('ours', 'published'):
        net = LIT(options('EDSR'), dim=8, num_heads=2, grid_size=3, hidden_dims=[8])
        load_pretrained(net.encoder, options('EDSR'), str(tmp_path / f'{name}.pth'))
        assert torch.equal(net.encode(x).z, source.encode(x).z)


def test_options_decide_where_they_are_given(tmp_path):
    net, _ = host_network('EDSR')
    torch.save({'params': net.state_dict()}, tmp_path / 'a.pth')
    opt = options('EDSR', img_range=2, rgb_mean=[0.5, 0.5, 0.5], keep_normalization=True)
    encoder = build_encoder(opt)
    load_pretrained(encoder, opt, str(tmp_path / 'a.pth'))
    assert (encoder.input_range.item(), encoder.feat_scale.item()) == (2, 1)
    opt = options('EDSR', feat_scale=0.5)
    load_pretrained(encoder, opt, str(tmp_path / 'a.pth'))
    assert (encoder.input_range.item(), encoder.feat_scale.item()) == (255, 0.5)


def test_a_published_swinir_takes_the_first_layer_behind_the_trunk(tmp_path):
    net, _ = host_network('SwinIR')
    torch.save({'params': net.state_dict()}, tmp_path / 'a.pth')
    opt = options('SwinIR', conv_before_upsample=True)
    encoder = build_encoder(opt)
    result = load_pretrained(encoder, opt, str(tmp_path / 'a.pth'))
    assert torch.equal(encoder.conv_before_upsample[0].weight, net.conv_before_upsample[0].weight)
    assert not any(key.startswith('conv_before_upsample') for key in result.dropped)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: w.pop('body.1.conv1.weight'), r'1 weights are missing \(body.1.conv1.weight\)'),
        (lambda w: w.update({'conv_first.bias': torch.zeros(9)}), r'conv_first.bias is \(9,\), not \(8,\)'),
        (lambda w: w.clear(), 'weights are missing'),
    ],
)
def test_files_that_do_not_fit(change, message, tmp_path):
    net, _ = host_network('EDSR')
    weights = dict(net.state_dict())
    change(weights)
    torch.save({'params': weights}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(build_encoder(options('EDSR')), options('EDSR'), str(tmp_path / 'a.pth'))
    assert '\n' not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    encoder, opt = build_encoder(options('EDSR')), options('EDSR')
    torch.save({'params': encoder.state_dict()}, tmp_path / 'whole.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:-500])
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    torch.save([1, 2], tmp_path / 'list.pth')
    torch.save({'params': object}, tmp_path / 'code.pth')
    for name in ('missing', 'cut', 'text', 'list', 'code'):
        with pytest.raises(UserError, match=rf'{name}\.pth') as error:
            load_pretrained(encoder, opt, str(tmp_path / f'{name}.pth'))
        assert '\n' not in str(error.value)
