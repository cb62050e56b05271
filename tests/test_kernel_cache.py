"""The cache of compiled kernels: damaged libraries, killed compilers, no home folder. Compilers are shell scripts."""

import os
import subprocess
import sys
import time

import pytest
import torch

from clit_basicsr.ops.backends import native

WRITES = 'while [ "$1" != -o ]; do shift; done; echo a library > "$2"'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder, with no libraries of the installation; what is loaded is noted in place of being loaded."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(native, 'PREBUILT', tmp_path / 'nowhere')
    monkeypatch.setattr(native, 'find_spec', lambda name: torch.__spec__)
    monkeypatch.setattr(torch.ops, 'load_library', lambda path: loaded.append(path))
    loaded = []
    return tmp_path / 'cache' / 'clit_basicsr'


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Makes the C++ compiler a script that also counts its runs."""

    def write(script, name='g++', arguments=''):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/runs\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv('CXX', f'{path}{arguments}')

    return write


def problem():
    """As a new process finds it."""
    native.problem.cache_clear()
    try:
        return native.problem()
    finally:
        native.problem.cache_clear()


def runs(tmp_path):
    return (tmp_path / 'runs').read_text().splitlines() if (tmp_path / 'runs').exists() else []


def test_a_library_is_built_once(cache, use, tmp_path):
    use(WRITES)
    assert problem() is None
    assert problem() is None
    assert len(runs(tmp_path)) == 1
    assert native.find().read_bytes().startswith(b'a library\nclit_basicsr sha256 ')


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b'A' + content[1:],
        lambda content: b'',
        lambda content: content + b' ',
        lambda content: bytes(len(content)),  # of the right size, as after a power cut
    ],
    ids=['half', 'a byte short', 'another byte', 'empty', 'longer', 'zeros'],
)
def test_a_damaged_library_is_built_again(damage, cache, use, tmp_path):
    use(WRITES)
    assert problem() is None
    path = native.find()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert native.find() is None
    assert problem() is None
    assert len(runs(tmp_path)) == 2
    assert path.read_bytes() == whole


def test_a_damaged_library_of_the_installation_is_not_loaded(cache, use, tmp_path, monkeypatch):
    monkeypatch.setattr(native, 'PREBUILT', tmp_path / 'prebuilt')
    use(WRITES)
    installed = native.build(tmp_path / 'prebuilt')
    assert native.find() == installed
    os.truncate(installed, 5)
    assert problem() is None
    assert native.find().parent == cache


def test_a_sealed_library_is_one_that_loads(tmp_path):
    source = tmp_path / 'one.c'
    source.write_text('int one(void) { return 1; }')
    if (compiler := native.compiler()) is None:
        pytest.skip('no C++ compiler here')
    subprocess.run([*compiler, '-x', 'c', '-shared', '-fPIC', str(source), '-o', str(tmp_path / 'one.so')], check=True)
    native.seal(tmp_path / 'one.so')
    assert native.intact(tmp_path / 'one.so')
    program = f'import ctypes; print(ctypes.CDLL({str(tmp_path / "one.so")!r}).one())'
    assert subprocess.run([sys.executable, '-c', program], capture_output=True, text=True).stdout == '1\n'


@pytest.mark.parametrize(
    'script',
    [
        'kill -9 $$',
        'kill -15 $$',
        'echo "g++: fatal error: Killed signal terminated program cc1plus" >&2; exit 1',
        'echo "nvcc error: cicc died due to signal 9 (Kill signal)" >&2; exit 1',
        'echo "x.s: No space left on device" >&2; exit 1',
        'echo "cc1plus: out of memory allocating 65536 bytes" >&2; exit 1',
        'exit 137',  # of a shell whose program was killed
        'exit 1',  # and no word
    ],
)
def test_a_compiler_that_was_killed_is_run_again(script, cache, use, tmp_path):
    use(script)
    assert 'the compiler was killed, or ran out of memory or space' in problem()
    use(WRITES)
    assert problem() is None
    assert len(runs(tmp_path)) == 2


def test_an_error_of_the_sources_is_kept_for_this_compiler(cache, use, tmp_path):
    use('echo "attention.cpp:3: error: no such type" >&2; exit 1')
    for _ in range(2):
        assert 'error: no such type' in problem()
    assert len(runs(tmp_path)) == 1
    assert 'delete it to try again' in problem()
    use(WRITES, name='another')
    assert problem() is None


def test_a_compiler_with_arguments(cache, use, tmp_path, monkeypatch):
    use(WRITES, arguments=' -m64 "-DNAME=a b"')
    assert native.compiler() == [str(tmp_path / 'g++'), '-m64', '-DNAME=a b']
    assert problem() is None
    assert runs(tmp_path)[0].startswith('-m64 -DNAME=a b -std=c++20')


def test_a_wrapped_compiler(cache, use, tmp_path, monkeypatch):
    use('shift; ' + WRITES, name='ccache', arguments=' g++')
    assert problem() is None
    assert runs(tmp_path)[0].startswith('g++ -std=c++20')


def test_a_compiler_whose_path_has_a_space(cache, use, tmp_path):
    (tmp_path / 'my tools').mkdir()
    use(WRITES, name='my tools/g++')
    assert problem() is None


@pytest.mark.parametrize('command', ['"g++', 'no-such-compiler -m64', ' '])
def test_a_command_that_names_no_compiler_is_reported(command, cache, monkeypatch):
    monkeypatch.setenv('CXX', command)
    assert problem() == f'the C++ compiler {command} was not found, or may not be executed'


@pytest.fixture
def homeless(cache, use, tmp_path, monkeypatch):
    """No HOME, and a user whom the machine does not know."""

    def unknown():
        raise RuntimeError('Could not determine home directory.')

    use(WRITES)
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(native.Path, 'home', unknown)
    monkeypatch.setattr(native.tempfile, 'gettempdir', lambda: str(tmp_path))
    return tmp_path / f'clit_basicsr-{os.getuid()}'


def test_without_a_home_the_cache_is_a_private_temporary_folder(homeless, tmp_path):
    assert native.find() is None
    assert problem() is None
    assert native.find().parent == homeless
    assert homeless.stat().st_mode & 0o777 == 0o700
    assert problem() is None
    assert len(runs(tmp_path)) == 1


@pytest.mark.parametrize('kind', ['writable', 'link', 'file', 'of another'])
def test_a_temporary_folder_that_others_could_fill_is_not_used(kind, homeless, tmp_path, monkeypatch):
    if kind == 'link':
        (tmp_path / 'elsewhere').mkdir(mode=0o700)
        homeless.symlink_to(tmp_path / 'elsewhere')
    elif kind == 'file':
        homeless.write_text('')
    else:
        homeless.mkdir()
        homeless.chmod(0o777 if kind == 'writable' else 0o700)
    if kind == 'of another':
        if os.getuid():
            pytest.skip('only root can give a folder away')
        os.chown(homeless, 12345, 12345)
    assert problem().startswith('there is no home folder, and ')
    assert problem().endswith('set XDG_CACHE_HOME')
    assert native.find() is None
    assert runs(tmp_path) == []


def test_parts_of_killed_builds_are_removed_and_those_of_others_stay(cache, use):
    cache.mkdir(parents=True)
    ended = subprocess.Popen(['true'])
    ended.wait()
    names = {
        'dead': f'clit_cpu-0.{native._host()}-{ended.pid}-aa.part',
        'alive': f'clit_cuda-0.{native._host()}-{os.getpid()}-bb.part',
        'elsewhere': f'clit_cpu-0.0123abcd-{ended.pid}-cc.part',
        'old': 'clit_cpu-0.77.part',
        'new': 'clit_cpu-0.78.part',
    }
    for name in names.values():
        (cache / name).write_text('half')
    day_before = time.time() - 25 * 3600
    os.utime(cache / names['old'], (day_before, day_before))
    use(WRITES)
    assert problem() is None
    left = {path.name for path in cache.glob('*.part')}
    assert left == {names['alive'], names['elsewhere'], names['new']}


def test_a_build_that_fails_leaves_no_part(cache, use):
    use(WRITES + '; echo error: wrong >&2; exit 1')
    assert 'error: wrong' in problem()
    assert list(cache.glob('*.part')) == []


def test_two_builds_write_to_names_of_their_own(cache, use, tmp_path):
    use(WRITES)
    for _ in range(2):
        native.build(tmp_path / 'out')
    first, second = (line.split(' -o ')[1].split()[0] for line in runs(tmp_path))
    assert first != second


def test_a_compiler_that_writes_nothing_is_reported(cache, use):
    use('exit 0')
    assert problem().startswith('the compiler has written nothing')


@pytest.fixture
def nvcc(cache, tmp_path, monkeypatch):
    """Puts an nvcc of a version into a folder; CUDA_HOME and CUDA_PATH are unset, /usr/local/cuda is not looked at."""
    for name in ('CUDA_HOME', 'CUDA_PATH'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PATH', '/usr/bin:/bin')
    which = native.shutil.which
    monkeypatch.setattr(
        native.shutil,
        'which',
        lambda name, path=None: None if path == '/usr/local/cuda/bin' else which(name, path=path),
    )

    def put(folder, version, compiles='exit 0', known='80 90'):
        path = tmp_path / folder / 'bin' / 'nvcc'
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = ''.join(f'echo compute_{one};' for one in known.split())
        path.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V1" && exit\n'
            f'[ "$1" = --list-gpu-arch ] && {{ {listed} exit; }}\necho "$@" >> {tmp_path}/runs\n{compiles}\n'
        )
        path.chmod(0o755)
        native._nvcc_version.cache_clear()
        return path

    return put


def cuda_problem(*gpus):
    native.problem.cache_clear()
    try:
        return native.problem('cuda', gpus)
    finally:
        native.problem.cache_clear()


def test_the_first_nvcc_that_is_new_enough_is_taken(nvcc, monkeypatch):
    assert native.compiler('cuda') is None
    on_path, of_path, of_home = nvcc('on path', '13.0'), nvcc('of path', '12.0'), nvcc('of home', '12.4')
    monkeypatch.setenv('PATH', f'{on_path.parent}:/usr/bin:/bin')
    assert native.compiler('cuda') == [str(on_path)]
    monkeypatch.setenv('CUDA_PATH', str(of_path.parents[1]))
    assert native.compiler('cuda') == [str(of_path)]
    monkeypatch.setenv('CUDA_HOME', str(of_home.parents[1]))
    assert native.compiler('cuda') == [str(of_home)]
    nvcc('of home', '11.8')
    assert native.compiler('cuda') == [str(of_path)]


def test_an_nvcc_that_is_too_old_is_reported(nvcc, monkeypatch):
    old = nvcc('old', '11.8')
    monkeypatch.setenv('CUDA_HOME', str(old.parents[1]))
    assert cuda_problem(90) == (f'the CUDA compiler nvcc, 12.0 or later, was not found ({old} is 11.8); set CUDA_HOME')


def test_a_better_nvcc_is_tried_after_a_failure(nvcc, tmp_path, monkeypatch):
    path = nvcc('cuda', '12.0', 'echo "attention.cuh(3): error: no such type" >&2; exit 1')
    monkeypatch.setenv('CUDA_HOME', str(path.parents[1]))
    for _ in range(2):
        assert 'error: no such type' in cuda_problem(90)
    assert len(runs(tmp_path)) == 1
    nvcc('cuda', '12.1', WRITES)  # in the same place
    assert cuda_problem(90) is None
    assert len(runs(tmp_path)) == 2


def test_at_first_use_the_gpus_of_the_machine_are_compiled_for(nvcc, tmp_path, monkeypatch):
    path = nvcc('cuda', '12.8', WRITES)
    monkeypatch.setenv('CUDA_HOME', str(path.parents[1]))
    assert cuda_problem(90, 120) is None  # this nvcc has never heard of 12.0
    flags = [flag for flag in runs(tmp_path)[0].split() if flag.startswith('-gencode')]
    assert flags == ['-gencode=arch=compute_90,code=sm_90', '-gencode=arch=compute_90,code=compute_90']
    assert native.find('cuda', (90, 120)) is not None
    assert native.find('cuda', (80,)) is None
    native.build(tmp_path / 'cache' / 'clit_basicsr', 'cuda')  # as CLIT_BUILD does: for all, whatever there is
    assert native.find('cuda', (80,)) is not None
    assert runs(tmp_path)[1].count('-gencode') == 2


def test_a_build_shows_that_it_goes_on(cache, use, monkeypatch, capsys):
    monkeypatch.setattr(native, 'SIGN_OF_LIFE', 0.05)
    use('sleep 0.3; ' + WRITES)
    assert problem() is None
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith('clit_basicsr: building the CPU kernels')
    assert 'clit_basicsr: still building, 0 s' in lines[1:]
