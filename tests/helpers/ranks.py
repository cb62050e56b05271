"""Several ranks of a program on the CPU, forked from a process that has imported everything: that saves seconds."""

import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path


def in_new_process(module, folder, timeout=240):
    """Calls ``scenarios(folder)`` of a test module in a process that has computed nothing, so that it may fork."""
    program = f'import sys, pathlib, clit_basicsr, {module} as tests; tests.scenarios(pathlib.Path(sys.argv[1]))'
    command = [sys.executable, '-c', program, str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]


def fork(work, count, log, timeout=60):
    """Runs ``work(rank)`` in each of ``count`` ranks; stdout and stderr of rank r go to the file ``log`` + r.

    Returns:
        list[int]: the exit codes; minus the signal's number for a rank that one has ended.
    """
    port = free_port()
    ranks = []
    for rank in range(count):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            run_rank(work, rank, count, port, f'{log}{rank}')
    codes = [None] * count
    end = time.monotonic() + timeout
    while None in codes and time.monotonic() < end:
        for rank, pid in enumerate(ranks):
            if codes[rank] is None and (found := os.waitpid(pid, os.WNOHANG)) != (0, 0):
                codes[rank] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.02)
    for rank, pid in enumerate(ranks):
        if codes[rank] is None:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    return codes


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def run_rank(work, rank, count, port, log):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 70
    try:
        code = work(rank) or 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
