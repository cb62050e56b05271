"""Every backend of the local attention against the reference: whole pictures, queries and every gradient."""

import pytest
import torch

from clit_basicsr.archs.clit_arch import CLIT
from clit_basicsr.archs.lit_arch import LIT
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops import PositionalBias, backends, local_attention, use_backend
from clit_basicsr.ops.attention import dense
from clit_basicsr.ops.geometry.coords import Frame, make_coord

FAST = [name for name in backends.NAMES if name not in ('reference', 'cuda')]  # cuda has tests of its own
ENCODER = {'type': 'EDSR', 'num_feat': 16, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}


def network(arch=CLIT, **opt):
    """A small network whose attention is far from even, so that an error in it shows."""
    torch.manual_seed(0)
    net = arch(encoder=ENCODER, dim=32, num_heads=4, grid_size=5, hidden_dims=(24, 24), **opt)
    for branch in net.branches:
        for conv in (branch.conv_q, branch.conv_k, branch.conv_v):
            conv.weight.data *= 6
    return net


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def call(batch=2, size=(7, 5), queries=40, grid=5, heads=4, dim=32, out=11, dtype=torch.float32, bias=True):
    """Arguments of local_attention with queries everywhere: corners, edges, ties, one of them twice."""
    gen = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(batch, dim, *size, generator=gen, dtype=dtype, requires_grad=True) for _ in range(3))
    hr = (int(size[0] * 2.5), int(size[1] * 1.5))
    every = make_coord(hr, dtype=torch.float32).to(dtype)
    pick = torch.randint(0, len(every), (batch, queries), generator=gen)
    pick[:, :2], pick[:, 2:4] = 0, len(every) - 1
    weight = torch.randn(out, grid * grid * dim + 2, generator=gen, dtype=dtype).mul_(0.1).requires_grad_()
    params = PositionalBias(
        torch.tensor([0.0, 1.0, 7.3], dtype=dtype),
        torch.randn(heads, 12, generator=gen, dtype=dtype).requires_grad_(),
        torch.randn(heads, generator=gen, dtype=dtype).requires_grad_(),
    )
    cell = torch.rand(batch, queries, 2, generator=gen, dtype=dtype).requires_grad_()
    args = (q, k, v, every[pick], Frame(size), weight, torch.randn(out, generator=gen, dtype=dtype).requires_grad_())
    options = {'num_heads': heads, 'grid_size': grid, 'bias': params if bias else None, 'cell': cell}
    leaves = {'q': q, 'k': k, 'v': v, 'weight': weight, 'offset': args[-1], 'cell': cell}
    return args, options, leaves | ({'freq_weight': params.weight} if bias else {})


def answer(backend, args, options, leaves):
    out = local_attention(*args, **options, backend=backend)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    return out, torch.autograd.grad((out * direction).sum(), list(leaves.values()))


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (7, 5), (12, 9)])
@pytest.mark.parametrize('bias', [True, False])
def test_queries_and_gradients(backend, size, bias):
    args, options, leaves = call(size=size, bias=bias)
    expected, expected_grads = answer('reference', args, options, leaves)
    out, grads = answer(backend, args, options, leaves)
    assert difference(out, expected) < 5e-6
    for name, grad, value in zip(leaves, grads, expected_grads, strict=True):
        assert difference(grad, value) < 1e-5, name


@pytest.mark.parametrize('backend', FAST)
def test_error_is_within_twice_that_of_the_reference(backend):
    args, options, leaves = call(size=(12, 9), queries=300)
    exact_args, exact_options, exact_leaves = call(size=(12, 9), queries=300, dtype=torch.float64)
    with torch.no_grad():
        for name, leaf in exact_leaves.items():
            leaf.copy_(leaves[name])
        exact_args[3].copy_(args[3])
        exact_options['bias'].bias.copy_(options['bias'].bias)
    # The relative coordinates are those of single precision: they belong to the definition.
    exact, exact_grads = answer('reference', exact_args, exact_options, exact_leaves)
    for name in ('reference', backend):
        out, grads = answer(name, args, options, leaves)
        errors = [(a - b).norm() / b.norm() for a, b in zip((out, *grads), (exact, *exact_grads), strict=True)]
        if name == 'reference':
            allowed = [2 * error + 1e-7 for error in errors]
    assert all(error < limit for error, limit in zip(errors, allowed, strict=True)), (errors, allowed)


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('ratio', [1, 1.5, 2.5, 3.4, (1, 3), (2.5, 1.5)])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (7, 5)])
def test_pictures_of_one_branch(backend, size, ratio):
    check_picture(network(LIT), torch.rand(3, 3, *size), ratio, backend)


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('padding', ['zeros', 'border'])
@pytest.mark.parametrize('ratio', [5.5, 17, (18.3, 3)])
def test_pictures_of_a_cascade(backend, padding, ratio):
    check_picture(network(num_branches=3, upsampling_padding=padding), torch.rand(2, 3, 7, 5), ratio, backend)


