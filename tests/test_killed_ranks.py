"""Ranks and their launcher killed with SIGKILL: nothing trains on, and a resumed run ends in the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import basicsr.train  # noqa: F401  all that the ranks need is imported before they fork
import pytest
import torch
from helpers.ranks import fork, free_port, in_new_process, run_rank
from helpers.training import changed, prepare, weights

from clit_basicsr import cli
from clit_basicsr.cli import orphans

TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
ARGUMENTS = ('train', '-opt', 'options.yml', '--launcher', 'pytorch', '--auto_resume')
MARK = 'CLIT_TEST_MARK'  # in the environment of every process of a run, so that all can be found

# One rank dies in the middle of iteration 7, in stage 2, one iteration after a checkpoint.
KILLED = """
import os, signal, sys
from clit_basicsr.cli import main
if __name__ == '__main__':
    from clit_basicsr.models import ImplicitSRModel
    step = ImplicitSRModel.optimize_parameters
    def optimize_parameters(self, current_iter):
        if current_iter == 7 and os.environ['RANK'] == '1':
            open('died', 'w').close()
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, current_iter)
    ImplicitSRModel.optimize_parameters = optimize_parameters
    sys.exit(main())
"""


def options():
    # one pass, as starting a loader's workers takes seconds, and no validation before the last
    return changed(val__val_freq=1000, val__save_img=False, datasets__train__dataset_enlarge_ratio=30)


def marked(mark):
    """The processes that run with a mark, without zombies."""
    found = []
    for process in Path('/proc').glob('[0-9]*'):
        try:
            if f'{MARK}={mark}'.encode() in (process / 'environ').read_bytes().split(b'\0'):
                found.append(int(process.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def wait_for(condition, seconds):
    """Seconds until a condition was met."""
    begin = time.monotonic()
    while not condition() and time.monotonic() < begin + seconds:
        time.sleep(0.05)
    return time.monotonic() - begin


def train(folder, *forced):
    def work(rank):
        os.chdir(folder)
        return cli.main([*ARGUMENTS, '--force_yml', 'datasets:train:num_worker_per_gpu=0', *forced])

    return work


def kill_the_launcher(folder):
    """Starts two ranks that would train for hours, by a process that is killed; seconds until both have ended."""
    port, work = free_port(), train(folder, 'train:stages:0:iters=1000000')
    launcher = os.fork()
    if launcher == 0:  # does what torchrun does
        os.environ['TORCHELASTIC_RUN_ID'] = 'test'
        for rank in (0, 1):
            if os.fork() == 0:
                (folder / f'pid{rank}').write_text(str(os.getpid()))
                orphans.LAUNCHER = os.getppid()
                run_rank(work, rank, 2, port, f'{folder}/log{rank}')
        signal.pause()
    log = folder / 'log0'
    wait_for(lambda: log.exists() and ('iter:      10' in log.read_text() or 'rror' in log.read_text()), 60)
    ranks = [int((folder / f'pid{rank}').read_text()) for rank in (0, 1)]
    before = [running(pid) for pid in ranks]
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    seconds = wait_for(lambda: not any(map(running, ranks)), 15)
    for pid in filter(running, ranks):
        os.kill(pid, signal.SIGKILL)
    return before, seconds


def running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


def scenarios(folder):
    torch.set_num_threads(1)
    found = {
        'whole': fork(train(prepare(folder / 'whole', options(), count=5)), 2, folder / 'log-whole'),
        'resumed': fork(train(folder / 'killed'), 2, folder / 'log-resumed'),
        'orphans': kill_the_launcher(prepare(folder / 'orphans', options(), count=5)),
    }
    (folder / 'found.json').write_text(json.dumps(found))


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A run of torchrun of which one rank was killed, how long the rest of it took to end, and the scenarios."""
    folder = tmp_path_factory.mktemp('killed')
    killed = prepare(folder / 'killed', options(), count=5)
    (killed / 'killed.py').write_text(KILLED)
    environment = {**os.environ, MARK: str(folder), 'OMP_NUM_THREADS': '1'}  # as the scenarios have
    with open(killed / 'log', 'w') as file:
        command = [sys.executable, *TORCHRUN, 'killed.py', *ARGUMENTS]
        launched = subprocess.Popen(command, cwd=killed, env=environment, stdout=file, stderr=file)
        wait_for(lambda: launched.poll() is not None or (killed / 'died').exists(), 90)
        seconds = wait_for(lambda: launched.poll() is not None and not marked(folder), 30)
    assert (killed / 'died').exists(), (killed / 'log').read_text()[-3000:]
    in_new_process('test_killed_ranks', folder)
    return folder, {'code': launched.wait(), 'seconds': seconds, **json.loads((folder / 'found.json').read_text())}


@pytest.mark.slow
def test_all_ends_when_one_rank_is_killed(done):
    assert done[1]['code'] != 0
    assert done[1]['seconds'] < 10


@pytest.mark.slow
def test_a_run_with_a_killed_rank_resumes_to_the_same_weights(done):
    folder, found = done
    assert (found['whole'], found['resumed']) == ([0, 0], [0, 0]), (folder / 'log-resumed0').read_text()[-3000:]
    assert 'Resumed in stage 2 of 3' in (folder / 'log-resumed0').read_text()
    expected, resumed = weights(folder / 'whole'), weights(folder / 'killed')
    for key in ('params', 'params_ema'):
        for name, value in expected[key].items():
            assert torch.equal(resumed[key][name], value), name


@pytest.mark.slow
def test_the_ranks_end_when_their_launcher_is_killed(done):
    folder, found = done
    before, seconds = found['orphans']
    assert before == [True, True], (folder / 'orphans/log0').read_text()[-3000:]
    assert seconds < 10
    # of one rank at least: the other may end a moment earlier, by the error of its collective
    assert any('torchrun has ended' in (folder / f'orphans/log{rank}').read_text() for rank in (0, 1))
