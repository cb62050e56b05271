"""The CUDA kernels executed on the CPU, thread by thread: what is theirs alone. No kernel is run on a GPU here; what
all backends must satisfy is in test_kernels.py.

``tests/cuda_emulation`` runs the kernels' own source: it finds wrong indices, sums, borders and barriers, but
not what only a GPU can show, speed above all.
"""

import kernel_checks
import pytest
import torch

from clit_basicsr.archs.clit_arch import CLIT
from clit_basicsr.archs.lit_arch import LIT
from clit_basicsr.ops import use_backend
from clit_basicsr.ops.backends import contract, cuda_backend, torch_backend

pytestmark = pytest.mark.usefixtures('emulated')
ENCODER = {'type': 'EDSR', 'num_feat': 16, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
KERNELS = torch.ops.clit_emulated


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('ratio', 'shape'), kernel_checks.IN_REGISTERS)
def test_dense_in_registers(ratio, shape, dtype, monkeypatch):
    run, names, before = cuda_backend.run, [], KERNELS.launches()
    monkeypatch.setattr(cuda_backend, 'run', lambda name, *arguments: names.append(name) or run(name, *arguments))
    monkeypatch.setattr(cuda_backend, 'DENSE_BYTES', 5_000)
    kernel_checks.check('dense_linear', dtype, ratio=ratio, size=(4, 11), shape=shape)
    assert 'dense_linear' in names
    assert KERNELS.launches() - before > 2  # tiles, each by two kernels


def test_the_small_case_runs_every_kernel(monkeypatch):
    run, used = cuda_backend.run, set()

    def record(name, *arguments):
        used.add((name, arguments[0].dtype))
        run(name, *arguments)

    monkeypatch.setattr(cuda_backend, 'run', record)
    kernel_checks.check_small()
    assert {name for name, _ in used} == set(kernel_checks.CALLED)
    assert {dtype for name, dtype in used if name == 'dense_attention'} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize('name', kernel_checks.OPERATORS)
def test_in_pieces_and_not_contiguous(name, monkeypatch):
    for name, value in {'DENSE_BYTES': 100_000, 'SCATTERED_BYTES': 100_000, 'GROUP_BYTES': 1}.items():
        monkeypatch.setattr(cuda_backend, name, value)
    kernel_checks.check(name, torch.float32, noncontiguous=True, batch=3, queries=300, shape=(32, 1, 3, 10))
    kernel_checks.check(name, torch.bfloat16, batch=5, queries=40, shape=(32, 1, 3, 10))


@pytest.mark.parametrize(
    ('name', 'constant'), [('attend_linear', 'SCATTERED_BYTES'), ('upsampled_conv', 'GROUP_BYTES')]
)
def test_gradients_of_weights_are_rounded_once(name, constant, monkeypatch):
    """However many chunks or images are summed up: the sum of numbers that half precision holds is exact here."""
    function, arguments = kernel_checks.operator(name, torch.bfloat16, batch=5, queries=400, shape=(8, 1, 3, 4))
    weight = 2 if name == 'attend_linear' else 1
    found = []
    for value in (1 << 40, 1):
        monkeypatch.setattr(cuda_backend, constant, value)
        found.append(
            kernel_checks.answers(function, [t.detach() for t in arguments], 'cuda', torch.bfloat16)[1 + weight]
        )
    assert kernel_checks.difference(*found) < 2e-4


@pytest.mark.parametrize(('batch', 'queries'), [(2, 0), (0, 5), (0, 0)])
def test_without_queries(batch, queries):
    query, grad = torch.rand(batch, queries, 8), torch.rand(batch, queries, 5)
    maps, weight = torch.rand(batch, 3, 4, 8), torch.rand(5, 72)
    table, attention = torch.rand(batch, queries, 3, 2), torch.rand(batch, queries, 2, 9)
    y = x = torch.zeros(batch, queries, dtype=torch.long)
    for name, arguments in {
        'attention': (query, maps, table, table, y, x),
        'attention_backward': (attention, attention, query, maps, y, x),
        'attend_linear': (attention, maps, weight, y, x),
        'attend_linear_backward': (grad, attention, maps, weight, y, x),
    }.items():
        found, expected = (getattr(module, name)(*arguments) for module in (cuda_backend, torch_backend))
        torch.testing.assert_close(found, expected, msg=name)
    kernel_checks.check('attention', torch.float32, size=(2, 2), shape=(8, 1, 1, 2), queries=4)


