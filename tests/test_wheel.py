"""A wheel, built and installed without its dependencies, has everything that the commands need."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.awkward_pictures import color
from helpers.tiny_network import save

from clit_basicsr.pictures import files

ROOT = Path(__file__).parents[1]


def test_an_installed_wheel_enlarges_a_picture_and_has_the_option_files(folder):
    copy = folder / 'source'
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy)
    for name in ('clit_basicsr', 'options'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '*.so', 'option_files'))
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    wheel = [*pip, 'wheel', '--no-build-isolation', '--no-deps', '--no-index', '-w', 'dist', str(copy)]
    subprocess.run(wheel, check=True)
    (built,) = Path('dist').glob('*.whl')
    subprocess.run([*pip, 'install', '--no-deps', '--no-index', '--target', 'site', str(built)], check=True)
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
