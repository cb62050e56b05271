"""What only a GPU can show of the CUDA kernels; ``scripts/gpu_check.sh`` runs these tests on a bare machine, and those
of test_kernels.py.
"""

import kernel_checks
import pytest
import torch

from clit_basicsr.ops import backends
from clit_basicsr.ops.backends import cuda_backend
from clit_basicsr.ops.backends.contract import Call

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.usefixtures('exact_products'),
    pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here: no CUDA kernel has been run on one'),
]


@pytest.fixture(autouse=True)
def errors_are_raised_where_they_are_made():
    yield
    torch.cuda.synchronize()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ('ratio', 'shape'), [*kernel_checks.IN_REGISTERS, (4, (256, 8, 7, 256)), (2, (256, 8, 7, 256))]
)
def test_dense_in_registers(ratio, shape, dtype):
    kernel_checks.check('dense_linear', dtype, 'cuda', ratio=ratio, size=(21, 46), shape=shape)


@pytest.mark.parametrize('name', kernel_checks.OPERATORS)
def test_in_pieces_and_not_contiguous(name, monkeypatch):
    for name, value in {'DENSE_BYTES': 100_000, 'SCATTERED_BYTES': 100_000, 'GROUP_BYTES': 1}.items():
        monkeypatch.setattr(cuda_backend, name, value)
    kernel_checks.check(name, torch.float32, 'cuda', noncontiguous=True, batch=3, queries=3000, shape=(32, 1, 3, 10))
    kernel_checks.check(name, torch.bfloat16, 'cuda', batch=5, queries=40, shape=(32, 1, 3, 10))


def test_local_attention_of_a_training_batch():
    kernel_checks.check_local_attention('cuda', size=(48, 48), queries=2304, shape=(256, 8, 7, 64))


@pytest.mark.parametrize('name', kernel_checks.OPERATORS)
def test_on_another_stream(name):
    """The default stream is kept busy meanwhile: a kernel that ran there would be late, and the result wrong."""
    function, arguments = kernel_checks.operator(name, torch.float32, 'cuda', queries=500)
    expected = kernel_checks.answers(function, arguments, 'cuda')
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda._sleep(200_000_000)
    with torch.cuda.stream(stream), kernel_checks.poisoned():
        results = [t.clone() for t in kernel_checks.answers(function, arguments, 'cuda')]
        stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='there is no second GPU')
def test_on_another_device():
    for name in kernel_checks.OPERATORS:
        kernel_checks.check(name, torch.float32, 'cuda:1')


def test_repeats_bit_by_bit():
    kernel_checks.check_repeats('cuda')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    """Maps and products in autocast's type, the softmax in single precision; gradients in the parameters' type."""
    for name in kernel_checks.OPERATORS:
        function, arguments = kernel_checks.operator(name, torch.float32, 'cuda')
        expected = kernel_checks.answers(function, kernel_checks.double(arguments), 'torch', dtype)
        with torch.autocast('cuda', dtype):
            results = kernel_checks.answers(function, arguments, 'cuda', dtype)
        assert results[0].dtype == dtype
        assert all(t.dtype == torch.float32 for t in results[1:])
        errors = [kernel_checks.difference(a, b) for a, b in zip(results, expected, strict=True)]
        # The inputs are rounded too, and the softmax amplifies what that changes in its logits.
        assert all(error < 3 * kernel_checks.TOLERANCE[dtype] for error in errors), f'{name}: {errors}'


def test_indices_beyond_32_bits():
    """A map of more than 2^31 numbers, of which the last pixels are asked for."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip('24 GB of free GPU memory are needed')
    size = (2100, 4000)
    v = torch.randn(1, *size, 256, device='cuda', dtype=torch.bfloat16)
    y = torch.tensor([[0, size[0] - 1, size[0] - 2]], device='cuda')
    x = torch.tensor([[0, size[1] - 1, size[1] - 3]], device='cuda')
    query = torch.randn(1, 3, 256, device='cuda', dtype=torch.bfloat16)
    table = torch.randn(1, 3, 3, 8, device='cuda')
    out = cuda_backend.attention(query, v, table, table, y, x)
    corner = v[:, -4:, -4:].contiguous().double()
    moved = y[:, 1:] - size[0] + 4, x[:, 1:] - size[1] + 4
    part = [t[:, 1:].double() for t in (query, table, table)]
    expected = backends.kernels('torch').attention(part[0], corner, *part[1:], *moved)
    assert kernel_checks.difference(out[:, 1:], expected) < 5e-3


def test_selection():
    v = torch.zeros(1, 8, 3, 3, device='cuda')
    assert backends.select('auto', Call(v)) == 'cuda'
    assert backends.select('auto', Call(v.double())) == 'torch'
