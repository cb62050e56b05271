"""A wheel, built and installed without its dependencies, has all that the commands need; BasicSR's can be built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.awkward_pictures import color
from helpers.tiny_network import save

from clit_basicsr.pictures import files

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
WHEEL = [*PIP, 'wheel', '--no-build-isolation', '--no-deps', '--no-index', '-w', 'dist']


def test_an_installed_wheel_enlarges_a_picture_and_has_the_option_files(folder):
    copy = folder / 'source'
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy)
    for name in ('clit_basicsr', 'options'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '*.so', 'option_files'))
    subprocess.run([*WHEEL, str(copy)], check=True)
    (built,) = Path('dist').glob('*.whl')
    subprocess.run([*PIP, 'install', '--no-deps', '--no-index', '--target', 'site', str(built)], check=True)
    save('a.png', color())
    code = """
import sys, clit_basicsr
from clit_basicsr.cli import main
assert clit_basicsr.__file__.startswith(sys.argv[1]), clit_basicsr.__file__
line = 'upscale a.png -s 2.5 -m tiny --device cpu'
sys.exit(main(['options', 'train_clit_edsr']) or main(line.split()))
"""
    site = str(folder / 'site')
    environment = {**os.environ, 'PYTHONPATH': site}
    subprocess.run([sys.executable, '-c', code, site], env=environment, check=True)
    assert files.read('a_x2.5.png').pixels.shape == (15, 22, 3)
    for name in ('options/train_clit_edsr.yml', 'site/clit_basicsr/py.typed'):
        assert os.path.isfile(name), name
    assert {path.name for path in Path('site/clit_basicsr/weights').iterdir()} >= {
        path.name for path in (ROOT / 'clit_basicsr/weights').glob('*.*')
    }


HOSTS_SETUP = """
from setuptools import setup

def get_version():  # as BasicSR has it
    with open('version.py') as f:
        exec(compile(f.read(), 'version.py', 'exec'))
    return locals()['__version__']

def given():
    one, two = {}, {}
    exec('a = 1', one)
    exec('b = 2', one, two)
    return one['a'], two['b'], 'a' in globals() or 'b' in locals()

exec('c = 3')
assert (*given(), c) == (1, 2, False, 3)
setup(name='host', version=get_version(), py_modules=['version'])
"""


def test_a_setup_that_reads_what_exec_has_set_from_locals_builds_on_every_python(folder):
    (folder / 'setup.py').write_text(HOSTS_SETUP)
    (folder / 'version.py').write_text("__version__ = '1.4.2'")
    environment = {**os.environ, 'PYTHONPATH': str(ROOT / 'scripts' / 'python313')}
    subprocess.run([*WHEEL, '.'], env=environment, check=True)
    assert Path('dist/host-1.4.2-py3-none-any.whl').is_file()
