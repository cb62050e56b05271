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
        architectures: flags for the GPUs that it is built for where nobody says which.
        portable: whether the library runs on other processors than this machine's.
        duration: what to expect of the build.
    """

    sources: str
    headers: tuple[str, ...]
    flags: tuple[str, ...]
    architectures: tuple[str, ...]
    portable: bool
    duration: str


LIBRARIES = {
    'cpu': Library('*.cpp', ('*.h',), ('-march=native', '-fPIC', '-pthread'), (), False, 'about 10 s'),
    'cuda': Library(
        '*.cu',
        ('tensors.h', 'window.h', '*.cuh'),
        ('-Xcompiler=-fPIC', '--threads=0'),
        ('-gencode=arch=compute_80,code=[sm_80,sm_89]', '-gencode=arch=compute_90,code=[sm_90,compute_90]'),
        True,
        'about half a minute',
    ),
}


# The oldest nvcc that compiles the kernels: C++20.
OLDEST_NVCC = (12, 0)
# Seconds between two signs of life of a build.
SIGN_OF_LIFE = 10


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


def _key(name: str, gpus: tuple[int, ...]) -> str:
    """What the library depends on: sources, flags and the processor or GPUs of this machine if it is for these."""
    library = LIBRARIES[name]
    architectures = map(str, gpus) if gpus else library.architectures
    digest = hashlib.sha256(' '.join([*COMMON, *library.flags, *architectures, platform.machine()]).encode())
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


def _library(folder: Path, name: str, gpus: tuple[int, ...] = ()) -> Path:
    return folder / f'clit_{name}-{_key(name, gpus)}.so'


def compiler(name: str = 'cpu') -> list[str] | None:
    """The command of the C++ compiler, g++ or that of the environment variable CXX ('ccache g++ -m64'); for 'cuda'
    nvcc, the first that is new enough. None: there is none.
    """
    if name == 'cuda':
        return next(([path] for path, version in _nvccs() if version >= OLDEST_NVCC), None)
    wanted = os.environ.get('CXX') or 'g++'
    try:
        program, *arguments = [wanted] if shutil.which(wanted) else shlex.split(wanted)
    except ValueError:  # a quotation mark without its other, or nothing but spaces
        return None
    found = shutil.which(program)
    return [found, *arguments] if found else None


def _nvccs() -> list[tuple[str, tuple[int, int]]]:
    """Every nvcc and its version: that of CUDA_HOME, CUDA_PATH, /usr/local/cuda, then the path's."""
    homes = [os.environ.get('CUDA_HOME'), os.environ.get('CUDA_PATH'), '/usr/local/cuda']
    places = [*(os.path.join(home, 'bin') for home in homes if home), None]
    found = dict.fromkeys(path for place in places if (path := shutil.which('nvcc', path=place)))
    return [(path, _nvcc_version(path)) for path in found]


@cache
def _nvcc_version(path: str) -> tuple[int, int]:
    """(0, 0) if it does not say."""
    release = re.search(r'release (\d+)\.(\d+)', _output(path, '--version'))
    return (int(release[1]), int(release[2])) if release else (0, 0)


def _output(*command: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, errors='replace', timeout=30).stdout
    return ''


def _missing(name: str) -> str:
    """What to say where there is no compiler."""
    if name == 'cpu':
        return f'the C++ compiler {os.environ.get("CXX") or "g++"} was not found, or may not be executed'
    older = ', '.join(f'{path} is {major}.{minor}' for path, (major, minor) in _nvccs())
    wanted = '.'.join(map(str, OLDEST_NVCC))
    return f'the CUDA compiler nvcc, {wanted} or later, was not found{f" ({older})" if older else ""}; set CUDA_HOME'


def _architecture_flags(nvcc: str, gpus: tuple[int, ...]) -> list[str]:
    """For GPUs of these compute capabilities (90 is 9.0); one that nvcc does not know gets the newest code for older
    ones that a driver translates.
    """
    known = sorted(int(number) for number in re.findall(r'compute_(\d+)$', _output(nvcc, '--list-gpu-arch'), re.M))
    flags = []
    for gpu in gpus:
        base = max((one for one in known if one <= gpu), default=gpu)
        flags.append(f'-gencode=arch=compute_{base},code={"sm" if base == gpu else "compute"}_{base}')
    return flags


