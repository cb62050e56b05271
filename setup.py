"""Packaging of clit-basicsr: package, command, what it needs. Known-good versions stand in requirements*.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    # read, not imported: the package must be buildable where torch is not installed yet
    return re.search(r"__version__ = '(.+)'", (ROOT / 'clit_basicsr' / '__init__.py').read_text()).group(1)


def long_description() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


setup(
    name='clit-basicsr',
    version=version(),
    description='LIT and CLIT, arbitrary-scale image super-resolution, as a plugin of BasicSR',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11,<3.13',
    packages=find_packages(include=['clit_basicsr', 'clit_basicsr.*']),
    package_data={
        'clit_basicsr.metrics': ['tables.csv'],
        'clit_basicsr.ops': ['csrc/*'],  # compiled at first use
    },
    entry_points={'console_scripts': ['basicsr = clit_basicsr.cli:main']},
    install_requires=[
        'torch>=2.4',
        'torchvision',
        'basicsr==1.4.2',  # the fixes in clit_basicsr/hosts are of this version
        'lmdb',
        'matplotlib',
        'numpy',
        'opencv-python',
        'pillow',
        'pyyaml',
        'tifffile',
        'tqdm',
    ],
    extras_require={'mmagic': ['mmengine>=0.10.7', 'mmcv>=2.0.0,<2.2.0', 'mmagic>=1.2.0']},
)