@pytest.mark.parametrize('ratio', [(30, 41), (1, 300), (300, 1)])
def test_very_many_queries_of_one_pixel_are_made_in_pieces(ratio, monkeypatch):
    monkeypatch.setattr(cuda_backend, 'DENSE_BYTES', 100_000)
    monkeypatch.setattr(cuda_backend, 'PRODUCT_BYTES', 100_000)
    launch, made = cuda_backend.run, []

    def run(name, *arguments):
        made.append(arguments[-1].numel() * arguments[-1].element_size())
        launch(name, *arguments)

    monkeypatch.setattr(cuda_backend, 'run', run)
    kernel_checks.check('dense_linear', torch.float32, ratio=ratio, size=(3, 3), shape=(32, 2, 3, 10))
    assert len(made) > 1
    assert max(made) <= 100_000


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name', kernel_checks.OPERATORS)
def test_operator_is_registered_well(name, dtype):
    function, arguments = kernel_checks.operator(name, dtype, size=(3, 2), queries=5, shape=(10, 2, 3, 4))
    if dtype == torch.float32 and name != 'dense_linear':
        arguments[0].requires_grad_()
    tests = ['test_schema', 'test_autograd_registration', 'test_faketensor']
    torch.library.opcheck(function, (*arguments, 'cuda'), test_utils=tests)


def test_the_order_of_threads_and_blocks_does_not_matter():
    kernel_checks.check_repeats(again=lambda: KERNELS.order(7))


def network(arch, **opt):
    """A small network whose attention is far from even, so that an error in it shows."""
    torch.manual_seed(0)
    net = arch(encoder=ENCODER, dim=64, num_heads=2, grid_size=3, hidden_dims=(24,), **opt)
    for branch in net.branches:
        for conv in (branch.conv_q, branch.conv_k, branch.conv_v):
            conv.weight.data *= 6
    return net


@pytest.mark.parametrize(('ratio', 'sharing'), [(1.5, 0), (3.4, 4), ((2.5, 1), 9)])
def test_pictures(ratio, sharing, monkeypatch):
    monkeypatch.setattr(cuda_backend, 'SHARING_PAYS', sharing)
    monkeypatch.setattr(contract, 'BAND_BYTES', 1)
    monkeypatch.setattr(contract, 'STEP_QUERIES', 50)
    check_picture(network(LIT), torch.rand(2, 3, 7, 6), ratio)


def test_pictures_of_a_cascade():
    check_picture(network(CLIT, num_branches=2), torch.rand(1, 3, 4, 5), 5.5)


def check_picture(net, lq, ratio):
    with use_backend('reference'):
        expected = net.upscale(lq, scale=ratio)
    with use_backend('cuda'):
        assert (net.upscale(lq, scale=ratio) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_training_of_a_cascade():
    net, lq = network(CLIT, num_branches=2), torch.rand(2, 3, 5, 4)
    coord, cell = torch.rand(2, 30, 2) * 2 - 1, torch.tensor([[2 / 17, 2 / 13]]).expand(2, 2)
    results = []
    for name in ('reference', 'cuda'):
        net.zero_grad()
        with use_backend(name):
            net(lq, coord, cell, (2.0, 1.7)).square().sum().backward()
        results.append({key: p.grad.clone() for key, p in net.named_parameters()})
    expected, found = results
    for key, value in expected.items():
        if key != 'position_encoder.proj.bias':  # its true gradient is 0
            assert (found[key] - value).abs().max() < 1e-5 * value.abs().max(), key


def test_tensors_of_two_types_are_refused():
    query, k, out = torch.ones(1, 1, 8), torch.ones(1, 1, 1, 8), torch.empty(1, 1, 1, 1)
    others = (torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), *torch.zeros(2, 1, 1, dtype=torch.long))
    KERNELS.attention(query, k, *others, out, 0)
    assert out.item() == 1
    with pytest.raises(RuntimeError, match='differ in type'):
        KERNELS.attention(query.half(), k, *others, out, 0)


def test_a_grid_that_needs_too_much_shared_memory_is_refused():
    query, k, place = torch.randn(1, 1, 60), torch.randn(1, 2, 2, 60), torch.ones(1, 1, dtype=torch.long)
    table = torch.randn(1, 1, 15, 60)
    out = cuda_backend.attention(query, k, table, table, place, place)
    torch.testing.assert_close(out, torch_backend.attention(query, k, table, table, place, place))
    with pytest.raises(RuntimeError, match=r'grid_size or num_heads is too large .* 54000 bytes'):
        cuda_backend.attention_backward(out, out, query, k, place, place)


def test_a_trial_launch(monkeypatch):
    """The one that the backend makes on every GPU: right here, and it notices kernels that do nothing or not enough."""
    assert cuda_backend._wrong_trials(torch.device('cpu')) == []
    run = cuda_backend.run
    monkeypatch.setattr(
        cuda_backend,
        'run',
        lambda name, *arguments: run(name, *arguments) if name != 'attention' else arguments[-1].zero_(),
    )
    assert cuda_backend._wrong_trials(torch.device('cpu')) == ['attention']
