"""The networks: any size, any window, any number of branches give the same values."""

import numpy as np
import pytest
import torch

from clit_basicsr.archs import CLIT, LIT, Bicubic
from clit_basicsr.archs.clit_arch import parse_factors, split_scale
from clit_basicsr.archs.implicit import Features, output_size
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.attention.reference import local_attention
from clit_basicsr.ops.geometry.coords import Frame, make_coord
from clit_basicsr.ops.geometry.resize import imresize
from clit_basicsr.ops.geometry.sampling import upsample_bilinear

EDSR = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
SMALL = {'encoder': EDSR, 'dim': 8, 'num_heads': 2, 'grid_size': 5, 'hidden_dims': [16, 16]}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def lit(**options):
    return LIT(**{**SMALL, **options}).eval()


def clit(**options):
    return CLIT(**{**SMALL, **options}).eval()


def on_full_grid(net, lq, size, scales):
    coord = make_coord(size).expand(lq.shape[0], -1, 2)
    cell = torch.tensor([2 / size[0], 2 / size[1]]).expand(lq.shape[0], 2)
    with torch.no_grad():
        rgb = net.query(net.encode(lq), coord, cell, scales)
    return rgb.transpose(1, 2).unflatten(2, size)


@pytest.mark.parametrize(
    'scale, expected',
    [
        ((2.0, 2.0), [(2, 2)]),
        ((4.0, 4.0), [(4, 4)]),
        ((5.0, 5.0), [(4, 4), (1.25, 1.25)]),
        ((18.0, 18.0), [(4, 4), (4, 4), (1.125, 1.125)]),
        ((100.0, 100.0), [(4, 4), (4, 4), (6.25, 6.25)]),  # more than three branches would be needed
        ((8.0, 2.0), [(4, 2), (2, 1)]),  # the larger axis decides
        ((1.0, 6.0), [(1, 4), (1, 1.5)]),
    ],
)
def test_split_scale(scale, expected):
    assert split_scale(scale, 3) == tuple(expected)
    assert np.allclose(np.prod(split_scale(scale, 3), axis=0), scale)


def test_factors_in_every_form():
    expected = ((2.5, 2.5), (3.0, 3.0))
    assert parse_factors([2.5, 3]) == expected
    assert parse_factors([[2.5, 2.5], [3, 3]]) == expected
    assert parse_factors(torch.tensor([2.5, 3.0])) == expected
    assert parse_factors(torch.tensor([[[2.5, 2.5], [3.0, 3.0]]] * 4)) == expected
    for wrong in ([], [0.0], [float('nan')], [-2]):
        with pytest.raises(UserError, match='positive factor'):
            parse_factors(wrong)


@pytest.mark.parametrize('scale', [1, 2, 1.5, 3.4, (2, 3.7), (1.2, 5)])
@pytest.mark.parametrize('make', [lit, clit, lambda: Bicubic()], ids=['LIT', 'CLIT', 'Bicubic'])
def test_upscale_is_query_on_the_full_grid(make, scale, monkeypatch):
    net, lq = make(), torch.rand(2, 3, 7, 11)
    size, factors = output_size((7, 11), None, scale)
    expected = on_full_grid(net, lq, size, net.plan_scales(factors))
    assert torch.allclose(net.upscale(lq, scale=scale), expected, atol=1e-6)
    monkeypatch.setattr('clit_basicsr.archs.implicit.PIECE', 5)
    monkeypatch.setattr('clit_basicsr.archs.lit_branch.MAX_QUERIES', 7)
    assert torch.allclose(net.upscale(lq, scale=scale), expected, atol=1e-6)


@pytest.mark.parametrize('make', [lit, clit])
def test_a_picture_permuted_from_an_array_gives_the_same_bits(make):
    net, picture = make(), torch.rand(25, 13, 3)
    permuted = picture.permute(2, 0, 1)[None]  # strides (3, 1, 39, 3)
    assert torch.equal(net.upscale(permuted, scale=(1.3, 2)), net.upscale(permuted.contiguous(), scale=(1.3, 2)))


