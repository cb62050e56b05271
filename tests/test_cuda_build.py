"""The CUDA kernels as they are built and registered, without a GPU: compiled and loaded, none is run."""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import kernel_checks
import pytest
import torch
from helpers import sass
from torch._subclasses import FakeTensorMode

from clit_basicsr.base.errors import UserError
from clit_basicsr.ops import backends, operators
from clit_basicsr.ops.backends import cuda_backend, cuda_device, native
from clit_basicsr.ops.backends.contract import Call

ROOT = Path(__file__).parents[1]

LOAD = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    print(getattr(torch.ops.clit_cuda, name).default._schema)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    print(has(f'clit_cuda::{name}', 'CUDA'), has(f'clit_cuda::{name}', 'CPU'))
"""


# Name and parameter of a kernel; at most so many registers on sm_80, 89 and 90; bytes of its widest store, whether that
# is its only one; instructions of the tensor cores. As nvcc 13.0 has it; * is any type, h half precision.
KERNELS = [
    ('attention', '0', '*', 48, 4, False, 0),
    ('attention', '32', '*', 64, 4, False, 0),
    ('attention_backward', '1', '*', 48, 4, False, 0),
    ('attention_backward', '8', '*', 48, 16, False, 0),
    ('weigh', '1', '*', 40, 4, False, 0),
    ('weigh', '8', '*', 48, 16, True, 0),
    ('weigh_backward', '0', '*', 48, 4, False, 0),
    ('weigh_backward', '32', '*', 80, 16, False, 0),
    ('gather', '1', '*', 48, 4, True, 0),
    ('gather', '8', '*', 64, 16, True, 0),
    ('interpolate', None, '*', 56, 4, False, 0),
    ('interpolate_backward', None, '*', 126, 4, False, 0),
    ('dense_attention', '0', '*', 48, 4, False, 0),
    ('dense_attention', '32', '*', 64, 4, False, 0),
    ('dense_attention_tiles', '8', 'h', 128, 16, True, 16),
    ('dense_attention_tiles', '16', 'h', 182, 16, True, 32),
    ('dense_attention_tiles', '32', 'h', 255, 16, True, 64),
    ('dense_linear', '8', 'h', 255, 2, True, 96),
    ('dense_linear', '16', 'h', 255, 2, True, 64),
    ('dense_linear', '32', 'h', 252, 2, True, 48),
]
# Loads and stores of local memory: in the innermost loops, and in all. Of the others there is none.
SPILLS = {
    ('dense_attention_tiles', '32'): (6, 6),
    ('dense_linear', '8'): (0, 31),
    ('dense_linear', '16'): (0, 4),
    ('gather', '8'): (3, 3),  # in one of both half types on sm_89
}


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The library for all architectures, its machine code legible."""
    if native.compiler('cuda') is None:
        pytest.skip('no nvcc here: the CUDA kernels have been neither compiled nor run')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('NVCC_APPEND_FLAGS', '--no-compress')
        return native.build(tmp_path_factory.mktemp('cuda'), 'cuda')


@pytest.fixture(scope='module')
def compiled(built):
    """(name, parameter) -> {(architecture, type): kernel}."""
    found = defaultdict(dict)
    for architecture, kernels in sass.kernels(built.read_bytes()).items():
        for mangled, kernel in kernels.items():
            name, dtype, parameter = re.search(r'\d([a-z][a-z_]*)_kernelI(f|N3c10\w+?E)(?:Li(\d+)E)?', mangled).groups()
            found[name, parameter][architecture, dtype] = kernel
    return found


def test_the_table_names_every_kernel(compiled):
    assert set(compiled) == {(name, parameter) for name, parameter, *_ in KERNELS}
    assert set(SPILLS) <= set(compiled)


@pytest.mark.parametrize(('name', 'parameter', 'types', 'registers', 'widest', 'only', 'products'), KERNELS)
def test_machine_code(compiled, name, parameter, types, registers, widest, only, products):
    """A change of the sources or the compiler must not undo wide stores and loads, or spill into the loops."""
    found = compiled[name, parameter]
    assert len(found) == 3 * (3 if types == '*' else 2)
    in_loops, in_all = SPILLS.get((name, parameter), (0, 0))
    for key, kernel in found.items():
        stores, loads = ({width for move, width in kernel.moves if move == kind} for kind in ('STG', 'LDG'))
        width = min(widest, 2) if widest == 4 and name != 'gather' and key[1] != 'f' else widest
        assert max(stores) == width, key
        assert not only or len(stores) == 1, key
        assert (16 in loads) == (parameter in ('8', '16', '32')), key
        assert kernel.products == products, key
        assert kernel.registers <= registers, key
        assert kernel.spills_in_loops <= in_loops, key
        assert sum(n for (move, _), n in kernel.moves.items() if move in ('LDL', 'STL')) <= in_all, key


