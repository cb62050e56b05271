"""Products shared by runs of fine pixels, convolutions over upsampled features, and how windows are cut for both."""

import pytest
import torch
import torch.nn.functional as F

from clit_basicsr.archs.clit_arch import CLIT
from clit_basicsr.archs.lit_arch import LIT
from clit_basicsr.ops import backends, operators, use_backend
from clit_basicsr.ops.attention import dense
from clit_basicsr.ops.attention.reference import PositionalBias
from clit_basicsr.ops.backends import cpu_backend
from clit_basicsr.ops.geometry.axes import affine_runs, convolution_taps, make_axis
from clit_basicsr.ops.geometry.coords import Frame
from clit_basicsr.ops.upsampled import Upsampling, upsample, upsampled_conv

HEADS, GRID, CHANNELS, OUTPUTS = 2, 5, 6, 19
TINY = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1}

needs_kernels = pytest.mark.skipif(
    cpu_backend.unavailable() is not None, reason='the CPU kernels are not built on this machine'
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fine_maps(lr, fine, origin, size, padding):
    """v = conv3x3(upsample(z)) on a window of the fine grid, (1, rows, columns, C), and its runs."""
    upsampling = Upsampling(Frame(lr), Frame(fine, origin), size, padding)
    whole = upsample(randn(1, CHANNELS, *lr), Upsampling(Frame(lr), Frame(fine), fine, padding))
    v = F.conv2d(whole, randn(CHANNELS, CHANNELS, 3, 3, seed=1), randn(CHANNELS, seed=2), padding=1)
    rows, cols = (slice(o, o + n) for o, n in zip(origin, size, strict=True))
    runs = [
        affine_runs(axis, upsampling.source, fine[axis], (origin[axis], origin[axis] + size[axis]), padding)
        for axis in (0, 1)
    ]
    return v[:, :, rows, cols].permute(0, 2, 3, 1).contiguous(), runs


GRIDS = [
    # LR size, fine size, origin and size of the window, padding
    ((3, 4), (48, 64), (0, 0), (48, 64), 'zeros'),
    ((3, 4), (48, 64), (5, 9), (31, 40), 'border'),
    ((5, 3), (37, 50), (0, 0), (37, 50), 'zeros'),
    ((4, 5), (45, 6), (2, 0), (43, 6), 'border'),
    ((2, 1), (40, 33), (0, 0), (40, 33), 'border'),
    ((6, 6), (24, 24), (1, 3), (20, 21), 'zeros'),
]


@pytest.mark.parametrize(('lr', 'fine', 'origin', 'size', 'padding'), GRIDS)
def test_values_are_affine_within_runs(lr, fine, origin, size, padding):
    v, runs = fine_maps(lr, fine, origin, size, padding)
    for axis, run in enumerate(runs):
        lines = v.transpose(1, 1 + axis).double()
        bends = (lines[:, 2:] - 2 * lines[:, 1:-1] + lines[:, :-2]).abs().amax((0, 2, 3)) / lines.abs().max()
        inside = run[2:] == run[:-2]
        assert len(run) == size[axis]
        # The weights of the interpolation are computed in single precision.
        assert not inside.any() or bends[inside].max() < 4e-6
    if fine[0] % lr[0] == 0 and origin == (0, 0):  # a run of s - 2 fine pixels between two pixels of the map below
        lengths = torch.unique_consecutive(runs[0], return_counts=True)[1].tolist()
        assert lengths.count(fine[0] // lr[0] - 2) >= lr[0] - 1


def test_runs_break_where_values_bend():
    """A number that would be wrong: one run too many is only slow, one too few is a wrong picture."""
    run = affine_runs(0, Frame((3, 3)), 24, (0, 24), 'zeros')
    # s = 8: pixels of the map below at 3.5, 11.5, 19.5; taps of 3 and 4 straddle the first, of 0 and 23 the border.
    starts = [i for i in range(1, 24) if run[i] != run[i - 1]]
    assert starts == [1, 3, 4, 5, 11, 12, 13, 19, 20, 21, 23]


@needs_kernels
@pytest.mark.parametrize('queries', [(1.27, 1.27), (3.5, 1.0), (0.6, 2.3)])
@pytest.mark.parametrize(('lr', 'fine', 'origin', 'size', 'padding'), GRIDS)
def test_dense_linear_runs_equals_dense_linear(lr, fine, origin, size, padding, queries):
    v, runs = fine_maps(lr, fine, origin, size, padding)
    q, k = randn(*v.shape, seed=3), randn(*v.shape, seed=4)
    weight, offset = randn(OUTPUTS, GRID**2 * CHANNELS, seed=5), randn(OUTPUTS, seed=6)
    bias = PositionalBias(2.0 ** torch.arange(3.0).double(), randn(HEADS, 12, seed=7), randn(HEADS, seed=8))
    axes = []
    for axis in (0, 1):
        n = round(fine[axis] * queries[axis])
        # queries of the window alone
        first, last = (round(p * queries[axis]) for p in (origin[axis] + 1, origin[axis] + size[axis] - 1))
        frame = Frame(fine, origin)
        axes.append(list(make_axis(axis, frame, size[axis], n, (first, last), GRID, HEADS, bias, v)))
    packed = backends.kernels('cpu').pack(weight, HEADS, GRID)
    plain = operators.dense_linear(q, k, v, packed, offset, *axes, 'cpu')
    shared = operators.dense_linear_runs(q, k, v, packed, offset, *axes, runs, 'cpu')
    assert plain.shape[-1] == OUTPUTS and plain.abs().max() > 1
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-6 * plain.abs().max().item())
    single = [t.float() for t in (q, k, v, packed, offset)]
    tables = [[t.float() if t.is_floating_point() else t for t in axis] for axis in axes]
    single[3] = backends.kernels('cpu').pack(weight.float(), HEADS, GRID)
    shared = operators.dense_linear_runs(*single, *tables, runs, 'cpu')
    torch.testing.assert_close(shared.double(), plain, rtol=0, atol=4e-6 * plain.abs().max().item())


@needs_kernels
def test_runs_are_shared_where_it_pays(monkeypatch):
    torch.manual_seed(0)
    net = CLIT(encoder=TINY, num_branches=3, dim=16, num_heads=2, grid_size=5, hidden_dims=(24, 16)).eval()
    used = []
    linear = operators.dense_linear_runs
    monkeypatch.setattr(dense.operators, 'dense_linear_runs', lambda *a: used.append(a) or linear(*a))
    lq = torch.rand(1, 3, 5, 7)
    for scale, shared in ((3, False), (8, False), (18, True), (30, True)):
        used.clear()
        with use_backend('cpu'):
            out = net.upscale(lq, scale=scale)
        assert bool(used) == shared
        with use_backend('reference'):
            expected = net.upscale(lq, scale=scale)
        torch.testing.assert_close(out, expected, rtol=0, atol=4e-6 * expected.abs().max().item())


@needs_kernels
@pytest.mark.parametrize('parts', [2, 3, 7])
@pytest.mark.parametrize(('ratio', 'padding'), [(2.7, 'zeros'), (1, 'border'), (5, 'zeros')])
def test_backward_of_upsampled_conv_does_not_depend_on_its_parts(parts, ratio, padding):
    lr = (7, 5)
    fine = tuple(round(n * ratio) for n in lr)
    taps = [
        tap
        for axis in (0, 1)
        for tap in convolution_taps(axis, Frame(lr), lr[axis], fine[axis], (0, fine[axis]), padding, torch.empty(0))
    ]
    grad = randn(*fine, OUTPUTS).float()
    found = []
    for count in (1, parts):
        products, bias = torch.zeros(*lr, 3, 3, OUTPUTS), torch.empty(OUTPUTS)
        torch.ops.clit_cpu.interpolate_products_backward(grad, *taps, count, products, bias)
        found.append((products, bias))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][1], grad.sum((0, 1)), rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize(('lr', 'scale'), [((40, 90), 2), ((40, 90), (1.3, 2.1)), ((9, 130), 3.4), ((14, 11), 18)])
