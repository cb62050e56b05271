"""The operators as torch sees them: schemas, fake kernels, gradients in double precision, compilation, threads."""

import subprocess
import sys
import time

import pytest
import torch

from clit_basicsr.archs.lit_arch import LIT
from clit_basicsr.ops import PositionalBias, backends, operators, use_backend
from clit_basicsr.ops.backends import constant
from clit_basicsr.ops.geometry.axes import convolution_taps, make_axis
from clit_basicsr.ops.geometry.coords import Frame, nearest_index, pixel_centers

FAST = [name for name in backends.NAMES if name not in ('reference', 'cuda')]  # cuda has tests of its own
ENCODER = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}


def operator_calls(backend, dtype=torch.float64, queries=6, size=(4, 3), dim=6, heads=2, grid=3, out=5):
    """Every operator with differentiable arguments: name -> (operator, arguments)."""
    gen = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=gen, dtype=dtype).requires_grad_()

    y, x = (torch.randint(0, n, (2, queries), generator=gen) for n in size)
    maps = randn(2, *size, dim)
    weight, offset = randn(out, grid * grid * dim), randn(out)
    tables = randn(2, queries, grid, heads), randn(2, queries, grid, heads)
    logits = randn(2, queries, heads, grid * grid)
    taps = []
    axes = []
    bias = PositionalBias(torch.tensor([0.0, 3.0], dtype=dtype), randn(heads, 8).detach(), randn(heads).detach())
    for axis, n in enumerate(size):
        fine = round(n * 2.5)
        taps += convolution_taps(axis, Frame(size), n, fine, (0, fine), 'zeros', maps.detach())
        axes.append(list(make_axis(axis, Frame(size), n, fine, (1, fine), grid, heads, bias, maps.detach())))
    plain = [t.detach() for t in (randn(2, *size, dim), maps, randn(2, *size, dim))]
    packed = backends.kernels(backend).pack(weight.detach(), heads, grid)
    return {
        'attention': (operators.attention, (randn(2, queries, dim), maps, *tables, y, x, backend)),
        'attend_linear': (operators.attend_linear, (logits, maps, weight, y, x, backend)),
        'upsampled_conv': (operators.upsampled_conv, (maps, randn(4, dim, 3, 3), randn(4), *taps, backend)),
        'dense_linear': (operators.dense_linear, (*plain, packed, offset.detach(), *axes, backend)),
    }


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('name', ['attention', 'attend_linear', 'upsampled_conv', 'dense_linear'])
def test_operator_is_registered_well(name, backend):
    torch.library.opcheck(*operator_calls(backend, torch.float32)[name])


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('name', ['attention', 'attend_linear', 'upsampled_conv'])
@pytest.mark.parametrize('size', [(4, 3), (1, 1)])
def test_gradients_are_the_derivatives(name, backend, size):
    function, arguments = operator_calls(backend, size=size)[name]
    torch.autograd.gradcheck(function, arguments, nondet_tol=0)


@pytest.mark.parametrize('backend', FAST)
def test_gradient_operators_are_registered_well(backend):
    calls = operator_calls(backend, torch.float32)
    for name in ('attention', 'attend_linear', 'upsampled_conv'):
        function, arguments = calls[name]
        arguments = [t.detach() if torch.is_tensor(t) else t for t in arguments]
        out = function(*arguments)
        if name == 'attention':
            saved = out, *(arguments[i] for i in (0, 1, 4, 5, 6))
        else:
            saved = (t for i, t in enumerate(arguments) if name != 'upsampled_conv' or i != 2)
        torch.library.opcheck(getattr(operators, f'{name}_backward'), (out.sin(), *saved))


@pytest.mark.parametrize('backend', FAST)
def test_what_has_no_gradient_says_so(backend):
    calls = operator_calls(backend)
    function, (q, k, v, *rest) = calls['dense_linear']
    out = function(q, k, v.requires_grad_(), *rest)
    with pytest.raises(RuntimeError, match=r'dense_linear\.default has no gradient'):
        out.sum().backward()
    for name in ('attention', 'attend_linear', 'upsampled_conv'):
        function, arguments = calls[name]
        (first,) = torch.autograd.grad(function(*arguments).sin().sum(), arguments[0], create_graph=True)
        with pytest.raises(RuntimeError, match=rf'{name}_backward\.default has no gradient'):
            first.sum().backward()


def test_a_kernel_called_at_a_graph_break_is_not_compiled():
    function, arguments = operator_calls('torch', torch.float32)['attention']
    graphs = []

    def collect(graph, inputs):
        graphs.append(graph.code)
        return graph

    def broken(*arguments):
        return eval('function(*arguments)', {'function': function, 'arguments': arguments}).sin()  # eval breaks it

    out = torch.compile(broken, backend=collect)(*arguments)
    assert torch.equal(out, broken(*arguments))
    (rest,) = graphs
    assert 'sin()' in rest and 'softmax' not in rest