def test_every_architecture_is_compiled(built):
    found = set(re.findall(rb'(?:sm|compute)_\d+', built.read_bytes()))
    assert {b'sm_80', b'sm_89', b'sm_90', b'compute_90'} <= found


def test_the_library_loads_without_a_gpu_and_has_what_the_backend_calls(built):
    command = [sys.executable, '-c', LOAD, str(built), *kernel_checks.CALLED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    schemas = done.stdout.splitlines()
    assert len(kernel_checks.CALLED) == 9
    for name, schema, kernels in zip(kernel_checks.CALLED, schemas[::2], schemas[1::2], strict=True):
        assert schema.startswith(f'clit_cuda::{name}(Tensor '), schema
        assert schema.endswith(', int stream) -> ()'), schema
        assert re.search(r'Tensor\(\w!\) \w+, int stream', schema), schema  # what it writes, it says
        assert kernels == 'True False'


@pytest.mark.parametrize('autocast', [None, torch.float16, torch.bfloat16])
def test_fake_kernels_and_autocast(autocast):
    """Shapes and types as torch.compile sees them; under autocast the backend 'cuda' follows it, others do not."""
    with FakeTensorMode():
        query, maps = torch.empty(2, 5, 64, device='cuda'), torch.empty(2, 4, 3, 64, device='cuda')
        table, place = torch.empty(2, 5, 7, 2, device='cuda'), torch.empty(2, 5, dtype=torch.long, device='cuda')
        weight = torch.empty(9, 49 * 64, device='cuda')
        kernel, offset = torch.empty(6, 64, 3, 3, device='cuda'), torch.empty(6, device='cuda')
        taps = torch.empty(8, 3, 2, dtype=torch.long, device='cuda'), torch.empty(8, 3, 2, device='cuda')
        torch.set_autocast_enabled('cuda', autocast is not None)
        torch.set_autocast_dtype('cuda', autocast or torch.float16)
        try:
            for backend in ('cuda', 'torch'):
                attention = operators.attention(query, maps, table, table, place, place, backend)
                first = operators.attend_linear(attention, maps, weight, place, place, backend)
                fine = operators.upsampled_conv(maps, kernel, offset, *taps, *taps, backend)
                expected = autocast if autocast is not None and backend == 'cuda' else torch.float32
                assert {attention.dtype, first.dtype, fine.dtype} == {expected}
                assert (attention.shape, first.shape, fine.shape) == ((2, 5, 2, 49), (2, 5, 9), (2, 8, 8, 6))
                grads = operators.attention_backward(attention, attention, query, maps, place, place, backend)
                assert [t.shape for t in grads] == [query.shape, maps.shape, table.shape, table.shape]
                grads = operators.attend_linear_backward(first, attention, maps, weight, place, place, backend)
                assert [t.shape for t in grads] == [attention.shape, maps.shape, weight.shape]
        finally:
            torch.set_autocast_enabled('cuda', False)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so():
    v = torch.zeros(1, 8, 3, 3)
    with pytest.raises(UserError, match=r"'cuda' cannot run here: it takes float32, .* not torch.float32 on cpu"):
        backends.select('cuda', Call(v))
    with pytest.raises(UserError, match=r"'cuda' cannot run here: torch .* finds no CUDA device"):
        backends.kernels('cuda')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_the_tensors_own_device_is_asked_for_what_it_can_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0) if device.index == 0 else (7, 5))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: f'card {device.index}')
    assert cuda_device.device_reason(torch.device('cuda:0')) is None
    assert 'which card 1 does not have' in cuda_device.device_reason(torch.device('cuda:1'))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_torch_for_other_gpus_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.version, 'hip', '6.3.1')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert cuda_backend.unavailable() == 'its kernels are for NVIDIA GPUs, and this torch is for ROCm 6.3.1'