@pytest.mark.parametrize(
    'options',
    [{}, {'grid_size': 1}, {'local_attention': False}, {'upsampling_padding': 'border'}, {'residual_weight': 1}],
)
@pytest.mark.parametrize('scale', [2, 5.3, 17])
def test_pieces_of_the_features_answer_like_the_whole(options, scale, monkeypatch):
    """Cutting the features with their halo leaves nothing out, in branches on upsampled features too."""
    net, lq = clit(**options), torch.rand(1, 3, 12, 15)
    size, factors = output_size((12, 15), None, scale)
    expected = on_full_grid(net, lq, size, net.plan_scales(factors))
    monkeypatch.setattr('clit_basicsr.archs.implicit.PIECE', 23)
    assert torch.allclose(net.upscale(lq, scale=scale), expected, atol=1e-6)


def test_tiles_equal_the_whole_where_the_pad_covers_the_encoder():
    net, lq = clit(), torch.rand(1, 3, 37, 41)
    whole = net.upscale(lq, scale=2.6)
    # receptive field: four 3x3 convolutions in the encoder, and the reach of the decoder
    tiled = net.upscale(lq, scale=2.6, tile={'tile_size': 10, 'tile_pad': net.reach + 4})
    assert torch.allclose(tiled, whole, atol=1e-6)
    seams = net.upscale(lq, scale=2.6, tile={'tile_size': 10, 'tile_pad': net.reach})
    assert not torch.allclose(seams, whole, atol=1e-6)
    with pytest.raises(UserError, match=f'tile_pad at least {net.reach}'):
        net.upscale(lq, scale=2, tile={'tile_size': 10, 'tile_pad': 2})


@pytest.mark.parametrize('dtype', [torch.uint8, torch.uint16, torch.float32])
def test_tiles_one_by_one_cover_the_picture_once(dtype):
    net, lq = clit(), torch.randint(0, 256, (2, 3, 13, 17))
    whole = net.upscale(lq / 255, scale=(2.6, 3))
    lq = {torch.uint8: lq.to(dtype), torch.uint16: (257 * lq).to(dtype), torch.float32: lq / 255}[dtype]
    out, count = torch.zeros_like(whole), torch.zeros(whole.shape[2:], dtype=torch.int64)
    encoded = []
    net.encoder.register_forward_hook(lambda *_: encoded.append(1))
    for pad in (net.reach + 4, 17):
        for rows, cols, part in net.upscale_tiles(lq, scale=(2.6, 3), tile={'tile_size': 6, 'tile_pad': pad}):
            out[..., rows, cols] = part
            count[rows, cols] += 1
        assert torch.allclose(out, whole, atol=1e-6)
    assert (count == 2).all()
    assert len(encoded) == 3 * 3 + 1  # with the whole image around them, tiles share its features


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (2, 1)])
def test_tiny_images(size):
    for net in (lit(), clit(), Bicubic()):
        for scale in (1, 2.5, 9):
            out = net.upscale(torch.rand(1, 3, *size), scale=scale)
            assert out.shape[2:] == (round(size[0] * scale), round(size[1] * scale))
            assert out.isfinite().all()


def test_sizes_round_half_to_even_and_wrong_ones_are_refused():
    assert output_size((11, 13), None, 2.5)[0] == (28, 32)  # 27.5 and 32.5
    assert output_size((10, 10), (15, 20), None) == ((15, 20), (1.5, 2.0))
    for size, scale in ((None, 0), (None, -2), (None, float('nan')), (None, 0.5), (None, (2, 0)), ((5, 20), None)):
        with pytest.raises(UserError, match='at least'):
            output_size((10, 10), size, scale)
    for size, scale in ((None, None), ((20, 20), 2)):
        with pytest.raises(UserError, match='one of the two'):
            output_size((10, 10), size, scale)
    for scale in ('twice', '34', (2, 3, 4), torch.ones(2, 2), 10**400):
        with pytest.raises(UserError, match='a number, or a pair'):
            output_size((10, 10), None, scale)
    with pytest.raises(UserError, match='too large for a picture of 10 rows and 7 columns'):
        output_size((10, 7), None, 1e308)
    for size in (20, (20.5, 30), (20, 30, 40), (float('nan'), 30), '99'):
        with pytest.raises(UserError, match='a pair'):
            output_size((10, 10), size, None)


