"""Packaging of clit-basicsr: package, command, dependencies. Known-good versions are in requirements*.txt.

    CLIT_BUILD=cpu pip install --no-build-isolation .    # or cuda, or cpu,cuda

also compiles the kernels, which are otherwise compiled at first use; those for the CPU fit this machine's processor.
"""

import importlib.util
import os
import re
import shutil
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LIBRARIES = [name for name in os.environ.get('CLIT_BUILD', '').split(',') if name]


class BuildKernels(build_py):
    """Compiles the libraries named in CLIT_BUILD into ``csrc/``, where they are packaged with the sources."""

    def run(self) -> None:
        if LIBRARIES:
            # by path: importing the package requires torch, and the installed package may be a different version
            path = ROOT / 'clit_basicsr' / 'ops' / 'backends' / 'native.py'
            spec = importlib.util.spec_from_file_location('native', path)
            native = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(native)
            if unknown := [name for name in LIBRARIES if name not in native.LIBRARIES]:
                raise SystemExit(f'CLIT_BUILD must name cpu, cuda or both; got {",".join(unknown)!r}.')
            for name in LIBRARIES:
                for old in native.CSRC.glob(f'clit_{name}-*.so'):
                    old.unlink()
                try:
                    native.build(native.CSRC, name)
                except native.BuildError as e:
                    raise SystemExit(f'the {name} kernels cannot be built: {e}') from None
        super().run()
        if not getattr(self, 'editable_mode', False):  # which finds them in options/
            target = Path(self.build_lib) / 'clit_basicsr' / 'option_files'
            shutil.copytree(ROOT / 'options', target, dirs_exist_ok=True)


class MaybeBinary(Distribution):
    """Marks a wheel with compiled kernels as specific to its platform."""

    def has_ext_modules(self) -> bool:
        return bool(LIBRARIES) or super().has_ext_modules()


def version() -> str:
    # read, not imported: the package must be buildable before torch is installed
    return re.search(r"__version__ = '(.+)'", (ROOT / 'clit_basicsr' / '__init__.py').read_text()).group(1)


def long_description() -> str:
    """README without its pictures, which a package index would not find."""
    readme = ROOT / 'README.md'
    return re.sub(r'^!\[.*\n', '', readme.read_text(encoding='utf-8'), flags=re.MULTILINE) if readme.exists() else ''


setup(
    name='clit-basicsr',
    version=version(),
    description='LIT and CLIT, arbitrary-scale image super-resolution, as a plugin of BasicSR',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    url='https://arxiv.org/abs/2303.16513',
    classifiers=[
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Programming Language :: Python :: 3.14',
        'Topic :: Scientific/Engineering :: Image Processing',
        'Typing :: Typed',
    ],
    python_requires='>=3.11,<3.15',
    packages=find_packages(include=['clit_basicsr', 'clit_basicsr.*']),
    package_data={
        'clit_basicsr': ['py.typed'],
        'clit_basicsr.weights': ['*.safetensors', '*.json'],
        'clit_basicsr.report': ['tables.csv'],
        'clit_basicsr.ops': ['csrc/*'],  # compiled at first use or with CLIT_BUILD
    },
    cmdclass={'build_py': BuildKernels},
    distclass=MaybeBinary,
    entry_points={'console_scripts': ['basicsr = clit_basicsr.cli:main']},
    install_requires=[
        'torch>=2.10',
        'torchvision',
        'basicsr==1.4.2',  # the fixes in clit_basicsr/hosts are for this version
        'lmdb',
        'matplotlib',
        'numpy',
        'opencv-python',
        'pillow>=11.3',
        'pyyaml',
        'tifffile',
        'tqdm',
    ],
)
