"""The emulation that the CUDA kernels are tested in notices what a GPU would punish."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / 'cuda_emulation'


@pytest.mark.skipif(shutil.which('g++') is None, reason='the emulation of the CUDA kernels needs g++')
def test_faults_are_noticed(tmp_path):
    """A barrier left out, threads that do not all arrive, writing beyond the shared memory, crooked addresses."""
    program = tmp_path / 'faulty'
    command = ['g++', '-std=c++20', '-O1', '-U_FORTIFY_SOURCE', '-fsanitize=alignment', '-static-libubsan']
    command += [str(HERE / 'faulty.cpp'), '-o', str(program)]
    subprocess.run(command, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count('some threads wait where others never arrive') == 2
    assert 'runtime error: member access within misaligned address' in done.stderr