@pytest.mark.parametrize('number', [np.float32, np.float64, np.array, torch.tensor])
def test_numbers_of_numpy_and_torch_are_numbers(number):
    assert output_size((10, 7), None, number(2.5)) == ((25, 18), (2.5, 2.5))
    assert output_size((10, 7), None, (number(2.5), number(3))) == ((25, 21), (2.5, 3.0))
    assert output_size((10, 7), None, np.int64(3)) == ((30, 21), (3.0, 3.0))
    assert output_size((10, 7), None, torch.tensor([2.5, 3])) == ((25, 21), (2.5, 3.0))
    assert output_size((10, 7), (np.int64(20), torch.tensor(21)), None) == ((20, 21), (2.0, 3.0))
    assert Bicubic().upscale(torch.rand(1, 3, 10, 7), scale=number(2.5)).shape == (1, 3, 25, 18)


def test_plain_forward_answers_at_the_scale_of_the_option():
    net, lq = lit(upscale=2), torch.rand(1, 3, 6, 5)
    assert torch.equal(net(lq), net.upscale(lq, scale=2))


def test_scales_are_found_from_the_cell():
    net, lq = clit(), torch.rand(1, 3, 6, 8)
    feat, coord = net.encode(lq), torch.rand(1, 9, 2) * 2 - 1
    cell = torch.tensor([[2 / 30, 2 / 40]])
    expected = net.query(feat, coord, cell, [(4, 4), (1.25, 1.25)])
    assert torch.allclose(net.query(feat, coord, cell), expected, atol=1e-6)
    assert torch.allclose(net.query(feat, coord, cell.expand(9, 2).unsqueeze(0)), expected, atol=1e-6)


def test_a_batch_is_its_images_one_by_one():
    net, lq = clit(), torch.rand(3, 3, 6, 8)
    coord, cell = torch.rand(3, 17, 2) * 2 - 1, torch.tensor([[2 / 48, 2 / 64]]).expand(3, 2)
    together = net(lq, coord, cell, [4, 2])
    for i in range(3):
        alone = net(lq[i : i + 1], coord[i : i + 1], cell[i : i + 1], [4, 2])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


