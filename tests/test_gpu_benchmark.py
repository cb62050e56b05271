"""The GPU's benchmark from end to end, tiny, with the emulated kernels and stand-ins for what only a GPU has."""

import sys
import time
from pathlib import Path

import pytest
import torch

from clit_basicsr.archs.clit_arch import CLIT
from clit_basicsr.ops.backends import native

ROOT = Path(__file__).parents[1]
ENCODER = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}

# What cuobjdump 13.0 prints of two types of one kernel and of another.
DUMP = """
Fatbin elf code:
================
arch = sm_90

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN4clit53_GLOBAL__N__eff4bef3_15_cuda_kernels_cu_00e00de5_987112weigh_kernelIN3c104HalfELi8EEEvNS_7QueriesE:
  REG:48 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:640 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN4clit53_GLOBAL__N__eff4bef3_15_cuda_kernels_cu_00e00de5_987112weigh_kernelIfLi1EEEvNS_7QueriesEPKT_S7_:
  REG:40 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:640 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN4clit53_GLOBAL__N__eff4bef3_15_cuda_kernels_cu_00e00de5_987113gather_kernelIfEEvNS_7QueriesEPKT_S7_llPS5_:
  REG:32 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:640 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


class Event:
    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, stop):
        return (stop.time - self.time) * 1e3


@pytest.fixture
def gpu(monkeypatch, exact_products):
    monkeypatch.syspath_prepend(str(ROOT / 'scripts' / 'benchmarks'))
    import cases
    import gpu

    for name, value in {
        'DEVICE': 'cpu',
        'BATCH': 1,
        'SIDE': 5,
        'QUERIES': 20,
        'CHANNELS': 32,
        'HEADS': 1,
        'GRID': 3,
        'OUTPUTS': 8,
        'TILE': (2, 3),
        'PICTURE': (13, 17),
        'COPIED': 1000,
        'MULTIPLIED': 16,
    }.items():
        monkeypatch.setattr(gpu, name, value)
    small = {'dim': 32, 'num_heads': 1, 'grid_size': 3, 'hidden_dims': (8,)}
    monkeypatch.setattr(cases, 'network', lambda: CLIT(encoder=ENCODER, num_branches=3, **small))
    for name, value in {
        'Event': Event,
        'is_available': lambda: True,
        'synchronize': lambda: None,
        'empty_cache': lambda: None,
        'reset_peak_memory_stats': lambda: None,
        'memory_allocated': lambda: 1_000_000_000,
        'max_memory_allocated': lambda: 3_500_000_000,
        'get_device_capability': lambda: (9, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return gpu


def run(gpu, monkeypatch, tmp_path, *parts):
    """Exit code and the rows, each a dictionary of its cells that are not empty."""
    file = tmp_path / 'rows'
    monkeypatch.setattr(sys, 'argv', ['gpu.py', *parts, '--rows', str(file)])
    with pytest.raises(SystemExit) as done:
        gpu.main()
    head, _, *rows = [[cell.strip() for cell in line.strip('| \n').split('|')] for line in file.open()]
    assert head == list(gpu.COLUMNS.values())
    keys = list(gpu.COLUMNS)
    return int(done.value.code), [{k: c for k, c in zip(keys, cells, strict=False) if c} for cells in rows]


@pytest.mark.usefixtures('emulated')
def test_accuracy(gpu, monkeypatch, tmp_path):
    code, rows = run(gpu, monkeypatch, tmp_path, 'accuracy')
    assert code == 0
    assert len(rows) == 12
    assert all('below' in row['remark'] for row in rows)


@pytest.mark.usefixtures('emulated')
def test_a_wrong_kernel_fails_the_benchmark(gpu, monkeypatch, tmp_path):
    from clit_basicsr.ops.backends import cuda_backend

    monkeypatch.setattr(cuda_backend, 'attention', lambda *args, right=cuda_backend.attention: right(*args) * 1.01)
    code, rows = run(gpu, monkeypatch, tmp_path, 'accuracy')
    assert code == 1
    assert [row['what'] for row in rows if 'NOT BELOW' in row['remark']] == ['attention and gradients'] * 3


@pytest.mark.usefixtures('emulated')
def test_kernels(gpu, monkeypatch, tmp_path):
    code, rows = run(gpu, monkeypatch, tmp_path, 'kernels')
    assert code == 0
    assert len(rows) == 2 * 13
    for row in rows:
        if row['what'] == 'ceilings':
            assert float(row['rate']) >= 0
            continue
        assert row['faster_than'].startswith('torch ')
        assert row['remark'], 'no kernel of ours was timed'
        assert float(row['ms']) > 0


@pytest.mark.usefixtures('emulated')
def test_networks(gpu, monkeypatch, tmp_path):
    code, rows = run(gpu, monkeypatch, tmp_path, 'networks')
    assert code == 0
    step = 'training step, batch 1, branches: {}'
    for title in (step.format(1), step.format(3), 'picture x4, 17 x 13'):
        tf32 = [row['remark'] for row in rows if row['what'] == title and row['kind'] == 'tf32']
        assert tf32 == ['cuda']
        for kind in ('fp32', 'bf16'):
            found = [row for row in rows if row['what'] == title and row['kind'] == kind]
            assert [row['remark'] for row in found] == ['reference', 'torch', 'cuda']
            assert found[0]['peak'] == '2.50'
            assert 'reference' in found[2]['faster_than']
            assert 'torch' in found[2]['faster_than']
    others = [row for row in rows if row['what'].startswith(('picture x2', 'picture x3', 'picture x12', 'picture x30'))]
    assert [row['remark'] for row in others] == ['cuda'] * 8


@pytest.mark.usefixtures('emulated')
def test_constants(gpu, monkeypatch, tmp_path):
    before = [getattr(module, name) for module, name, *_ in gpu.TRIED]
    seen = {name: set() for _, name, *_ in gpu.TRIED}
    attempt = gpu.attempt

    def look(call, repeats):
        for module, name, *_ in gpu.TRIED:
            seen[name].add(getattr(module, name))
        return attempt(call, 1)

    monkeypatch.setattr(gpu, 'attempt', look)
    code, rows = run(gpu, monkeypatch, tmp_path, 'constants')
    assert code == 0
    assert len(rows) == sum(len(multiples) * len(titles) for *_, multiples, _, titles in gpu.TRIED) == 50
    assert all(float(row['ms']) > 0 for row in rows)
    assert [getattr(module, name) for module, name, *_ in gpu.TRIED] == before
    for _, name, multiples, *_ in gpu.TRIED:
        assert len(seen[name]) == len(multiples), name


def test_what_needs_too_much_memory_is_reported(gpu):
    backends = iter(['reference', 'torch', 'cuda'])

    def make(kind):
        if next(backends) == 'reference':
            return full
        return lambda: time.sleep(1e-3)

    def full():
        raise torch.cuda.OutOfMemoryError

    rows = list(gpu.timed('work', make, ('fp32',), all_of_them=True))
    assert rows[0] == gpu.row(what='work', kind='fp32', remark='reference: out of memory')
    assert rows[2].split(' | ')[-2].startswith('torch ')


def test_resources(gpu, monkeypatch, tmp_path):
    tool = tmp_path / 'cuobjdump'
    tool.write_text(f'#!/bin/sh\n[ "$3" = sm_90 ] && [ "$4" = lib.so ] && cat <<EOF\n{DUMP}\nEOF\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    monkeypatch.setattr(native, 'find', lambda name, gpus: Path('lib.so'))
    code, rows = run(gpu, monkeypatch, tmp_path, 'resources')
    assert code == 0
    assert rows == [
        {'what': 'gather_kernel, all types', 'remark': '32 to 32 registers, 0 to 0 bytes of stack'},
        {'what': 'weigh_kernel, all types', 'remark': '40 to 48 registers, 0 to 16 bytes of stack'},
    ]
