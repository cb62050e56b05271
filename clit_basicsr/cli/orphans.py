"""Ranks whose launcher was killed: they end, instead of training on (or waiting) with nobody to stop them."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress

# Noted as this file is imported, first of all: the launcher may be killed while torch is being imported.
LAUNCHER = os.getppid()
INTERVAL = 1.0  # seconds between two looks


def end_with_launcher() -> None:
    """In a rank of torchrun: ends this process with 1 within two seconds of torchrun's end.

    By hand, as PR_SET_PDEATHSIG exists on Linux alone, and is about the thread that started the process. The main
    thread may be in a collective that never ends, so the process ends immediately; files are written so that this does
    no harm, and workers of data loaders end within five seconds of their process.
    """
    if 'TORCHELASTIC_RUN_ID' in os.environ:  # set by torchrun; any other parent, a shell for one, may end before us
        threading.Thread(target=_watch, args=(LAUNCHER,), name='launcher', daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(INTERVAL)
    with suppress(OSError):  # the pipe may have gone with the launcher
        print('basicsr: torchrun has ended, so this rank ends too', file=sys.stderr, flush=True)
    os._exit(1)
