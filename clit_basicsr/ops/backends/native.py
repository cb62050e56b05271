"""The compiled kernels: found next to the package or in the user's cache, else built there once, at first use.

There are two libraries, 'cpu' and 'cuda'. Of this package and of torch nothing is imported here before :func:`problem`,
so that ``setup.py`` can build with it too.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).parents[1] / 'csrc'
# Where an installation with CLIT_BUILD=cpu,cuda puts the libraries.
PREBUILT = CSRC
# The oldest torch whose stable ABI the kernels need: a library built against any torch serves this one and all later
# ones.
TARGET = '0x020a000000000000'
COMMON = ['-std=c++20', '-O3', '-shared', f'-DTORCH_TARGET_VERSION={TARGET}']


class Library(NamedTuple):
    """How one of the libraries is built.

    Attributes:
        sources, headers: patterns of the files in csrc/ that it is made of.
        flags: of the compiler, in addition to :data:`COMMON`.
        portable: whether the library runs on other processors than this machine's.
        duration: what to expect of the build.
    """

    sources: str
    headers: tuple[str, ...]
    flags: tuple[str, ...]
    portable: bool
    duration: str


LIBRARIES = {
    'cpu': Library('*.cpp', ('*.h',), ('-march=native', '-fPIC', '-pthread'), False, 'about 10 s'),
    'cuda': Library(
        '*.cu',
        ('tensors.h', 'window.h', '*.cuh'),
        (
            '-Xcompiler=-fPIC',
            '--threads=0',
            '-gencode=arch=compute_80,code=[sm_80,sm_89]',
            '-gencode=arch=compute_90,code=[sm_90,compute_90]',
        ),
        True,
        'about a minute',
    ),
}


class BuildError(RuntimeError):
    """The kernels cannot be built."""


class CompilerError(BuildError):
    """The compiler fails; the message holds its whole output."""


def sources(name: str = 'cpu') -> list[Path]:
    return sorted(CSRC.glob(LIBRARIES[name].sources))


def _key(name: str) -> str:
    """What the library depends on: sources, flags and, where it is built for the machine's own processor, that."""
    library = LIBRARIES[name]
    digest = hashlib.sha256(' '.join([*COMMON, *library.flags, platform.machine()]).encode())
    headers = {path for pattern in library.headers for path in CSRC.glob(pattern)}
    for path in [*sources(name), *sorted(headers)]:
        digest.update(path.read_bytes())
    cpuinfo = Path('/proc/cpuinfo')
    if not library.portable and cpuinfo.exists():
        digest.update(
            next((line for line in cpuinfo.read_text().splitlines() if line.startswith('flags')), '').encode()
        )
    return digest.hexdigest()[:16]


def _cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'clit_basicsr'


def _library(folder: Path, name: str) -> Path:
    return folder / f'clit_{name}-{_key(name)}.so'


def compiler(name: str = 'cpu') -> str | None:
    """The C++ compiler, g++ or what the environment variable CXX names; for 'cuda' nvcc, found on the path, in
    CUDA_HOME or in /usr/local/cuda.
    """
    if name == 'cpu':
        return shutil.which(os.environ.get('CXX', 'g++'))
    homes = [os.environ.get('CUDA_HOME'), '/usr/local/cuda']
    places = [None, *(os.path.join(home, 'bin') for home in homes if home)]
    return next((found for place in places if (found := shutil.which('nvcc', path=place))), None)


def build(folder: Path, name: str = 'cpu') -> Path:
    """Compiles the kernels into a folder.

    Raises:
        BuildError: the compiler is missing or cannot be run.
        CompilerError: it fails.
    """
    found = compiler(name)
    if found is None:
        wanted = f'C++ compiler {os.environ.get("CXX", "g++")}' if name == 'cpu' else 'CUDA compiler nvcc'
        raise BuildError(f'the {wanted} was not found, or may not be executed')
    spec = find_spec('torch')
    if spec is None or spec.origin is None:
        raise BuildError('torch is not installed where the kernels are built (pip needs --no-build-isolation)')
    torch = Path(spec.origin).parent
    target = _library(folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f'.{os.getpid()}.part')
    # The CUDA library asks torch for nothing that a torch without CUDA lacks: it loads there too.
    libraries = [f'-L{torch / "lib"}', '-ltorch', '-ltorch_cpu', '-lc10']
    command = [found, *COMMON, *LIBRARIES[name].flags, f'-I{torch / "include"}', *map(str, sources(name))]
    command += ['-o', str(part), *libraries]
    try:
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as e:
            raise BuildError(f'the compiler cannot be run: {e}') from None
        if done.returncode:
            raise CompilerError(f'{" ".join(command)}\n{done.stdout}{done.stderr}')
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def find(name: str = 'cpu') -> Path | None:
    """The library that was built for these sources and this processor, at installation or before; None if there is
    none.
    """
    return next((path for path in (_library(PREBUILT, name), _library(_cache(), name)) if path.exists()), None)


@cache
def problem(name: str = 'cpu') -> str | None:
    """Loads the kernels, building them first if need be; None, or the whole reason why they cannot be used.

    What the compiler says when it fails is kept in the cache folder, so that it costs its time once, until the sources
    or the torch change.
    """
    import torch

    path = find(name)
    if path is None:
        folder = _cache()
        log = folder / f'clit_{name}-{_key(name)}-torch{torch.__version__}.log'
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f'lock-{name}', 'w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # several ranks start together, one builds
                path = find(name)
                if path is None and log.exists():
                    return f'{log.read_text()}\n(kept in {log}; delete it to try again)'
                if path is None:
                    duration = LIBRARIES[name].duration
                    print(f'clit_basicsr: building the {name.upper()} kernels (once, {duration}) ...', file=sys.stderr)
                    path = build(folder, name)
        except CompilerError as e:
            with suppress(OSError):
                log.write_text(str(e))
            return str(e)
        except BuildError as e:
            return str(e)
        except OSError as e:
            return f'the cache folder cannot be used: {e}'
    try:
        torch.ops.load_library(str(path))
    except OSError as e:
        return f'{path} does not load: {e}'
    return None