def test_a_picture_does_not_depend_on_its_bands(lr, scale, monkeypatch):
    torch.manual_seed(0)
    cascade = max(scale if isinstance(scale, tuple) else (scale,)) > 4
    kind = (lambda **options: CLIT(num_branches=3, **options)) if cascade else LIT
    net = kind(encoder=TINY, dim=16, num_heads=2, grid_size=5, hidden_dims=(24,)).eval()
    lq = torch.rand(1, 3, *lr)
    with use_backend('cpu'):
        whole = net.upscale(lq, scale=scale)
        few = cpu_backend.tuning(lq.device)._replace(band_bytes=3 * 4 * 16 * 36 * 50, step_queries=700)
        monkeypatch.setattr(cpu_backend, 'tuning', lambda device: few)
        banded = net.upscale(lq, scale=scale)
    # Runs are cut at the borders of the blocks, and convolution libraries choose by the size of their input.
    torch.testing.assert_close(banded, whole, rtol=0, atol=1e-6 if cascade else 3e-7)


@needs_kernels
@pytest.mark.parametrize(('size', 'scale'), [(32, 2), (17, 2.7), (13, (1.5, 3))])
def test_tiles_of_whole_features_equal_the_whole(size, scale):
    """The encoder sees the whole picture, and each tile only the features that its queries read, however few."""
    torch.manual_seed(0)
    net = LIT(encoder=TINY, dim=32, num_heads=4, hidden_dims=(24,)).eval()
    lq = torch.rand(1, 3, 41, 37)
    with use_backend('cpu'):
        whole = net.upscale(lq, scale=scale)
        tiled = net.upscale(lq, scale=scale, tile={'tile_size': size, 'tile_pad': 64})
    torch.testing.assert_close(tiled, whole, rtol=0, atol=3e-7)


def test_upsampled_conv_gives_what_the_definition_gives():
    z, weight, bias = randn(2, CHANNELS, 4, 5), randn(7, CHANNELS, 3, 3, seed=1), randn(7, seed=2)
    upsampling = Upsampling(Frame((4, 5)), Frame((13, 9)), (13, 9), 'zeros')
    expected = F.conv2d(upsample(z, upsampling), weight, bias, padding=1)
    for backend in ('torch', *(['cpu'] if cpu_backend.unavailable() is None else [])):
        found = upsampled_conv(z, weight, bias, upsampling, backend)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())
