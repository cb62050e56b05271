"""LIIF against MMagic's own, an independent implementation, with the same weights; skipped where there is no MMagic."""

import pytest
import torch

from clit_basicsr.archs import LIIF
from clit_basicsr.archs.encoders import build_encoder, load_pretrained
from clit_basicsr.hosts.mmagic import imports as mmagic_imports
from clit_basicsr.ops.geometry.coords import make_coord

mmagic_imports.prepare()
pytest.importorskip('mmagic')
from mmagic.models.editors import EDSRNet, RDNNet  # noqa: E402
from mmagic.models.editors.liif import LIIFEDSRNet, LIIFRDNNet  # noqa: E402

HIDDEN = [24, 16]
# (MMagic's class, its encoder, ours)
PAIRS = {
    'EDSR': (
        LIIFEDSRNet,
        dict(type='EDSRNet', in_channels=3, out_channels=3, mid_channels=8, num_blocks=2, res_scale=0.5),
        {'type': 'EDSR', 'num_feat': 8, 'num_block': 2, 'res_scale': 0.5},
    ),
    'RDN': (
        LIIFRDNNet,
        dict(
            type='RDNNet', in_channels=3, out_channels=3, mid_channels=8, num_blocks=2, num_layers=3, channel_growth=4
        ),
        {'type': 'RDN', 'num_feat': 8, 'num_block': 2, 'num_layer': 3, 'num_grow_ch': 4},
    ),
}


def save(net, path):
    """A file as MMagic writes it."""
    state = {f'generator.{key}': value for key, value in net.state_dict().items()}
    torch.save({'meta': {'iter': 1}, 'state_dict': state}, path)
    return str(path)


def pair(kind, path, local_ensemble=True, feat_unfold=True, cell=True):
    """MMagic's network with random weights, and ours with the same, its trunk from the file that MMagic would write."""
    theirs_class, encoder, opt = PAIRS[kind]
    torch.manual_seed(5)
    theirs = theirs_class(
        dict(encoder),
        dict(type='MLPRefiner', in_dim=8, out_dim=3, hidden_list=HIDDEN),
        local_ensemble=local_ensemble,
        feat_unfold=feat_unfold,
        cell_decode=cell,
    ).eval()
    opt = {**opt, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5], 'keep_normalization': True}
    ours = LIIF(opt, HIDDEN, local_ensemble=local_ensemble, feat_unfold=feat_unfold, cell=cell).eval()
    result = load_pretrained(ours.encoder, opt, save(theirs, path / 'iter_1.pth'))
    assert sorted(result.dropped) == sorted(key for key in theirs.state_dict() if key.startswith('imnet'))
    ours.decoder.load_state_dict(theirs.imnet.layers.state_dict())
    return theirs, ours


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(
    'switches', [{}, {'local_ensemble': False}, {'feat_unfold': False}, {'cell': False}], ids=lambda s: '-'.join(s)
)
@pytest.mark.parametrize('kind', sorted(PAIRS))
@torch.no_grad()
def test_liif_is_that_of_mmagic(kind, switches, tmp_path):
    theirs, ours = pair(kind, tmp_path, **switches)
    lq = torch.rand(2, 3, 9, 14)
    # MMagic's data preprocessor maps images to -1 ... 1 and back outside the network.
    feat = ours.encode(lq)
    assert relative(feat.z, theirs.gen_feature(2 * lq - 1)) < 1e-5
    anywhere = 2 * torch.rand(2, 300, 2) - 1
    for coord, size in ((anywhere, (31, 20)), (make_coord((22, 41)).expand(2, -1, 2), (22, 41))):
        cell = torch.tensor([2 / size[0], 2 / size[1]]).expand(2, 2)
        expected = theirs(2 * lq - 1, coord, cell.unsqueeze(1).expand(-1, coord.shape[1], 2))
        assert relative(2 * ours.query(feat, coord, cell) - 1, expected) < 1e-5


@pytest.mark.parametrize('size', [(27, 42), (22, 41), (9, 14)])  # x3 has queries halfway between pixels
@torch.no_grad()
def test_pictures_are_those_of_mmagic(size, tmp_path):
    theirs, ours = pair('EDSR', tmp_path)
    lq = torch.rand(1, 3, 9, 14)
    cell = torch.tensor([2 / size[0], 2 / size[1]]).expand(1, size[0] * size[1], 2)
    expected = theirs(2 * lq - 1, make_coord(size).unsqueeze(0), cell).transpose(1, 2).unflatten(2, size)
    assert relative(2 * ours.upscale(lq, size=size) - 1, expected) < 1e-5


@pytest.mark.parametrize(
    ('kind', 'theirs_class', 'layer'),
    [
        ('EDSR', EDSRNet, 'upsample'),
        ('RDN', RDNNet, 'upscale'),
    ],
)
@torch.no_grad()
def test_a_trunk_of_mmagic_keeps_its_normalisation(kind, theirs_class, layer, tmp_path):
    _, encoder, opt = PAIRS[kind]
    theirs = theirs_class(**{key: value for key, value in encoder.items() if key != 'type'}).eval()
    seen = []
    getattr(theirs, layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    x = torch.rand(2, 3, 9, 14)
    theirs(x)  # images of 0 ... 1: MMagic's data preprocessor divides by 255 for both
    ours = build_encoder(opt).eval()
    load_pretrained(ours, opt, save(theirs, tmp_path / 'iter_1.pth'))
    assert relative(ours(x), seen[0]) < 1e-5
