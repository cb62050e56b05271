"""Before any test imports the host; what the tests of the commands on pictures share, and those of the CUDA kernels."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import clit_basicsr  # noqa: F401  makes `import basicsr` work
from clit_basicsr import weights
from clit_basicsr.ops import backends
from clit_basicsr.ops.backends import cuda_backend, native

# The checks of the kernels, which the benchmark on a GPU runs as well.
sys.path.insert(0, str(Path(__file__).parents[1] / 'scripts' / 'benchmarks'))
EMULATION = Path(__file__).parent / 'cuda_emulation'
TORCH = Path(torch.__file__).parent


@pytest.fixture(scope='session')
def net():
    """The small network of experiments/tiny, in evaluation mode."""
    from helpers.tiny_network import build

    return build()


@pytest.fixture(scope='session')
def box(tmp_path_factory):
    """A folder with the small network as clit-light."""
    from helpers.tiny_network import make_box

    folder = tmp_path_factory.mktemp('box')
    make_box(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch, box):
    """The working directory, with a trained experiment; the same network is what comes with the package."""
    from helpers.tiny_network import make_experiment

    monkeypatch.setattr(weights, 'FOLDER', box)
    monkeypatch.chdir(tmp_path)
    make_experiment()
    return tmp_path


@pytest.fixture(scope='session')
def emulation(tmp_path_factory):
    """The operators of the CUDA kernels, their own source executed on the CPU."""
    if shutil.which('g++') is None:
        pytest.skip('the emulation of the CUDA kernels needs g++')
    path = tmp_path_factory.mktemp('emulation') / 'clit_emulated.so'
    command = ['g++', '-std=c++20', '-O1', '-U_FORTIFY_SOURCE', '-fPIC', '-shared', '-DCLIT_EMULATION']
    command += ['-fsanitize=alignment', '-static-libubsan']  # reported on the error output
    command += [f'-DTORCH_TARGET_VERSION={native.TARGET}', f'-I{EMULATION}', f'-I{native.CSRC}']
    command += [f'-I{TORCH / "include"}', str(EMULATION / 'emulation.cpp'), '-o', str(path), f'-L{TORCH / "lib"}']
    done = subprocess.run([*command, '-ltorch', '-ltorch_cpu', '-lc10'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.ops.load_library(str(path))
    return torch.ops.clit_emulated


@pytest.fixture
def emulated(emulation, monkeypatch, capfd):
    """Backend 'cuda' takes CPU tensors and launches the emulated kernels; at least one must have run, and none may have
    read or written wide words at addresses that a GPU would refuse.
    """
    monkeypatch.setattr(cuda_backend, 'unavailable', lambda device=None: None)
    monkeypatch.setattr(backends, '_usable', set())
    monkeypatch.setattr(cuda_backend, 'reason', lambda call: None)
    monkeypatch.setattr(cuda_backend, 'run', lambda name, *arguments: getattr(emulation, name)(*arguments, 0))
    before = emulation.launches()
    yield
    emulation.order(0)
    assert emulation.launches() > before
    assert 'runtime error' not in capfd.readouterr().err


@pytest.fixture
def exact_products():
    """No TF32 on a GPU; what a test changes about that is changed back."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.allow_tf32 = value
