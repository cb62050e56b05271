"""The MLP kernel against plain torch in double precision, and the decoders that it serves against their plain way."""

import pytest
import torch
from helpers.golden import relative_difference
from helpers.networks import build, queries
from torch import nn

from clit_basicsr.archs import implicit
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.ops import backends, decoder, use_backend

PEERS = ['LIIF', 'LIIF_bare', 'LTE', 'LTE_no_ensemble', 'IPE', 'UltraSR', 'MetaSR']
BOUNDS = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    backends.kernels('cpu')
    with torch.no_grad():
        yield


def exact(function, *tensors):
    """The result of plain torch in double precision."""
    with use_backend('torch'):
        return function(*(t.double() for t in tensors))


@pytest.mark.parametrize('dtype', BOUNDS)
@pytest.mark.parametrize('activation', [nn.ReLU, nn.GELU])
@pytest.mark.parametrize(
    'dims', [(1, [1], 1), (3, [7], 2), (33, [255, 257], 3), (256, [256, 256], 3), (300, [33, 1, 20], 17), (5, [], 3)]
)
def test_layers(dims, activation, dtype):
    inputs, hidden, outputs = dims
    layers = build_mlp(inputs, hidden, outputs, activation).double()
    for rows in (0, 1, 5, 193):
        x = torch.randn(rows, inputs, dtype=torch.float64) * 3
        expected = layers(x)
        single = build_mlp(inputs, hidden, outputs, activation).to(dtype)
        single.load_state_dict(layers.state_dict())
        fast = decoder.compiled(single, x.to(dtype))
        assert fast is not single
        found = fast(x.to(dtype))
        assert found.shape == expected.shape
        assert found.dtype == dtype
        if rows:
            assert relative_difference(found, expected) < BOUNDS[dtype]


@pytest.mark.parametrize('dtype', BOUNDS)
@pytest.mark.parametrize('activation', [nn.ReLU, nn.GELU])
@pytest.mark.parametrize('width', [1, 7, 256])
def test_layers_that_begin_with_the_activation(width, activation, dtype):
    layers = nn.Sequential(activation(), *build_mlp(width, [9], 3, activation)).to(dtype)
    x = torch.randn(2, 97, width, dtype=dtype)
    found = decoder.compiled(layers, x)(x)
    assert relative_difference(found, layers.double()(x.double())) < BOUNDS[dtype]


def test_gelu_is_exact_everywhere():
    """One layer of weight 1, so that only the activation is left."""
    x = torch.cat((torch.linspace(-12, 12, 100001), torch.tensor([0.0, -0.0, 1e-30, 1e4, -1e4, 1e30]))).unsqueeze(1)
    found = decoder.pack([torch.ones(1, 1)], [None], decoder.ACTIVATIONS[nn.GELU])(x, activate_first=True)
    expected = nn.functional.gelu(x.double())
    assert ((found - expected).abs() <= 1e-6 * x.abs().double().clamp(min=1e-30)).all()


def test_what_is_not_finite_stays_so():
    layers = build_mlp(4, [5], 3)
    x = torch.randn(3, 4)
    x[1, 2] = torch.nan
    found = decoder.compiled(layers, x)(x)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()
    gelu = nn.Sequential(nn.GELU(), *build_mlp(4, [5], 3, nn.GELU))
    assert decoder.compiled(gelu, x)(x)[1].isnan().all()


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('width', [1, 7, 33, 256])
def test_products_of_another_map_and_skip_connections(width, residual):
    gen = torch.Generator().manual_seed(0)
    appended = 5 if residual else 0
    shapes = [(width, 5), (width, width + appended), (width, width + appended), (3, width + appended)]
    weights = [torch.randn(shape, generator=gen, dtype=torch.float64) for shape in shapes]
    biases = [torch.randn(len(w), generator=gen, dtype=torch.float64) for w in weights]
    base, x = (torch.randn(n, k, generator=gen, dtype=torch.float64) for n, k in ((11, width), (200, 5)))
    index = torch.randint(0, 11, (200,), generator=gen)
    h = (x @ weights[0].t() + biases[0] + base[index]).relu()
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        inputs = torch.cat((h, x), dim=1) if residual else h
        h = (inputs @ weight.t() + bias).relu() + (h if residual else 0)
    expected = (torch.cat((h, x), dim=1) if residual else h) @ weights[-1].t() + biases[-1]
    for dtype, bound in BOUNDS.items():
        layers = decoder.pack([w.to(dtype) for w in weights], [b.to(dtype) for b in biases], residual=residual)
        found = layers(x.to(dtype), base.to(dtype), index)
        assert relative_difference(found, expected) < bound


