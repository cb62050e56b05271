"""The compiled kernels: found beside the package or in the user's cache, else built there at first use, once.

Of this package and of torch nothing is imported here before :func:`load`, so that ``setup.py`` can build with it too.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

CSRC = Path(__file__).parent / 'csrc'
# Where an installation with CLIT_BUILD=cpu puts the library.
PREBUILT = CSRC
# The oldest torch whose stable ABI the kernels need: a library built against any torch serves this one and all later
# ones.
TARGET = '0x020a000000000000'
FLAGS = ['-std=c++20', '-O3', '-march=native', '-fPIC', '-shared', '-pthread', f'-DTORCH_TARGET_VERSION={TARGET}']


class BuildError(RuntimeError):
    """The kernels cannot be built; the message holds the compiler's whole output."""


def sources() -> list[Path]:
    return sorted(CSRC.glob('*.cpp'))


def _key() -> str:
    """What the library depends on: the sources, the flags and, as it is built for the machine's own processor, that."""
    digest = hashlib.sha256(' '.join([*FLAGS, platform.machine()]).encode())
    for path in [*sources(), *sorted(CSRC.glob('*.h'))]:
        digest.update(path.read_bytes())
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        digest.update(
            next((line for line in cpuinfo.read_text().splitlines() if line.startswith('flags')), '').encode()
        )
    return digest.hexdigest()[:16]


def _cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'clit_basicsr'


def _library(folder: Path) -> Path:
    return folder / f'clit_cpu-{_key()}.so'


def compiler() -> str | None:
    """The C++ compiler: g++, or what the environment variable CXX names."""
    return shutil.which(os.environ.get('CXX', 'g++'))


def build(folder: Path) -> Path:
    """Compiles the kernels into a folder.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    gxx = compiler()
    if gxx is None:
        raise BuildError(f'no C++ compiler: {os.environ.get("CXX", "g++")} was not found')
    spec = find_spec('torch')
    if spec is None or spec.origin is None:
        raise BuildError('torch is not installed where the kernels are built (pip needs --no-build-isolation)')
    torch = Path(spec.origin).parent
    target = _library(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f'.{os.getpid()}.part')
    libraries = [f'-L{torch / "lib"}', '-ltorch', '-ltorch_cpu', '-lc10']
    command = [gxx, *FLAGS, f'-I{torch / "include"}', *map(str, sources()), '-o', str(part), *libraries]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f'{" ".join(command)}\n{done.stderr}')
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def find() -> Path | None:
    """The library that was built for these sources and this processor, at installation or before; None if there is
    none.
    """
    return next((path for path in (_library(PREBUILT), _library(_cache())) if path.exists()), None)


@cache
def problem() -> str | None:
    """Loads the kernels, building them first if need be; None, or the whole reason why there are none.

    A failure is kept in the cache folder, so that it costs its time once, until the sources or the torch change.
    """
    import torch

    path = find()
    if path is None:
        folder = _cache()
        log = folder / f'clit_cpu-{_key()}-torch{torch.__version__}.log'
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / 'lock', 'w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # several ranks start at once, one builds
                path = find()
                if path is None and log.exists():
                    return f'{log.read_text()}\n(kept in {log}; delete it to try again)'
                if path is None:
                    print('clit_basicsr: building the CPU kernels (once, about 10 s) ...', file=sys.stderr, flush=True)
                    path = build(folder)
        except BuildError as e:
            log.write_text(str(e))
            return str(e)
        except OSError as e:
            return f'the cache folder cannot be used: {e}'
    try:
        torch.ops.load_library(str(path))
    except OSError as e:
        return f'{path} does not load: {e}'
    return None
