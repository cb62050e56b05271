"""scripts/gpu_check.sh with stand-ins for python and the sanitizer: what it runs, what it says and how it ends."""

import importlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'scripts' / 'gpu_check.sh'

# An interpreter that notes how it is called; what the variable FAIL or HANG matches fails or does not end.
PYTHON = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
if [ -n "$FAIL" ] && [[ $* == *$FAIL* ]]; then exit 3; fi
if [ -n "$HANG" ] && [[ $* == *$HANG* ]]; then exec sleep 60; fi
[ "$1" = - ] && echo '2026-01-01, A GPU, compute capability 9.0'
[[ $* == *gpu.py* ]] && echo "| ${*: -1} | a row |" >> "$3"
exit 0
"""
# One second is limit enough here.
TIMEOUT = """#!/usr/bin/env bash
shift 3
exec /usr/bin/timeout -k 1 "${LIMIT:-1}" "$@"
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script; what is given becomes variables of its environment."""
    for name, text in {
        'python': PYTHON,
        'compute-sanitizer': PYTHON,
        'timeout': TIMEOUT,
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / 'calls').touch()

    def start(*arguments, **variables):
        environment = {
            **os.environ,
            'PATH': f'{tmp_path}:{os.environ["PATH"]}',
            'PYTHON': str(tmp_path / 'python'),
            'CALLS': str(tmp_path / 'calls'),
            'TMPDIR': str(tmp_path),
            'FAIL': '',
            'HANG': '',
            **variables,
        }
        command = ['bash', SCRIPT, *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)

    return start


def finish(process):
    out, err = process.communicate(timeout=30)
    steps = dict(re.findall(r'^\| ([\w -]+) (?:\| ){9}(.*) \|$', out, re.MULTILINE))
    return process.returncode, steps, out, err


def test_all_steps_pass(start, tmp_path):
    code, steps, out, _ = finish(start())
    assert code == 0
    assert list(steps) == [
        'build',
        'accuracy',
        'tests',
        'time of the networks',
        'time of the kernels',
        'compute-sanitizer memcheck',
        'compute-sanitizer racecheck',
    ]
    assert all(result.startswith('passed, ') for result in steps.values())
    table = out[out.index('2026-01-01, A GPU') :].splitlines()
    assert [line for line in table if 'a row' in line] == [
        f'| {part} | a row |' for part in (table[2].split()[1], 'accuracy', 'networks', 'resources')
    ]
    calls = (tmp_path / 'calls').read_text()
    assert '-m pytest -q -p no:cacheprovider -m cuda tests/test_cuda.py' in calls
    assert '--tool racecheck --kernel-name kns=clit' in calls
    assert not list(tmp_path.glob('tmp.*'))


@pytest.mark.parametrize(
    ('fail', 'step'),
    [
        ('-m pytest', 'tests'),
        (' accuracy', 'accuracy'),
        (' networks', 'time of the networks'),
        ('racecheck', 'racecheck'),
    ],
)
def test_a_step_that_fails_fails_the_run_and_the_others_are_made(start, fail, step):
    code, steps, *_ = finish(start(FAIL=fail))
    assert code == 1
    assert [name for name, result in steps.items() if result.startswith('FAILED')] == [
        name for name in steps if step in name
    ]
    assert sum(result.startswith('passed') for result in steps.values()) == 6


def test_nothing_follows_a_build_that_fails(start):
    code, steps, _, err = finish(start(FAIL='cuda_backend.unavailable'))
    assert code == 1
    assert list(steps) == ['build']
    assert err == 'gpu_check: the kernels cannot be built\n'


def test_a_step_that_hangs_is_ended_and_the_rest_is_made(start):
    code, steps, *_ = finish(start(HANG='-m pytest'))
    assert code == 1
    assert steps['tests'].startswith('DID NOT END within ')
    assert steps['compute-sanitizer racecheck'].startswith('passed')


def test_a_run_that_is_stopped_prints_what_it_has(start, tmp_path):
    process = start(HANG='-m pytest', LIMIT='60')
    while '-m pytest' not in (tmp_path / 'calls').read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, steps, out, _ = finish(process)
    assert code == 143
    assert list(steps) == ['build', 'accuracy', 'gpu_check']
    assert '| accuracy | a row |' in out
    assert not list(tmp_path.glob('tmp.*'))


@pytest.mark.parametrize(
    ('arguments', 'fail', 'message'),
    [
        ((), 'is_available', 'no GPU here: torch finds no CUDA device, so nothing was built, tested or timed'),
        ((), 'import torch, pytest', 'python needs torch and pytest'),
        (('nowhere',), '', 'folder nowhere does not exist'),
        (('no wheels',), '', 'folder no wheels holds no wheels'),
        (('some wheels',), 'pip install', 'some wheels cannot be unpacked'),
    ],
)
def test_what_cannot_begin_is_reported(start, tmp_path, arguments, fail, message):
    (tmp_path / 'no wheels').mkdir()
    (tmp_path / 'some wheels').mkdir()
    (tmp_path / 'some wheels' / 'one-1-py3-none-any.whl').touch()
    code, steps, _, err = finish(start(*arguments, FAIL=fail))
    assert code == 1
    assert not steps
    assert err.startswith('gpu_check: ')
    assert err.endswith(f'{message}\n')


def test_wheels_are_unpacked_for_the_run(start, tmp_path):
    (tmp_path / 'some wheels').mkdir()
    (tmp_path / 'some wheels' / 'one-1-py3-none-any.whl').touch()
    assert finish(start('some wheels'))[0] == 0
    first = (tmp_path / 'calls').read_text().splitlines()[0]
    assert re.search(r'pip install .*--no-index .*--target \S+/site .*/some wheels/one-1-py3-none-any.whl$', first)


def test_the_limits_leave_the_run_under_eight_minutes():
    steps = re.findall(r"^ *(?:\w+=1 )?step ['\"](.*?)['\"] (\d+) ", SCRIPT.read_text(), re.MULTILINE)
    assert len(steps) == 6
    limits = {name: int(seconds) for name, seconds in steps}
    total = sum(limits.values()) + limits['compute-sanitizer $tool']  # two tools
    assert f'add up to {total} s' in SCRIPT.read_text()
    assert total < 480


def test_what_the_script_imports_is_there():
    """The stand-ins run no Python: a name that has moved would only be noticed on a machine with a GPU."""
    found = re.findall(r'from ([\w.]+) import (\w+)', SCRIPT.read_text())
    assert ('clit_basicsr.ops.backends', 'cuda_backend') in found
    for module, name in found:
        assert hasattr(importlib.import_module(module), name), (module, name)
    (checks,) = set(re.findall(r'import (kernel_\w+)', SCRIPT.read_text()))
    assert callable(importlib.import_module(checks).check_small)
