"""What the kernels of every backend must satisfy, the CUDA ones on a GPU and in the emulation alike: values and every
gradient of float64.
"""

import re
from contextlib import contextmanager
from pathlib import Path

import torch

from clit_basicsr.ops import PositionalBias, local_attention, operators
from clit_basicsr.ops.backends import cuda_backend, kernels
from clit_basicsr.ops.geometry.axes import convolution_taps, make_axis
from clit_basicsr.ops.geometry.coords import Frame, make_coord

OPERATORS = ['attention', 'attend_linear', 'upsampled_conv', 'dense_linear']
# What the backend calls of the library.
CALLED = sorted(set(re.findall(r"run\(\s*'(\w+)'", Path(cuda_backend.__file__).read_text())))

# Norm of the difference over norm, against float64 from the same rounded inputs.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}

# Heads of 32 channels have a kernel of their own, multiples of 8 are read 16 bytes at a time; the rest is general.
# (C, H, G, O): fewer heads than a warp takes, as many, more; other widths; grids from 1 to 15.
SHAPES = [
    (64, 2, 7, 70),
    (256, 8, 3, 20),
    (288, 9, 1, 5),
    (32, 1, 15, 8),
    (32, 4, 5, 24),
    (48, 2, 3, 64),
    (10, 2, 5, 3),
    (35, 1, 7, 33),
]

# (ratio, shape) of dense queries in half precision, whose kernel knows 8, 16 and 32 places for the queries of a pixel:
# fewer and exactly as many, pixels cut into pieces, positions and outputs that are no multiples of what a warp takes.
IN_REGISTERS = [
    (1, (32, 1, 3, 16)),
    (1.5, (64, 2, 3, 17)),
    (2, (32, 1, 5, 40)),
    (3.4, (96, 3, 3, 70)),
    (4, (256, 8, 1, 33)),
    (2.5, (64, 2, 7, 16)),
    (5, (32, 1, 9, 16)),  # a window of more positions than the attention kernel of half precision takes
    ((5.5, 3), (64, 2, 3, 6)),
    (6.3, (32, 1, 3, 20)),
    ((1, 40), (32, 1, 3, 16)),
    ((40, 1.3), (32, 1, 3, 16)),
]


@contextmanager
def poisoned():
    """Memory that is not initialised reads as NaN, so that an element nobody wrote cannot pass."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def operator(
    name,
    dtype,
    device='cpu',
    shape=(64, 2, 7, 70),
    size=(7, 5),
    batch=2,
    queries=40,
    ratio=2.5,
    padding='zeros',
    backend='cuda',
):
    """An operator and its arguments except the backend, which decides how weights are packed.

    Queries are at corners and edges; some pixels have many, some none.
    """
    channels, heads, grid, outputs = shape
    gen = torch.Generator().manual_seed(0)

    def randn(*size, factor=1.0):
        return (torch.randn(*size, generator=gen, dtype=torch.float64) * factor).to(device, dtype)

    def weight(*size, inputs):
        return randn(*size, factor=inputs**-0.5)

    def maps():
        return randn(batch, *size, channels)

    if name in ('attention', 'attend_linear'):
        y, x = (torch.randint(0, n, (batch, queries), generator=gen) for n in size)
        y[:, :2], x[:, :2] = 0, 0
        y[:, 2:4], x[:, 2:4] = size[0] - 1, size[1] - 1
        y[-1, 4:9], x[-1, 4:9] = size[0] // 2, size[1] // 2
        places = y.to(device), x.to(device)
    if name == 'attention':
        single = torch.float64 if dtype == torch.float64 else torch.float32
        tables = (randn(batch, queries, grid, heads).to(single) for _ in range(2))
        return operators.attention, [randn(batch, queries, channels), maps(), *tables, *places]
    if name == 'attend_linear':
        attention = randn(batch, queries, heads, grid * grid).double().softmax(-1).to(dtype)
        matrix = weight(outputs, grid * grid * channels, inputs=channels)
        return operators.attend_linear, [attention, maps(), matrix, *places]
    fine = [round(n * r) for n, r in zip(size, ratio if isinstance(ratio, tuple) else (ratio, ratio), strict=True)]
    like = torch.empty((), device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    if name == 'upsampled_conv':
        taps = []
        for axis, n in enumerate(size):
            taps += convolution_taps(axis, Frame(size), n, fine[axis], (0, fine[axis]), padding, like)
        matrix = weight(outputs, channels, 3, 3, inputs=9 * channels)
        return operators.upsampled_conv, [maps(), matrix, randn(outputs), *taps]
    tables = torch.float64 if dtype == torch.float64 else torch.float32
    bias = PositionalBias(*(t.to(tables) for t in (randn(3).abs() * 3, randn(heads, 12), randn(heads))))
    axes = [
        list(make_axis(axis, Frame(size), n, fine[axis], (axis, fine[axis]), grid, heads, bias, like))
        for axis, n in enumerate(size)
    ]
    matrix = kernels(backend).pack(weight(outputs, grid * grid * channels, inputs=channels), heads, grid)
    return operators.dense_linear, [maps(), maps(), maps(), matrix, randn(outputs), *axes]


def double(value):
    if isinstance(value, list):
        return [double(one) for one in value]
    return value.double() if value.is_floating_point() else value


def answers(function, arguments, backend, dtype=torch.float32):
    """The result, and the gradients, of everything that has one, in a direction that ``dtype`` can hold."""
    leaves = [] if function is operators.dense_linear else [t for t in arguments if t.is_floating_point()]
    if function is operators.upsampled_conv:
        leaves = arguments[:3]
    for leaf in leaves:
        leaf.requires_grad_()
    out = function(*arguments, backend)
    if not leaves:
        return [out]
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction.to(dtype).to(out))]


def difference(a, b):
    """Norm of the difference over norm; infinite where something is not a number."""
    if b.norm() == 0:
        return a.double().norm().item()
    error = ((a.double() - b).norm() / b.norm()).item()
    return error if error == error else float('inf')


def errors(name, dtype, device='cpu', noncontiguous=False, backend='cuda', **call):
    """Differences of an operator's result and gradients from the torch formulas in float64."""
    function, exact = operator(name, dtype, device, backend='torch', **call)
    expected = answers(function, double(exact), 'torch', dtype)
    function, arguments = operator(name, dtype, device, backend=backend, **call)
    if noncontiguous:
        arguments = [spread(value) for value in arguments]
    with poisoned():
        results = answers(function, [detached(value) for value in arguments], backend, dtype)
    assert [t.shape for t in results] == [t.shape for t in expected]
    return [difference(a, b) for a, b in zip(results, expected, strict=True)]