@pytest.mark.parametrize('backend', FAST)
def test_bands_and_tiles_are_seamless(backend, monkeypatch):
    net, lq = network(num_branches=2), torch.rand(1, 3, 30, 41)
    expected = check_picture(net, lq, 4.7, backend)
    monkeypatch.setattr('clit_basicsr.ops.backends.contract.BAND_BYTES', 1)
    monkeypatch.setattr('clit_basicsr.ops.backends.contract.STEP_QUERIES', 100)
    monkeypatch.setattr('clit_basicsr.archs.lit_arch.SKIP_ROWS', 7)
    with use_backend(backend):
        assert difference(net.upscale(lq, scale=4.7), expected) < 1e-5
        assert difference(net.upscale(lq, scale=4.7, tile={'tile_size': 11, 'tile_pad': 16}), expected) < 1e-5


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('size', [(1, 1), (3, 2)])
def test_the_queries_of_one_pixel_are_parted_where_they_are_too_many(size, backend, monkeypatch):
    net, lq, counts = network(LIT), torch.rand(2, 3, *size), []
    expected = check_picture(net, lq, (9.3, 14), backend)
    monkeypatch.setattr('clit_basicsr.ops.backends.contract.STEP_QUERIES', 5)
    monkeypatch.setattr('clit_basicsr.ops.attention.dense.MOST_QUERIES', 11)  # fewer than a pixel's queries in one row
    linear = dense.operators.dense_linear
    monkeypatch.setattr(
        dense.operators, 'dense_linear', lambda *a: counts.append(len(a[5][0]) * len(a[6][0])) or linear(*a)
    )
    with use_backend(backend):
        assert difference(net.upscale(lq, scale=(9.3, 14)), expected) < 1e-5
    assert max(counts) <= 11
    assert sum(counts) == expected[:, 0].numel()


def check_picture(net, lq, ratio, backend):
    with use_backend('reference'):
        expected = net.upscale(lq, scale=ratio)
    with use_backend(backend):
        assert difference(net.upscale(lq, scale=ratio), expected) < 1e-5
    return expected


@pytest.mark.parametrize('backend', FAST)
def test_training_of_a_cascade(backend):
    net = network(num_branches=3)
    lq = torch.rand(2, 3, 9, 8)
    coord, cell = torch.rand(2, 50, 2) * 2 - 1, torch.tensor([[2 / 48, 2 / 40]]).expand(2, 2)
    results = []
    for name in ('reference', backend):
        net.zero_grad()
        with use_backend(name):
            out = net(lq, coord, cell, (2.0, 1.7, 1.5))
        out.square().sum().backward()
        results.append((out, {key: p.grad.clone() for key, p in net.named_parameters()}))
    (expected, expected_grads), (out, grads) = results
    assert difference(out, expected) < 1e-5
    for key, value in expected_grads.items():
        if key != 'position_encoder.proj.bias':  # its true gradient is 0
            assert difference(grads[key], value) < 1e-5, key


@pytest.mark.parametrize('backend', FAST)
def test_repeats_bit_by_bit(backend):
    first, second = (answer(backend, *call(size=(12, 9), queries=600)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_a_backend_that_cannot_run_says_why():
    args, options, _ = call()
    with pytest.raises(UserError, match=r'one of auto, .*reference; got .gpu.'):
        local_attention(*args, **options, backend='gpu')
    with pytest.raises(UserError, match="'torch' cannot run here: aggregation 'sum'"):
        local_attention(*args, **options, aggregation='sum', backend='torch')
    args[3].requires_grad_()
    with pytest.raises(UserError, match='gradient with respect to coord'):
        local_attention(*args, **options, backend='torch')
    out = local_attention(*args, **options)  # auto finds one that can
    assert torch.autograd.grad(out.sum(), args[3])[0].abs().max() > 0