def test_every_parameter_gets_a_gradient_and_only_active_branches_do():
    net = clit().train()
    coord, cell = torch.rand(1, 5, 2), torch.full((1, 2), 0.02)
    net(torch.rand(1, 3, 6, 6), coord, cell, [2, 2]).sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith('branches.2'), name
    net(torch.rand(1, 3, 6, 6), coord, cell, [2, 2, 2]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_lit_and_clit_of_one_branch_are_the_same_network():
    one, other = lit(), clit(num_branches=1)
    other.load_state_dict(one.state_dict())
    lq = torch.rand(1, 3, 7, 8)
    assert torch.equal(one.upscale(lq, scale=3.3), other.upscale(lq, scale=3.3))
    one.load_state_dict(other.state_dict())


def test_a_checkpoint_of_fewer_branches_loads_and_uses_only_them():
    small, large = lit(), clit()
    large.load_state_dict(small.state_dict())
    assert large.num_trained_branches == 1
    lq = torch.rand(1, 3, 7, 8)
    assert torch.equal(small.upscale(lq, scale=9), large.upscale(lq, scale=9))
    two = clit(num_branches=2)
    large.load_state_dict(two.state_dict())
    assert large.num_trained_branches == 2
    with pytest.raises(RuntimeError, match='branches'):
        two.load_state_dict(clit().state_dict())


@pytest.mark.parametrize('aggregation', ['flatten', 'sum'])
def test_attention_of_one_query_by_hand(aggregation):
    """Equations (1)-(7) for one query of one head, with loops, in the middle and in a corner of the image."""
    c, grid = 3, 3
    q, k, v = torch.rand(3, 1, c, 4, 5, dtype=torch.float64).unbind(0)
    weight = torch.rand(2, (grid * grid if aggregation == 'flatten' else 1) * c, dtype=torch.float64)
    for row, col in ((1, 2), (0, 0)):
        coord = torch.tensor([[[-1 + (2 * row + 1) / 4, -1 + (2 * col + 1) / 5]]], dtype=torch.float64)
        logits, values = [], []
        for y in (row - 1, row, row + 1):
            for x in (col - 1, col, col + 1):
                inside = 0 <= y < 4 and 0 <= x < 5
                key = k[0, :, y, x] if inside else torch.zeros(c, dtype=torch.float64)
                logits.append(q[0, :, row, col] @ key / c**0.5)
                values.append(v[0, :, y, x] if inside else torch.zeros(c, dtype=torch.float64))
        attention = torch.stack(logits).softmax(0)
        z = attention.unsqueeze(1) * torch.stack(values)
        expected = weight @ (z.flatten() if aggregation == 'flatten' else z.sum(0))
        out = local_attention(
            q,
            k,
            v,
            coord,
            Frame((4, 5)),
            weight,
            torch.zeros(2, dtype=torch.float64),
            num_heads=1,
            grid_size=grid,
            aggregation=aggregation,
        )
        assert torch.allclose(out[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize('padding', ['zeros', 'border'])
def test_upsampling_is_torchs_own(padding):
    feat = torch.rand(2, 3, 7, 9)
    for size in ((7, 9), (16, 29), (200, 31)):
        grid = make_coord(size).flip(-1).unflatten(0, size).expand(2, -1, -1, -1)
        expected = torch.nn.functional.grid_sample(feat, grid, padding_mode=padding, align_corners=False)
        assert torch.allclose(upsample_bilinear(feat, Frame((7, 9)), size, padding=padding), expected, atol=1e-6)


@pytest.mark.parametrize('size', [(14, 22), (7, 40), (26, 35)])
def test_bicubic_is_imresize(size):
    lq = torch.rand(2, 3, 7, 11)
    assert torch.allclose(Bicubic().upscale(lq, size), imresize(lq, size), atol=2e-6)


def test_features_keep_their_place_when_cropped():
    lq = torch.arange(30.0).view(1, 1, 5, 6).expand(1, 3, 5, 6)
    feat = Features(lq, lq, Frame((5, 6)), (5, 6)).crop((-3, 4), (2, 99)).crop((1, 3), (0, 5))
    assert feat.frame == Frame((5, 6), (1, 2))
    assert torch.equal(feat.z, lq[..., 1:3, 2:5])


@pytest.mark.parametrize(
    'options, message',
    [
        ({'grid_size': 4}, 'odd'),
        ({'num_heads': 3}, 'multiple of num_heads'),
        ({'num_branches': 0}, 'num_branches'),
        ({'aggregation': 'mean'}, 'aggregation'),
        ({'position_encoding': 'sin'}, 'position_encoding'),
        ({'upsampling_padding': 'mirror'}, 'upsampling_padding'),
        ({'residual_weight': 0}, 'residual_weight must be above 0 and at most 1; got 0'),
        ({'residual_weight': 1.5}, 'residual_weight'),
        ({'encoder': {'type': 'EDSN'}}, 'must be one of: EDSR'),
        ({'encoder': {'type': 'EDSR', 'num_feats': 8}}, "no option 'num_feats'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        clit(**options)


def test_paper_sized_networks_have_the_papers_size():
    """CLIT with EDSR-baseline: 6.55, 11.73, 16.91 million parameters for 1, 2, 3 branches in the published layout."""
    for branches, millions in ((1, 6.55), (2, 11.73), (3, 16.91)):
        net = CLIT({'type': 'EDSR'}, num_branches=branches, position_encoding='published')
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions
