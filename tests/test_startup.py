"""What is imported when: seconds that a command or a script should not wait for."""

import ctypes
import os
import pickle
import subprocess
import sys

import pytest
from helpers.awkward_pictures import color
from helpers.tiny_network import save

from clit_basicsr import cli
from clit_basicsr.cli import allocator
from clit_basicsr.hosts.deferred import Deferred, deferring

HEAVY = ('torch', 'torch._dynamo', 'torchvision', 'scipy', 'sympy')


def run(code, folder='.'):
    """The output of a Python program in a process of its own."""
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_networks_import_neither_the_compiler_nor_what_the_host_hardly_uses():
    code = f'import sys, clit_basicsr.archs; print([name for name in {HEAVY} if name in sys.modules])'
    assert run(code).strip() == "['torch']"


def test_every_deferred_import_of_the_host_is_what_the_statement_would_give():
    code = """
import importlib, sys
import clit_basicsr, basicsr
from clit_basicsr import cli
from clit_basicsr.cli import allocator
from clit_basicsr.hosts.deferred import Deferred
found = [(module, name, value) for key, module in list(sys.modules.items()) if key.startswith('basicsr')
         for name, value in vars(module).items() if isinstance(value, Deferred)]
print(sorted({f'{value._module}:{value._name}' for *_, value in found}))
assert 'torchvision' not in sys.modules and 'scipy' not in sys.modules
for module, name, value in found:
    thing = importlib.import_module(value._module)
    if value._name:
        thing = getattr(thing, value._name)
    getattr(value, 'any_name', None)
    assert vars(module)[name] is thing, (module, name)
"""
    names = run(code)
    for name in ('scipy.stats:multivariate_normal', 'torchvision.utils:make_grid', 'torchvision:None', 'scipy:special'):
        assert f"'{name}'" in names


def test_the_host_works_with_deferred_imports():
    code = """
import clit_basicsr, basicsr, torch
import numpy as np
from basicsr.data.degradations import cdf2, mesh_grid, circular_lowpass_kernel, generate_poisson_noise_pt
from basicsr.utils import tensor2img
print(generate_poisson_noise_pt(torch.rand(1, 3, 5, 5), gray_noise=1).shape)
print(cdf2(np.eye(2), mesh_grid(7)[0]).shape, circular_lowpass_kernel(1, 7).shape)
print(tensor2img(torch.rand(2, 3, 4, 4)).shape)
"""
    assert run(code).splitlines() == ['torch.Size([1, 3, 5, 5])', '(7, 7) (7, 7)', '(14, 8, 3)']


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A package that imports two others, ``slow`` and ``unused``, in every way."""
    files = {
        'slow/__init__.py': 'answer = 42\ndef double(x):\n    return 2 * x\n',
        'slow/part.py': 'value = 7\n',
        'toyhost/__init__.py': 'import slow\nfrom slow import double as twice, part\nfrom slow.part import value\n'
        'from toyhost import inner\n',
        'toyhost/inner.py': 'import slow.part as dotted\nfrom . import __name__ as parent\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split('.')[0] in ('slow', 'toyhost')]:
        del sys.modules[name]


def test_deferred_names_import_at_first_use_and_replace_themselves(host):
    (host / 'toyhost' / 'inner.py').write_text('')
    with deferring('toyhost', ('slow',)):
        import toyhost
    assert 'slow' not in sys.modules and repr(toyhost.twice) == '<slow.double, imported when it is used>'
    assert all(isinstance(thing, Deferred) for thing in (toyhost.slow, toyhost.twice, toyhost.part, toyhost.value))
    kept = toyhost.twice
    assert toyhost.twice(3) == kept(3) == 6 and toyhost.part.value == 7 and toyhost.slow.answer == 42
    import slow

    assert toyhost.slow is slow and toyhost.twice is slow.double and toyhost.part is slow.part
    assert pickle.loads(pickle.dumps(kept)) is slow.double


def test_only_plain_statements_of_the_host_are_deferred(host):
    with deferring('toyhost', ('slow',)):
        import toyhost  # its file inner.py imports slow.part by a dotted name: no statement of that kind is deferred
    import slow.part

    assert toyhost.inner.dotted is slow.part and toyhost.inner.parent == 'toyhost'
    for name in ('slow', 'slow.part'):
        del sys.modules[name]
    with deferring('toyhost', ('slow',)):
        import slow
    assert slow.answer == 42 and not isinstance(slow, Deferred)


def test_a_package_that_is_missing_is_reported_by_the_import(host):
    (host / 'toyhost' / '__init__.py').write_text('import not_installed_anywhere\n')
    with (
        pytest.raises(ModuleNotFoundError, match='not_installed_anywhere'),
        deferring('toyhost', ('slow', 'not_installed_anywhere')),
    ):
        import toyhost  # noqa: F401


def test_an_imported_package_is_not_deferred(host):
    import slow

    with deferring('toyhost', ('slow',)):
        import toyhost
    assert toyhost.slow is slow and toyhost.twice is slow.double


MISTAKES = (
    ('upscal', 'unknown command'),
    ('upscale', 'required: input'),
    ('upscale gone.png -s 2 -o b.png', 'gone.png does not exist'),
    ('upscale here.png -s 0.5 -o b.png', 'a factor must be at least 1'),
    ('upscale here.png -s 2 -o b.png -m', 'expected one argument'),
    ('upscale here.png -s 2 -q -v', 'not allowed with'),
    ('upscale here.png -s 2 --shard 4/3', '--shard: give I/N'),
    ('upscale here.png -s 2 --quality 0', 'from 1 to 100'),
    ('upscale . -s 2', '. is a folder; give another one'),
    ('upscale here.png -s 2 -o b.png --model gone.pth', "'gone.pth' is neither a checkpoint, nor"),
    ('upscale here.png -s 2 -o b.png --precision half', 'invalid choice'),
    ('compare gone.png', 'gone.png does not exist'),
    ('compare here.png --downsampling gimp', 'invalid choice'),
    ('attention gone.png --at 0.5,0.5', 'gone.png does not exist'),
    ('attention here.png --at 0.5,0.5 -o figure.jpg', 'the figure is a PNG'),
    ('zoom here.png -o film.avi', 'written as .gif or .mp4'),
    ('convert gone.pth b.pth', 'gone.pth does not exist'),
    ('convert here.png b.zip', 'the output is a checkpoint'),
    ('prepare', 'give the folders of the images'),
    ('prepare . -o here', 'nothing to do'),
    ('prepare gone -o here.lmdb', 'gone is not a folder'),
    ('info gone.pth', 'gone.pth does not exist'),
    ('train', 'required: -opt'),
    ('train -opt gone.yml', 'gone.yml: No such file'),
    ('test -opt here.yml --force_yml name', 'expected key=value'),
)
RIGHT = ('--help', '--version', '-V', *(f'{name} --help' for name in cli.COMMANDS))


def test_help_and_mistakes_on_the_command_line_do_not_import_torch(tmp_path):
    """All in one process: torch would stay imported for those that follow."""
    (tmp_path / 'here.png').touch()
    (tmp_path / 'here.yml').write_text('name: tiny\n')
    code = f"""
import contextlib, io, sys
from clit_basicsr.cli import main
for line, words in {[*((line, 'usage: basicsr' if 'help' in line else '') for line in RIGHT), *MISTAKES]}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            code = main(line.split())
        except SystemExit as stop:
            code = stop.code
    assert words in out.getvalue(), (line, out.getvalue())
    assert 'help' in line or '-V' in line or '--version' in line or out.getvalue().count(chr(10)) == 1, out.getvalue()
    heavy = [name for name in {(*HEAVY, 'numpy', 'basicsr', 'cv2', 'matplotlib')} if name in sys.modules]
    print(code, heavy)
"""
    lines = run(code, tmp_path).splitlines()
    assert lines[: len(RIGHT)] == ['0 []'] * len(RIGHT)
    assert [line for line in lines[len(RIGHT) :] if line != '1 []'] == []
    assert len(lines) == len(RIGHT) + len(MISTAKES)


FREED = """
import ctypes, os, sys
import clit_basicsr
from clit_basicsr.cli import allocator
def resident():
    return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
kept = allocator.keep_freed_memory() if sys.argv[1] == 'command' else None
libc = ctypes.CDLL(None)
libc.malloc.restype, size, before = ctypes.c_void_p, ctypes.c_size_t(100 << 20), resident()
block = ctypes.c_void_p(libc.malloc(size))
ctypes.memset(block, 1, size.value)
assert resident() - before > 90 << 20
libc.free(block)
print(kept, resident() - before > 90 << 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'gnu_get_libc_version'), reason='not glibc')
@pytest.mark.parametrize(
    ('who', 'environment', 'expected'),
    [
        ('command', {}, 'True True'),
        ('library', {}, 'None False'),
        ('command', {'MALLOC_TRIM_THRESHOLD_': '131072'}, 'False False'),
    ],
)
def test_commands_keep_freed_memory_and_the_library_does_not(who, environment, expected):
    unset = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
    command = [sys.executable, '-c', FREED, who]
    done = subprocess.run(command, env={**unset, **environment}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()


def test_another_c_library_is_left_alone(monkeypatch):
    for name in allocator.CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: object())
    assert allocator.keep_freed_memory() is False


@pytest.mark.parametrize(('command', 'calls'), [(['train', '-opt', 'none.yml'], 0), (['info', 'none.pth'], 1)])
def test_training_leaves_the_allocator_alone(command, calls, folder, monkeypatch):
    called = []
    monkeypatch.setattr(cli, 'keep_freed_memory', lambda: called.append(1))
    assert cli.main(command) == 1  # there are no such files
    assert len(called) == calls


def test_a_picture_is_enlarged_without_the_compiler(folder):
    """The operators and the check of a file's network must not import it."""
    save('a.png', color())
    code = f"""
import sys
from clit_basicsr.cli import main
assert main(['upscale', 'a.png', '-s', '2', '-o', 'b.png', '--model', 'tiny', '--device', 'cpu']) == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert run(code).splitlines()[-1] == "['torch']"