def check(name, dtype, device='cpu', **call):
    found = errors(name, dtype, device, **call)
    assert max(found) < TOLERANCE[dtype], f'{name} {dtype} {call}: {found}'


def detached(value):
    return [one.detach() for one in value] if isinstance(value, list) else value.detach()


def spread(value):
    """The same numbers, every second of a larger tensor that holds NaN between them."""
    if isinstance(value, list):
        return [spread(one) for one in value]
    value = value.detach()
    larger = value.new_full((*value.shape, 2), -1 if not value.is_floating_point() else float('nan'))
    larger[..., 0] = value
    return larger[..., 0]


def check_small(device='cpu'):
    """A case so small that a tool which watches every access is soon done with it, and yet runs every kernel."""
    for name in OPERATORS:
        for dtype in (torch.float32, torch.bfloat16):
            for shape in ((64, 2, 3, 8), (10, 2, 3, 5)):
                check(name, dtype, device, size=(4, 3), queries=9, shape=shape)


def check_local_attention(device='cpu', size=(7, 5), queries=60, shape=(64, 2, 5, 11), batch=2, backend='cuda'):
    """The whole of local_attention against the reference in float64, with every gradient."""
    channels, heads, grid, outputs = shape
    gen = torch.Generator().manual_seed(1)
    every = make_coord((int(size[0] * 2.7), int(size[1] * 1.7)))  # no ties, which double precision would break
    pick = torch.randint(0, len(every), (batch, queries), generator=gen)
    pick[:, :2], pick[:, 2:4] = 0, len(every) - 1
    values = {
        **{name: torch.randn(batch, channels, *size, generator=gen) for name in 'qkv'},
        'weight': torch.randn(outputs, grid * grid * channels + 2, generator=gen) * 0.1,
        'offset': torch.randn(outputs, generator=gen),
        'cell': torch.rand(batch, queries, 2, generator=gen),
        'table': torch.randn(heads, 12, generator=gen),
        'table_bias': torch.randn(heads, generator=gen),
    }
    results = []
    for tested, dtype, place in (('reference', torch.float64, 'cpu'), (backend, torch.float32, device)):
        leaves = {name: value.to(place, dtype).requires_grad_() for name, value in values.items()}
        freqs = torch.tensor([0.0, 1.0, 7.3]).to(place, dtype)
        out = local_attention(
            leaves['q'],
            leaves['k'],
            leaves['v'],
            every[pick].to(place, dtype),
            Frame(size),
            leaves['weight'],
            leaves['offset'],
            num_heads=heads,
            grid_size=grid,
            bias=PositionalBias(freqs, leaves['table'], leaves['table_bias']),
            cell=leaves['cell'],
            backend=tested,
        )
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out)
        grads = torch.autograd.grad((out * direction).sum(), list(leaves.values()))
        results.append({'out': out.detach().cpu(), **{n: g.cpu() for n, g in zip(leaves, grads, strict=True)}})
    expected, found = results
    del expected['table_bias']  # its true gradient is 0
    errors = {name: difference(found[name], value) for name, value in expected.items()}
    assert max(errors.values()) < 1e-5, errors


def check_repeats(device='cpu', again=lambda: None):
    """The same bits every time; ``again`` is called between the two runs."""
    runs = []
    for _ in range(2):
        results = []
        for name in OPERATORS:
            results += answers(*operator(name, torch.float32, device, queries=200), 'cuda')
        runs.append(results)
        again()
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
