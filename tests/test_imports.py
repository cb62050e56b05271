"""Who may import whom, read from the source: the folders of the package, and what each may know of."""

import ast
import importlib
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest

from clit_basicsr.hosts import import_hooks

PACKAGE = Path(__file__).parents[1] / 'clit_basicsr'
FILES = sorted(PACKAGE.rglob('*.py'))

# What each folder may import of this package, and of other packages; None: anything.
FOLDERS = {
    'base': ({'base'}, {'torch', 'numpy'}),
    'weights': ({'weights', 'base'}, set()),
    'formats': ({'formats', 'base'}, {'numpy', 'cv2', 'PIL', 'tifffile'}),
    'ops': ({'ops', 'base'}, {'torch'}),
    'archs': ({'archs', 'ops', 'base'}, {'torch', 'basicsr', 'numpy'}),
    'published': ({'published', 'archs', 'ops', 'base'}, {'torch', 'basicsr', 'numpy'}),
    'data.schedule': ({'base'}, set()),
    'data.downsamplings': ({'base'}, set()),
    'metrics.protocols': ({'base'}, set()),
    'data': (
        {'data', 'ops', 'formats', 'base', 'metrics.protocols'},
        {'torch', 'basicsr', 'numpy', 'PIL', 'lmdb', 'cv2'},
    ),
    'metrics': ({'metrics', 'base'}, {'torch', 'basicsr', 'numpy'}),
    'models': (
        {'models', 'archs', 'data.schedule', 'data.images', 'metrics', 'base'},
        {'torch', 'basicsr', 'numpy', 'cv2', 'tqdm'},
    ),
    'report': ({'report', 'metrics', 'archs', 'base'}, {'basicsr', 'matplotlib'}),
    'pictures': (
        {'pictures', 'archs', 'weights', 'data', 'metrics', 'ops', 'report', 'formats', 'base'},
        {'torch', 'numpy', 'cv2', 'PIL', 'tifffile', 'tqdm', 'matplotlib'},
    ),
    'hosts': ({'ops', 'archs', 'data', 'models', 'metrics', 'hosts', 'published', 'base'}, None),
    'cli': (None, None),
}


def imported(source, package):
    """Dotted names of all modules that a source imports, anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split('.')
            base = '.'.join(parents[: len(parents) - node.level + 1]) if node.level else ''
            module = '.'.join(part for part in (base, node.module) if part)
            yield from (f'{module}.{alias.name}' for alias in node.names)


def breaches(folder, source, package):
    """The imports of a source that its folder forbids."""
    inside, outside = FOLDERS[folder]
    found = []
    for name in imported(source, package):
        top, _, rest = name.partition('.')
        if top == 'clit_basicsr':
            allowed = inside is None or any(f'{rest}.'.startswith(f'{one}.') for one in inside)
        else:
            allowed = outside is None or top in outside or top in sys.stdlib_module_names
        if not allowed:
            found.append(name)
    return found


def folder_of(file):
    parts = file.relative_to(PACKAGE).with_suffix('').parts
    return next((folder for folder in FOLDERS if parts[: folder.count('.') + 1] == tuple(folder.split('.'))), None)


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_upward_never(file):
    folder = folder_of(file)
    if folder is None:
        assert file.name in ('__init__.py', '__main__.py'), f'{file.name} is in no folder'
        return
    package = '.'.join(('clit_basicsr', *file.relative_to(PACKAGE).parent.parts))
    assert breaches(folder, file.read_text(encoding='utf-8'), package) == []


@pytest.mark.parametrize(
    ('folder', 'source', 'breach'),
    [
        ('ops', 'import basicsr', ['basicsr']),
        ('ops', 'def f():\n    from clit_basicsr.archs import lit_arch', ['clit_basicsr.archs.lit_arch']),
        ('ops', 'from clit_basicsr import archs', ['clit_basicsr.archs']),
        ('ops', 'from ..data import images', ['clit_basicsr.data.images']),
        ('models', 'from clit_basicsr.data.pairs import fits', ['clit_basicsr.data.pairs.fits']),
        ('models', 'from clit_basicsr.data.schedule import Stage', []),
        ('data.schedule', 'import torch', ['torch']),
        ('hosts', 'import clit_basicsr.cli', ['clit_basicsr.cli']),
        ('archs', 'from . import mlp\nfrom clit_basicsr.base.errors import UserError\nimport math', []),
    ],
)
def test_the_rule_catches(folder, source, breach):
    assert breaches(folder, source, f'clit_basicsr.{folder}') == breach


def test_no_test_imports_another_and_no_benchmark_a_test():
    root = PACKAGE.parent
    tests = {file.stem for file in (root / 'tests').glob('test_*.py')}
    for file in [*(root / 'tests').rglob('*.py'), *(root / 'scripts').rglob('*.py')]:
        tops = {name.partition('.')[0] for name in imported(file.read_text(encoding='utf-8'), '')}
        assert not tops & tests, file
        assert 'helpers' not in tops or 'tests' in file.parts, file


def test_no_import_circle():
    """Not within functions or under TYPE_CHECKING either: every file can be read after those that it imports."""
    graph = {}
    for file in FILES:
        parts = file.relative_to(PACKAGE.parent).with_suffix('').parts
        name = '.'.join(parts).removesuffix('.__init__')
        package = '.'.join(parts[:-1])
        graph[name] = list(imported(file.read_text(encoding='utf-8'), package))
    edges = {
        name: {one if one in graph else one.rpartition('.')[0] for one in names} & graph.keys() - {name}
        for name, names in graph.items()
    }
    done, path = set(), []

    def visit(name):
        assert name not in path, ' -> '.join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(edges[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


def test_files_are_one_thing_each():
    roots = [PACKAGE, PACKAGE.parent / 'tests', PACKAGE.parent / 'scripts']
    lengths = {
        file: len(file.read_text(encoding='utf-8').splitlines()) for root in roots for file in root.rglob('*.py')
    }
    assert {file.name: length for file, length in lengths.items() if length >= 400} == {}


def test_the_package_alone_imports_neither_torch_nor_the_host():
    code = 'import sys, clit_basicsr; print([name for name in ("torch", "basicsr", "numpy") if name in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


@pytest.mark.parametrize('order', ['import clit_basicsr, basicsr', 'import clit_basicsr.hosts; import basicsr.train'])
def test_the_host_imports_with_all_fixes_after_the_package(order):
    code = (
        f'{order}\nimport sys, torchvision\n'
        'from torchvision.transforms.functional_tensor import rgb_to_grayscale\n'
        'import torch\nassert rgb_to_grayscale(torch.ones(1, 3, 2, 2)).shape == (1, 1, 2, 2)\n'
        'train = sys.modules["basicsr.train"]\n'
        'print(train.load_resume_state.__module__, train.CPUPrefetcher.__module__)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['clit_basicsr.hosts.basicsr.resume', 'clit_basicsr.hosts.basicsr.sampler']


ROOTS = ('archs', 'archs.encoders', 'archs.lit_arch', 'data.images', 'data.random_scale_dataset', 'hosts.basicsr.fixes')
ROOTS += ('metrics', 'metrics.psnr_ssim_float', 'models', 'models.implicit_sr_model', 'published', 'report.paper_row')


@pytest.mark.parametrize('module', ROOTS)
def test_any_room_may_be_imported_first(module):
    """The host imports our folders as soon as it is imported itself: it must not meet one half imported."""
    code = (
        f'import clit_basicsr.{module}\nimport basicsr\nfrom basicsr.utils import registry as r\n'
        'print("LIT" in r.ARCH_REGISTRY, "ScaledPairDataset" in r.DATASET_REGISTRY, '
        '"CumulativeSRModel" in r.MODEL_REGISTRY, "calculate_ssim_float" in r.METRIC_REGISTRY)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['True'] * 4


def test_every_module_imports_without_what_only_unix_has():
    """The modules, functions and signals that Windows lacks, once other packages have taken what they need."""
    program = """