@pytest.mark.parametrize('dim', [2, 14, 256])
@pytest.mark.parametrize('dtype', BOUNDS)
def test_textures(dim, dtype):
    layers = build_mlp(dim, [9], 3).double()
    maps, phase = torch.randn(11, 2 * dim).double(), torch.randn(2, 1, dim // 2).double()
    maps[:, dim:] *= 20
    index, dx = torch.randint(0, 11, (2, 99)), torch.rand(2, 99, 2).double() * 2 - 1
    local = maps[index]
    y, x = local[..., dim:].chunk(2, dim=-1)
    angle = torch.pi * (y * dx[..., :1] + x * dx[..., 1:] + phase)
    expected = layers(local[..., :dim] * torch.cat((angle.cos(), angle.sin()), dim=-1))
    fast = decoder.pack_sequential(layers.to(dtype))
    maps, dx, phase = (t.to(dtype) for t in (maps, dx, phase))
    found = fast.texture(maps, index, dx, phase)
    assert relative_difference(found, expected) < (3e-5 if dtype is torch.float32 else 1e-13)  # angles of up to 200
    assert torch.equal(found, fast.texture(maps, index, dx, phase.expand(-1, 99, -1)))


def test_rows_are_independent_of_each_other_and_of_threads():
    layers = build_mlp(33, [256, 70], 3, nn.GELU)
    x = torch.randn(1000, 33)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(decoder.compiled(layers, x)(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    pieces = torch.cat([decoder.compiled(layers, x)(part) for part in x.split([1, 5, 96, 97, 801])])
    assert torch.equal(results[0], pieces)


def test_rows_that_are_not_contiguous():
    layers = build_mlp(8, [16], 3)
    x = torch.randn(16, 50).t()[:, ::2]
    assert torch.equal(decoder.compiled(layers, x)(x), decoder.compiled(layers, x)(x.contiguous()))


def test_weights_that_change_in_place_are_seen():
    layers, x = build_mlp(8, [16], 3), torch.randn(5, 8)
    decoder.compiled(layers, x)(x)
    layers[0].weight.mul_(2)
    assert relative_difference(decoder.compiled(layers, x)(x), layers(x)) < 2e-6


def test_where_plain_torch_computes():
    layers, x = build_mlp(8, [16], 3), torch.randn(5, 8)
    for backend in ('torch', 'reference'):
        with use_backend(backend):
            assert decoder.compiled(layers, x) is layers
    with torch.enable_grad():
        assert decoder.compiled(layers, x) is layers
    with torch.autocast('cpu', torch.bfloat16):
        assert decoder.compiled(layers, x) is layers
    assert decoder.compiled(layers, x.bfloat16()) is layers
    assert decoder.compiled(layers, x.to('meta')) is layers
    with use_backend('cpu'):
        assert decoder.compiled(layers, x) is not layers


def test_wrong_shapes_are_refused():
    layers = decoder.pack([torch.randn(4, 3), torch.randn(2, 4)], [None, None])
    for arguments in (
        (torch.randn(5, 4),),
        (torch.randn(5, 3).double(),),
        (torch.randn(5, 3), torch.randn(6, 3), torch.zeros(5, dtype=torch.int64)),
        (torch.randn(5, 3), torch.randn(6, 4), torch.zeros(4, dtype=torch.int64)),
    ):
        with pytest.raises(RuntimeError, match='shape'):
            layers(*arguments)


def test_rows_that_do_not_exist_are_refused():
    layers = decoder.pack([torch.randn(4, 3), torch.randn(2, 4)], [None, None])
    texture = decoder.pack([torch.randn(4, 2)], [None])
    for row in (-1, 6):
        with pytest.raises(IndexError, match='of 6'):
            layers(torch.randn(1, 3), torch.randn(6, 4), torch.tensor([row]))
        with pytest.raises(IndexError, match='of 6'):
            texture.texture(torch.randn(6, 4), torch.tensor([[row]]), torch.zeros(1, 1, 2), torch.zeros(1, 1, 1))


def test_operators_are_registered_well():
    weights, biases = [torch.randn(8, 6), torch.randn(3, 8)], [torch.randn(8), torch.randn(3)]
    torch.library.opcheck(decoder.pack_layers, (weights, biases))
    packed = decoder.pack_layers(weights, biases)
    base, index = torch.randn(4, 8), torch.randint(0, 4, (5,))
    for rows in ((None, None), (base, index)):
        torch.library.opcheck(decoder.mlp, (torch.randn(5, 6), packed, [6, 8, 3], *rows, 1, False, False))
    arguments = (torch.randn(4, 12), index, torch.randn(5, 2), torch.randn(1, 3), packed, [6, 8, 3], 1)
    torch.library.opcheck(decoder.texture_mlp, arguments)


@pytest.mark.parametrize('count', [3, 480])  # products for each query, and for each pixel
@pytest.mark.parametrize('name', PEERS)
def test_peers_give_what_plain_torch_gives(name, count, monkeypatch):
    net, lq = build(name), torch.rand(2, 3, 7, 6)
    coord, cell = queries((24, 20), 2)
    coord = coord[:, torch.randperm(480)[:count]]
    feat = net.encode(lq)
    found = net.query(feat, coord, cell)
    with use_backend('reference'):
        expected = net.query(feat, coord, cell)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    for piece in ('KERNEL_QUERIES', 'TORCH_QUERIES'):  # the same in other pieces
        monkeypatch.setattr(implicit, piece, 7)
    assert (net.query(feat, coord, cell) - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize('name', [*PEERS, 'LIT_frequency_ensemble'])
def test_gradients_are_those_of_plain_torch(name):
    net, lq = build(name), torch.rand(2, 3, 7, 6)
    coord, cell = queries((24, 20), 2)
    gradients = []
    with torch.enable_grad():
        for backend in ('auto', 'reference'):
            net.zero_grad()
            with use_backend(backend):
                net(lq, coord[:, ::7], cell).square().sum().backward()
            gradients.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-9


@pytest.mark.parametrize('name', [*PEERS, 'LIT'])
def test_compiled_query(name):
    net, lq = build(name), torch.rand(1, 3, 7, 6)
    coord, cell = queries((24, 20), 1)
    feat = net.encode(lq)
    expected = net.query(feat, coord, cell)
    found = torch.compile(net.query, fullgraph=True, backend='aot_eager')(feat, coord, cell)
    torch.testing.assert_close(found, expected)


def test_double_precision():
    for name in PEERS:
        net, lq = build(name).double(), torch.rand(1, 3, 7, 6).double()
        fast = net.upscale(lq, scale=2.3)
        with use_backend('reference'):
            assert relative_difference(fast, net.upscale(lq, scale=2.3)) < 1e-12