def test_formulas_that_decide_ties_are_left_as_they_are():
    """A compiler that rounds a product and a sum together would move ties, so it gets to see neither."""
    graphs = []

    def collect(graph, inputs):
        graphs.append(graph.code)
        return graph

    def nearest(start):
        return nearest_index(pixel_centers(15, dtype=torch.float32) + start, 10)  # x1.5: every third is a tie

    start = torch.zeros(15)
    assert torch.equal(torch.compile(nearest, fullgraph=True, backend=collect)(start), nearest(start))
    (code,) = graphs
    assert 'clit.centers_of' in code and 'clit.nearest_pixel' in code
    assert 'round' not in code and ' * ' not in code


@pytest.mark.parametrize('backend', FAST)
def test_compiled_training_step(backend):
    net = LIT(encoder=ENCODER, dim=16, num_heads=2, grid_size=3, hidden_dims=(8,))
    lq, coord, cell = torch.rand(2, 3, 6, 5), torch.rand(2, 20, 2) * 2 - 1, torch.full((2, 2), 0.1)
    with use_backend(backend):
        expected = net(lq, coord, cell)
        expected.square().sum().backward()
        gradient = net.conv_in.weight.grad.clone()
        net.zero_grad()
        out = torch.compile(net, fullgraph=True, backend='aot_eager')(lq, coord, cell)
        out.square().sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(net.conv_in.weight.grad, gradient)


@pytest.mark.parametrize('backend', FAST)
def test_autocast(backend):
    net = LIT(encoder=ENCODER, dim=16, num_heads=2, grid_size=3, hidden_dims=(8,))
    lq, coord, cell = torch.rand(2, 3, 6, 5), torch.rand(2, 20, 2) * 2 - 1, torch.full((2, 2), 0.1)
    expected = net(lq, coord, cell)
    function, arguments = operator_calls(backend, torch.float32)['attend_linear']
    with torch.autocast('cpu', torch.bfloat16):
        out = net(lq, coord, cell)
        halves = [t.bfloat16() if torch.is_tensor(t) and t.is_floating_point() else t for t in arguments]
        assert function(*halves).dtype == torch.float32  # cast up, not computed in half precision
    out.float().square().sum().backward()
    assert (out - expected).abs().max() < 0.02
    assert net.conv_in.weight.grad.isfinite().all()


def test_constant_results_are_marked_as_torch_marks_them():
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked) == {constant.MARK: True} == vars(constant.constant_result(lambda: None))
    calls = []

    @constant.constant_result
    def answer():
        calls.append('a call that tracing would reject: ' + time.strftime('%Y'))
        return len(calls)

    compiled = torch.compile(lambda x: x + answer(), fullgraph=True, backend='eager')
    assert compiled(torch.zeros(1)).item() == compiled(torch.zeros(1)).item() == 1 == len(calls)


def test_a_later_torch_marks_constant_results_itself(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.99.0.dev20990101+cpu')
    monkeypatch.setattr(torch.compiler, 'assume_constant_result', lambda function: (function, 'by torch'))
    assert constant.constant_result(len) == (len, 'by torch')


def bits(backend):
    """One number per operator result and gradient, all of them at sizes where several threads have work. Without the
    convolution: its products are torch's, whose library may cut them differently for each number of threads.
    """
    sums = []
    for name, (function, arguments) in operator_calls(
        backend, torch.float32, queries=700, size=(24, 19), dim=32, heads=4, grid=5, out=96
    ).items():
        if name == 'upsampled_conv':
            continue
        out = function(*arguments)
        results = [out]
        if name != 'dense_linear':
            leaves = [t for t in arguments if torch.is_tensor(t) and t.requires_grad]
            results += torch.autograd.grad(out, leaves, out.detach().sin())
        sums += [t.detach().contiguous().view(torch.int32).long().sum().item() for t in results]
    return sums


def test_cpu_kernels_give_the_same_bits_on_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(bits('cpu'))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


SCRIPT = """
import warnings
from pathlib import Path
from clit_basicsr.ops.backends import native
native.PREBUILT = Path('nowhere')
assert native.find() is None                                   # importing built nothing
import torch
from clit_basicsr.ops import backends
from clit_basicsr.ops.backends.contract import Call
v = torch.zeros(1, 4, 3, 3)
for _ in range(2):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        print(backends.select(None, Call(v)), len(caught))
from clit_basicsr.cli.environment import report
print(report())
print('asked for by name:')
backends.select('cpu', Call(v))
"""


def test_without_a_compiler_torch_serves_and_says_why(tmp_path):
    broken = tmp_path / 'broken-compiler'
    broken.write_text(
        '#!/bin/sh\necho called >> "$0.calls"\necho "first line of many" >&2; echo "last line" >&2; exit 1\n'
    )
    broken.chmod(0o755)
    environment = {'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path), 'CXX': str(broken)}
    for _ in range(2):
        done = subprocess.run([sys.executable, '-c', SCRIPT], env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stdout.startswith('torch 1\ntorch 0\n'), done.stdout + done.stderr  # told once
        assert 'first line of many\nlast line' in done.stdout  # the whole of what the compiler said
        assert "UserError: backend 'cpu' cannot run here" in done.stderr
    builds = (tmp_path / 'broken-compiler.calls').read_text().count('called')
    assert builds <= 3  # one build; info asks for the version