def build(folder: Path, name: str = 'cpu', gpus: tuple[int, ...] = ()) -> Path:
    """Compiles the kernels into a folder.

    Args:
        gpus: the compute capabilities (90 is 9.0) that 'cuda' is built for; none: all that are named in LIBRARIES.

    Raises:
        BuildError: the compiler is missing, cannot be run or was killed.
        CompilerError: it finds an error.
    """
    found = compiler(name)
    if found is None:
        raise BuildError(_missing(name))
    spec = find_spec('torch')
    if spec is None or spec.origin is None:
        raise BuildError('torch is not installed where the kernels are built (pip needs --no-build-isolation)')
    torch = Path(spec.origin).parent
    target = _library(folder, name, gpus)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left_parts(folder)
    part = folder / f'{target.stem}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part'
    # The CUDA library asks torch for nothing that a torch without CUDA lacks: it loads there too.
    libraries = [f'-L{torch / "lib"}', '-ltorch', '-ltorch_cpu', '-lc10']
    flags = [*LIBRARIES[name].flags, *(_architecture_flags(found[0], gpus) if gpus else LIBRARIES[name].architectures)]
    command = [*found, *COMMON, *flags, f'-I{torch / "include"}', *map(str, sources(name))]
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
    began = time.monotonic()
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
        ) as process:
            said = None
            while said is None:
                try:
                    said, _ = process.communicate(timeout=SIGN_OF_LIFE)
                except subprocess.TimeoutExpired:
                    print(f'clit_basicsr: still building, {time.monotonic() - began:.0f} s', file=sys.stderr)
                except BaseException:
                    process.kill()
                    raise
    except OSError as e:
        raise BuildError(f'the compiler cannot be run: {e}') from None
    if not process.returncode:
        return
    if process.returncode < 0 or process.returncode > 128 or KILLED.search(said) or not said.strip():
        ended = f'signal {-process.returncode}' if process.returncode < 0 else f'exit code {process.returncode}'
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
    if os.name == 'nt':  # where os.kill ends a process whatever the signal; unfinished libraries stay for a day
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def find(name: str = 'cpu', gpus: tuple[int, ...] = ()) -> Path | None:
    """The library that was built for these sources and this processor or these GPUs, at installation or before; None if
    there is none, or only a damaged one.
    """
    folders = [PREBUILT]
    with suppress(BuildError):
        folders.append(_cache())
    paths = [_library(folder, name, wanted) for folder in folders for wanted in dict.fromkeys((gpus, ()))]
    return next((path for path in paths if intact(path)), None)


def _wait_for(lock: IO[str]) -> None:
    with suppress(ImportError):  # Windows, where each process builds its own
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)


def _log(folder: Path, name: str, gpus: tuple[int, ...], torch_version: str) -> Path:
    """Where the errors that a compiler found are kept."""
    command = compiler(name) or []
    version = _nvcc_version(command[0]) if command and name == 'cuda' else ''
    compiled_by = hashlib.sha256(f'{" ".join(command)} {version}'.encode()).hexdigest()[:8]
    return folder / f'clit_{name}-{_key(name, gpus)}-torch{torch_version}-{compiled_by}.log'


@cache
def problem(name: str = 'cpu', gpus: tuple[int, ...] = ()) -> str | None:
    """Loads the kernels, building them first if need be; None, or the whole reason why they cannot be used.

    Args:
        gpus: see :func:`build`. A process can load the library of a name once, so these are all that it will use.

    The errors that the compiler finds are kept in the cache folder, so that they cost their time once, until the
    sources, the torch or the compiler change. A compiler that was killed is run again by the next process.
    """
    import torch

    path = find(name, gpus)
    if path is None:
        try:
            folder = _cache()
            log = _log(folder, name, gpus, torch.__version__)
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f'lock-{name}', 'w') as lock:
                _wait_for(lock)  # several ranks start together, one builds
                path = find(name, gpus)
                if path is None and log.exists():
                    return f'{log.read_text()}\n(kept in {log}; delete it to try again)'
                if path is None:
                    duration = LIBRARIES[name].duration
                    print(f'clit_basicsr: building the {name.upper()} kernels (once, {duration}) ...', file=sys.stderr)
                    path = build(folder, name, gpus)
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
