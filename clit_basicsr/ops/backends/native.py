"""The compiled kernels: found next to the package or in the user's cache, else built there once, at first use.

There are two libraries, 'cpu' and 'cuda'. Of this package and of torch nothing is imported here before :func:`problem`,
so that ``setup.py`` can build with it too.
"""

import hashlib
import os
import platform
import re
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

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
    """The compiler finds an error, as it would again; the message holds its whole output."""


# At the end of a library: this, and the SHA-256 of all before it. A library that is cut off is a bus error when loaded.
SEAL = b'clit_basicsr sha256 '
# What compilers say when a part of theirs was killed, or the machine had no room: no error of the sources.
KILLED = re.compile(
    'signal terminated program|died due to signal|out of memory|cannot allocate memory|memory exhausted|no space left',
    re.IGNORECASE,
)


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
    """The user's cache folder; one in the folder for temporary files where there is no home.

    Raises:
        BuildError: somebody else could have put a library into the latter.
    """
    if home := os.environ.get('XDG_CACHE_HOME'):
        return Path(home) / 'clit_basicsr'
    try:
        return Path.home() / '.cache' / 'clit_basicsr'
    except RuntimeError:  # HOME is not set, and the user unknown, as in a container
        pass
    folder = Path(tempfile.gettempdir()) / f'clit_basicsr-{os.getuid()}'
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as e:
        raise BuildError(f'there is no home folder, and {folder} cannot be made: {e}; set XDG_CACHE_HOME') from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise BuildError(f'there is no home folder, and others can write to {folder}; set XDG_CACHE_HOME')
    return folder


def _library(folder: Path, name: str) -> Path:
    return folder / f'clit_{name}-{_key(name)}.so'


def compiler(name: str = 'cpu') -> list[str] | None:
    """The command of the C++ compiler, g++ or that of the environment variable CXX ('ccache g++ -m64'); for 'cuda'
    nvcc, found on the path, in CUDA_HOME or in /usr/local/cuda. None: there is none.
    """
    if name == 'cpu':
        wanted = os.environ.get('CXX') or 'g++'
        try:
            program, *arguments = [wanted] if shutil.which(wanted) else shlex.split(wanted)
        except ValueError:  # a quotation mark without its other, or nothing but spaces
            return None
        found = shutil.which(program)
        return [found, *arguments] if found else None
    homes = [os.environ.get('CUDA_HOME'), '/usr/local/cuda']
    places = [None, *(os.path.join(home, 'bin') for home in homes if home)]
    return next(([found] for place in places if (found := shutil.which('nvcc', path=place))), None)


def build(folder: Path, name: str = 'cpu') -> Path:
    """Compiles the kernels into a folder.

    Raises:
        BuildError: the compiler is missing, cannot be run or was killed.
        CompilerError: it finds an error.
    """
    found = compiler(name)
    if found is None:
        wanted = f'C++ compiler {os.environ.get("CXX") or "g++"}' if name == 'cpu' else 'CUDA compiler nvcc'
        raise BuildError(f'the {wanted} was not found, or may not be executed')
    spec = find_spec('torch')
    if spec is None or spec.origin is None:
        raise BuildError('torch is not installed where the kernels are built (pip needs --no-build-isolation)')
    torch = Path(spec.origin).parent
    target = _library(folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left_parts(folder)
    part = folder / f'{target.stem}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part'
    # The CUDA library asks torch for nothing that a torch without CUDA lacks: it loads there too.
    libraries = [f'-L{torch / "lib"}', '-ltorch', '-ltorch_cpu', '-lc10']
    command = [*found, *COMMON, *LIBRARIES[name].flags, f'-I{torch / "include"}', *map(str, sources(name))]
    command += ['-o', str(part), *libraries]
    try:
        _compile(command)
        seal(part)
        os.replace(part, target)
    except FileNotFoundError as e:
        raise BuildError(f'the compiler has written nothing: {e}') from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors='replace')
    except OSError as e:
        raise BuildError(f'the compiler cannot be run: {e}') from None
    if not done.returncode:
        return
    said = f'{done.stdout}{done.stderr}'
    if done.returncode < 0 or done.returncode > 128 or KILLED.search(said) or not said.strip():
        ended = f'signal {-done.returncode}' if done.returncode < 0 else f'exit code {done.returncode}'
        raise BuildError(f'the compiler was killed, or ran out of memory or space ({ended})\n{said}'.strip())
    raise CompilerError(f'{" ".join(command)}\n{said}')


def seal(library: Path) -> None:
    """Appends the digest by which :func:`intact` knows a library; the loader reads nothing behind the last section."""
    with open(library, 'rb+') as file:
        digest = hashlib.file_digest(file, 'sha256').digest()
        file.seek(0, os.SEEK_END)
        file.write(SEAL + digest)
        file.flush()
        os.fsync(file.fileno())


def intact(library: Path) -> bool:
    """Whether a file is a library that was completely written here, and is as it was."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    end = len(content) - len(SEAL) - 32
    return end > 0 and content[end:] == SEAL + hashlib.sha256(memoryview(content)[:end]).digest()


def _host() -> str:
    """Of this machine or container: others may share the home folder, and number their processes themselves."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _remove_left_parts(folder: Path) -> None:
    """Removes unfinished libraries of builds that were killed: by the process's number here, else after a day."""
    for part in folder.glob('clit_*.part'):
        host, _, rest = part.name.split('.')[-2].partition('-')
        number = rest.partition('-')[0]
        with suppress(OSError):
            old = time.time() - part.stat().st_mtime > 24 * 3600
            if old or (host == _host() and number.isdigit() and not _runs(int(number))):
                part.unlink()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def find(name: str = 'cpu') -> Path | None:
    """The library that was built for these sources and this processor, at installation or before; None if there is
    none, or only a damaged one.
    """
    folders = [PREBUILT]
    with suppress(BuildError):
        folders.append(_cache())
    return next((path for folder in folders if intact(path := _library(folder, name))), None)


def _wait_for(lock: IO[str]) -> None:
    with suppress(ImportError):  # Windows, where each process builds its own
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)


def _log(folder: Path, name: str, torch_version: str) -> Path:
    """Where the errors that a compiler found are kept."""
    command = hashlib.sha256(' '.join(compiler(name) or []).encode()).hexdigest()[:8]
    return folder / f'clit_{name}-{_key(name)}-torch{torch_version}-{command}.log'


@cache
def problem(name: str = 'cpu') -> str | None:
    """Loads the kernels, building them first if need be; None, or the whole reason why they cannot be used.

    The errors that the compiler finds are kept in the cache folder, so that they cost their time once, until the
    sources, the torch or the compiler change. A compiler that was killed is run again by the next process.
    """
    import torch

    path = find(name)
    if path is None:
        try:
            folder = _cache()
            log = _log(folder, name, torch.__version__)
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f'lock-{name}', 'w') as lock:
                _wait_for(lock)  # several ranks start together, one builds
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
