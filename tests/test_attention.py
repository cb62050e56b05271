"""Attention weights against the paper's equations written out, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from clit_basicsr.archs import build_network
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.coords import make_coord

ENCODER = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
SMALL = {'encoder': ENCODER, 'dim': 8, 'num_heads': 2, 'grid_size': 5, 'hidden_dims': [8]}


def network(kind='CLIT', **options):
    torch.manual_seed(3)
    net = build_network({'type': kind, **SMALL, **options}).double().eval()
    for parameter in net.parameters():  # weights far from uniform attention
        parameter.data.mul_(1.7)
    return net


def queries(size, picks, batch=1):
    coord = make_coord(size, dtype=torch.float64)[picks].expand(batch, -1, 2)
    return coord, torch.tensor([[2 / size[0], 2 / size[1]]], dtype=torch.float64).expand(batch, 2)


def corners_and_more(size):
    height, width = size
    return [0, width - 1, (height - 1) * width, height * width - 1, (height // 2) * width + width // 3, width + 1]


def written_out(net, branch, z, y, x):
    """Equations (4) to (6) for one query at position (y, x) of the pixel axis of the features z (C, h, w); numbers."""
    heads, grid, (_, height, width) = branch.spec.num_heads, branch.grid_size, z.shape
    q, k = (conv(z[None])[0] for conv in (branch.conv_q, branch.conv_k))
    inside = lambda map_, i, j: map_[:, i, j] if 0 <= i < height and 0 <= j < width else torch.zeros_like(map_[:, 0, 0])
    low_y, low_x = math.floor(y), math.floor(x)
    query = sum(
        (1 - abs(y - i)) * (1 - abs(x - j)) * inside(q, i, j) for i in (low_y, low_y + 1) for j in (low_x, low_x + 1)
    )
    middle = (min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1))
    logits = torch.zeros(heads, grid, grid, dtype=torch.float64)
    channels = len(query) // heads
    for row in range(grid):
        for col in range(grid):
            i, j = middle[0] + row - grid // 2, middle[1] + col - grid // 2
            key = inside(k, i, j)
            for head in range(heads):
                own = slice(head * channels, (head + 1) * channels)
                logits[head, row, col] = query[own] @ key[own] / math.sqrt(channels)
            if net.position_encoder is not None:
                f = net.position_encoder.freqs
                dy, dx = 2 * (y - i), 2 * (x - j)  # one pixel of the grid is 2 units
                gamma = torch.cat([(dy * f).sin(), (dx * f).sin(), (dy * f).cos(), (dx * f).cos()])
                logits[:, row, col] += net.position_encoder.proj(gamma)
    return logits.flatten(1).softmax(-1).view(heads, grid, grid)


@pytest.mark.parametrize(
    ('scale', 'grids'),
    [((2.5, 2.5), [(7, 9)]), ((6, 2.5), [(7, 9), (28, 22)]), ((20, 30), [(7, 9), (28, 36), (112, 144)])],
)
def test_the_weights_are_those_of_the_equations(scale, grids):
    net = network()
    lq = torch.rand(2, 3, 7, 9, dtype=torch.float64)
    size = (round(7 * scale[0]), round(9 * scale[1]))
    coord, cell = queries(size, corners_and_more(size), batch=2)
    with torch.no_grad():
        feat = net.encode(lq)
        found = net.attention(feat, coord, cell)
        assert [one.grid for one in found] == grids
        z1 = net.conv_in(feat.z)
        for branch, (weights, grid, center) in zip(net.branches, found, strict=False):
            assert weights.shape == (2, 6, 2, 5, 5)
            assert weights.min() >= 0
            torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(2, 6, 2, dtype=torch.float64))
            fine = make_coord(grid, dtype=torch.float64).view(1, *grid, 2).flip(-1).expand(2, -1, -1, 2)
            z = F.grid_sample(z1, fine, align_corners=False)  # zeros outside
            for image in range(2):
                for n, (y, x) in enumerate(coord[image].tolist()):
                    position = ((y + 1) * grid[0] / 2 - 0.5, (x + 1) * grid[1] / 2 - 0.5)
                    expected = written_out(net, branch, z[image], *position)
                    # the finer grids' pixel centres are float32 in any network
                    torch.testing.assert_close(weights[image, n], expected, atol=2e-6, rtol=1e-5)
                    nearest = [min(max(round(p), 0), m - 1) for p, m in zip(position, grid, strict=True)]
                    assert center[image, n].tolist() == nearest


def test_the_frequency_block_leaves_the_weights():
    plain, block = network('LIT'), network('LIT', frequency_dims=8)
    block.load_state_dict({k: v for k, v in plain.state_dict().items() if 'decoder' not in k}, strict=False)
    coord, cell = queries((14, 18), [0, 100, 251])
    feat = plain.encode(torch.rand(1, 3, 7, 9, dtype=torch.float64))
    with torch.no_grad():
        expected, found = (net.attention(feat, coord, cell)[0] for net in (plain, block))
    torch.testing.assert_close(found.weights, expected.weights)


def test_without_bias_and_keys_all_positions_weigh_the_same():
    net = network('LIT', position_encoding=None)
    net.branches[0].conv_k.weight.data.zero_()
    net.branches[0].conv_k.bias.data.zero_()
    coord, cell = queries((14, 18), [0, 100])
    weights = net.attention(net.encode(torch.rand(1, 3, 7, 9, dtype=torch.float64)), coord, cell)[0].weights
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 25))


def test_a_window_of_features_is_enough():
    net = network()
    feat = net.encode(torch.rand(1, 3, 24, 30, dtype=torch.float64))
    size = (24 * 6, 30 * 6)
    coord, cell = queries(size, [70 * size[1] + 90])
    whole = net.attention(feat, coord, cell)
    window = net.attention(feat.crop((2, 22), (4, 27)), coord, cell)
    for one, other in zip(whole, window, strict=True):
        torch.testing.assert_close(one.weights, other.weights)
        assert one.grid == other.grid and torch.equal(one.center, other.center)


@pytest.mark.parametrize(
    ('network_g', 'message'),
    [
        ({'type': 'LIIF', 'encoder': ENCODER}, 'LIIF has no local attention'),
        ({'type': 'Bicubic'}, 'Bicubic has no local attention'),
        ({'type': 'LIT', **SMALL, 'local_attention': False}, 'local_attention: false'),
        ({'type': 'LIT', **SMALL, 'local_attention': False, 'frequency_dims': 8}, 'local_attention: false'),
        ({'type': 'LIT', **SMALL, 'local_ensemble': True}, 'four local grids'),
    ],
)
def test_what_has_no_map_says_so(network_g, message):
    net = build_network(network_g)
    coord, cell = queries((14, 18), [0])
    with pytest.raises(UserError, match=message):
        net.attention(net.encode(torch.rand(1, 3, 7, 9)), coord.float(), cell.float())
