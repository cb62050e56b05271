"""The kernels of every backend against float64: values and all gradients, by one tester.

A new backend is one more entry of :data:`BACKENDS`.
"""

import kernel_checks
import pytest
import torch

NO_GPU = 'no GPU here: no CUDA kernel has been run on one'
ON_A_GPU = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)]
SINGLE, HALF = [torch.float32], [torch.float16, torch.bfloat16]
# backend, device, types that it computes in
BACKENDS = {
    'torch': ('torch', 'cpu', [*SINGLE, torch.float64]),
    'cpu': ('cpu', 'cpu', [*SINGLE, torch.float64]),
    'emulated cuda': ('cuda', 'cpu', [*SINGLE, *HALF]),
    'cuda': ('cuda', 'cuda', [*SINGLE, *HALF]),
}
MARKS = {'cuda': ON_A_GPU}
TESTED = [pytest.param(name, marks=MARKS.get(name, ())) for name in BACKENDS]
TYPES = [
    pytest.param(name, dtype, marks=MARKS.get(name, ()), id=f'{name}-{str(dtype)[6:]}')
    for name, (_, _, types) in BACKENDS.items()
    for dtype in types
]
pytestmark = pytest.mark.usefixtures('exact_products')


@pytest.fixture
def check(request):
    """``check(operator, dtype, ...)`` of a backend; what it needs is set up."""
    name = request.getfixturevalue('name')
    backend, device, _ = BACKENDS[name]
    if name == 'emulated cuda':
        request.getfixturevalue('emulated')

    def call(operator, dtype, **options):
        kernel_checks.check(operator, dtype, device, backend=backend, **options)

    yield call
    if device == 'cuda':
        torch.cuda.synchronize()  # an error is reported in the test that made it


@pytest.mark.parametrize('shape', kernel_checks.SHAPES, ids=str)
@pytest.mark.parametrize('operator', kernel_checks.OPERATORS)
@pytest.mark.parametrize('name', TESTED)
def test_values_and_gradients(check, name, operator, shape):
    check(operator, torch.float32, shape=shape)


@pytest.mark.parametrize('operator', kernel_checks.OPERATORS)
@pytest.mark.parametrize(('name', 'dtype'), TYPES)
def test_every_type(check, name, dtype, operator):
    for shape in ((64, 2, 5, 20), (10, 2, 3, 5)):
        check(operator, dtype, shape=shape)


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (9, 2)])
@pytest.mark.parametrize('operator', kernel_checks.OPERATORS)
@pytest.mark.parametrize('name', TESTED)
def test_small_and_odd_maps(check, name, operator, size):
    check(operator, torch.float32, size=size, shape=(32, 1, 7, 6), batch=3)


@pytest.mark.parametrize('ratio', [1, 1.5, 3.4, 9.7, (1, 6), (5.5, 1)])
@pytest.mark.parametrize('padding', ['zeros', 'border'])
@pytest.mark.parametrize('name', TESTED)
def test_upsampling_at_any_ratio(check, name, ratio, padding):
    check('upsampled_conv', torch.float32, ratio=ratio, padding=padding, size=(6, 19), shape=(8, 1, 1, 67))


@pytest.mark.parametrize('ratio', [1, 1.5, 3.4, (1, 6), (5.5, 1)])
@pytest.mark.parametrize('name', TESTED)
def test_dense_at_any_ratio(check, name, ratio):
    check('dense_linear', torch.float32, ratio=ratio, size=(6, 9), shape=(64, 2, 3, 6))


@pytest.mark.parametrize('name', TESTED)
def test_local_attention(check, name):
    backend, device, _ = BACKENDS[name]
    kernel_checks.check_local_attention(device, backend=backend)
    kernel_checks.check_local_attention(device, size=(1, 6), shape=(12, 3, 7, 4), backend=backend)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
@pytest.mark.parametrize('dtype', BACKENDS['cuda'][2])
@pytest.mark.parametrize('operator', kernel_checks.OPERATORS)
def test_full_size_on_a_gpu(operator, dtype):
    kernel_checks.check(operator, dtype, 'cuda', shape=(256, 8, 7, 256))
    kernel_checks.check(operator, torch.float32, 'cuda', size=(33, 47), shape=(32, 1, 7, 6), batch=3, queries=700)
    for shape in kernel_checks.SHAPES:
        kernel_checks.check(operator, dtype, 'cuda', shape=shape)