import importlib, os, pkgutil, signal, sys
import clit_basicsr
import cv2, lmdb, matplotlib.pyplot, PIL.Image, requests, scipy.io, skimage, tifffile, torchvision, tqdm, yaml
for name in ('fcntl', 'grp', 'pty', 'pwd', 'resource', 'syslog', 'termios', 'tty'):
    sys.modules[name] = None
for name in ('fork', 'getuid', 'geteuid', 'killpg', 'register_at_fork', 'setsid', 'sched_getaffinity', 'uname'):
    vars(os).pop(name, None)
for name in ('SIGALRM', 'SIGCHLD', 'SIGHUP', 'SIGKILL', 'SIGUSR1', 'pthread_sigmask', 'sigwait'):
    vars(signal).pop(name, None)
assert 'clit_basicsr.hosts.basicsr.experiment' not in sys.modules
count = 0
for module in pkgutil.walk_packages(clit_basicsr.__path__, 'clit_basicsr.'):
    if 'mmagic' not in module.name and not module.name.endswith('__main__'):
        importlib.import_module(module.name)
        count += 1
print(count)
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


def test_the_public_names_stay_where_they_are():
    program = """
import clit_basicsr
from clit_basicsr import UserError, upscale
from clit_basicsr.archs import CLIT, IPE, LIIF, LIT, LTE, RDN, Bicubic, MetaSR, UltraSR, load_checkpoint
from clit_basicsr.archs.checkpoint import build_network
from clit_basicsr.archs.encoders import build_encoder
from clit_basicsr.metrics import calculate_psnr_float
from clit_basicsr.ops import local_attention
from clit_basicsr.ops.backends import use_backend
from clit_basicsr.ops.coords import make_coord
from clit_basicsr.pictures.files import read
from clit_basicsr.published import load
for method in ('encode', 'prepare', 'query', 'upscale', 'upscale_tiles', 'attention'):
    assert callable(getattr(LTE, method)) and callable(getattr(CLIT, method))
try:
    from clit_basicsr.archs import Nothing
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert "cannot import name 'Nothing' from 'clit_basicsr.archs'" in done.stdout


def test_the_host_alone_does_not_import_here():
    """If this fails, the installed torchvision has the module that BasicSR wants: the alias has no reason any more."""
    done = subprocess.run([sys.executable, '-c', 'import basicsr'], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert 'functional_tensor' in done.stderr or 'torchvision::nms' in done.stderr


def test_schemas_are_declared_only_where_torchvision_cannot_load_its_library():
    code = (
        'import torch, clit_basicsr\nfrom clit_basicsr.hosts import import_hooks as hooks\n'
        'loads = hooks.torchvision_library_loads()\nimport torchvision\n'
        'print(bool(hooks._schemas) != loads, torchvision.extension._has_ops() == loads)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['True', 'True']


def test_a_host_that_another_finder_knows_is_seen_too(tmp_path, monkeypatch):
    """As those of editable installs do."""
    entered = []

    @contextmanager
    def context(module):
        entered.append(module.__name__)
        yield

    def find_spec(name, path=None, target=None):
        return spec_from_file_location(name, tmp_path / 'host.py') if name == 'an_editable_host' else None

    (tmp_path / 'host.py').write_text('number = 3\n')
    monkeypatch.setitem(import_hooks._CONTEXTS, 'an_editable_host', context)
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path, SimpleNamespace(find_spec=find_spec)])
    assert importlib.import_module('an_editable_host').number == 3
    assert entered == ['an_editable_host']
    del sys.modules['an_editable_host']