@pytest.fixture
def two_gpus(monkeypatch):
    """Two cards of which the second cannot run what was compiled; gives the calls that were tried."""
    tried = []

    def trial(device):
        tried.append(device.index)
        if device.index == 1:
            raise RuntimeError('the provided PTX was compiled with an unsupported toolchain')
        return []

    for name, value in {
        'is_available': lambda: True,
        'device_count': lambda: 2,
        'current_device': lambda: 0,
        'get_device_capability': lambda device=None: (9, 0),
        'get_device_name': lambda device=None: f'card {device.index}',
        'is_current_stream_capturing': lambda: False,
        'synchronize': lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(cuda_backend, 'not_built', lambda name, gpus: None)
    monkeypatch.setattr(cuda_backend, '_wrong_trials', trial)
    cuda_device._trial.cache_clear()
    yield tried
    cuda_device._trial.cache_clear()


def test_what_a_trial_launch_says_is_the_reason_and_torch_serves(two_gpus):
    def call(index):
        v = torch.zeros(1, 8, 3, 3)
        return SimpleNamespace(device=torch.device('cuda', index), dtype=v.dtype, requires_grad=False)

    cause = 'a trial launch on card 1 failed: the provided PTX was compiled with an unsupported toolchain'
    assert backends.select('auto', Call(call(0))) == 'cuda'
    with pytest.warns(UserWarning, match='plain torch computes instead: a trial launch on card 1 failed'):
        assert backends.select('auto', Call(call(1))) == 'torch'
    with pytest.raises(UserError, match=f"backend 'cuda' cannot run here: {cause}"):
        backends.select('cuda', Call(call(1)))
    assert cuda_backend.unavailable() is None
    assert two_gpus == [0, 1]  # once for each


def test_an_error_of_earlier_work_is_not_blamed_on_the_kernels(two_gpus, monkeypatch):
    def synchronize(device):
        raise RuntimeError('CUDA error: device-side assert triggered')

    monkeypatch.setattr(torch.cuda, 'synchronize', synchronize)
    with pytest.raises(RuntimeError, match=r'^CUDA error: device-side assert'):
        cuda_backend.unavailable()
    assert two_gpus == []


def test_nothing_is_tried_while_a_graph_is_captured(two_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert cuda_backend.unavailable() is None
    assert two_gpus == []


def test_one_library_is_for_all_gpus_of_the_machine(monkeypatch):
    capabilities = [(9, 0), (7, 5), (8, 6), (9, 0)]
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, 'get_device_capability', capabilities.__getitem__)
    assert cuda_device.gpus() == (86, 90)


def test_a_compiler_that_cannot_be_run_is_reported_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', str(tmp_path / 'g++'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for content, mode, words in (
        ('no program', 0o755, r'the compiler cannot be run: .*Exec format'),
        ('', 0o644, r'g\+\+ was not found, or may not be executed'),
    ):
        (tmp_path / 'g++').write_text(content)
        (tmp_path / 'g++').chmod(mode)
        with pytest.raises(native.BuildError, match=words):
            native.build(tmp_path)


def test_the_check_on_a_gpu_needs_one():
    environment = {**os.environ, 'PYTHON': sys.executable}
    done = subprocess.run([ROOT / 'scripts' / 'gpu_check.sh'], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert (done.stdout, done.stderr.splitlines()) == (
        '',
        ['gpu_check: no GPU here: torch finds no CUDA device, so nothing was built, tested or timed'],
    )


def install(tmp_path, libraries, compiler):
    """setup.py's build in a copy of the repository, with a compiler that is a shell script."""
    copy = tmp_path / 'copy'
    shutil.copytree(ROOT / 'clit_basicsr', copy / 'clit_basicsr', ignore=shutil.ignore_patterns('*.so', '__pycache__'))
    shutil.copytree(ROOT / 'options', copy / 'options')  # of which the package holds a copy
    shutil.copy(ROOT / 'setup.py', copy)
    tools = tmp_path / 'tools' / 'bin'
    tools.mkdir(parents=True)
    version = '[ "$1" = --version ] && echo release 13.0 && exit'
    for name in ('g++', 'nvcc'):
        (tools / name).write_text(f'#!/bin/sh\n{version}\n{compiler}\n')
        (tools / name).chmod(0o755)
    paths = {'PATH': f'{tools}:{os.environ["PATH"]}', 'CUDA_HOME': str(tools.parent), 'CXX': 'g++'}
    environment = {**os.environ, **paths, 'CLIT_BUILD': libraries}
    command = [sys.executable, 'setup.py', '-q', 'build', '--build-base', str(tmp_path / 'build')]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)


def test_installation_builds_what_is_asked_for(tmp_path):
    writes = 'while [ "$1" != -o ]; do shift; done; echo library > "$2"'
    done = install(tmp_path, 'cpu,cuda', writes)
    assert done.returncode == 0, done.stderr
    packed = sorted(path.name.split('-')[0] for path in (tmp_path / 'build').rglob('*.so'))
    assert packed == ['clit_cpu', 'clit_cuda']


@pytest.mark.parametrize(
    ('libraries', 'compiler', 'words'),
    [
        ('cuda', 'echo the compiler says no >&2; exit 1', 'the compiler says no'),
        ('gpu', 'exit 0', "CLIT_BUILD must name cpu, cuda or both; got 'gpu'"),
    ],
)
def test_installation_fails_with_the_reason(tmp_path, libraries, compiler, words):
    done = install(tmp_path, libraries, compiler)
    assert done.returncode != 0
    assert words in done.stderr
    assert 'Traceback' not in done.stderr
