"""Keeps C libraries from writing to the terminal: libpng, libjpeg and libtiff print about damaged files."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2


def is_alone() -> bool:
    """Whether :func:`silenced` can swallow no other thread's message: in a data loader's worker, or a single thread."""
    return multiprocessing.parent_process() is not None or threading.active_count() == 1


@contextmanager
def silenced() -> Iterator[None]:
    """File descriptor 2 leads nowhere meanwhile, for the whole process; keep it short."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        own = os.dup(2)
    except OSError:  # closed: there is nothing to silence
        own = -1
    try:
        if own >= 0:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield
    finally:
        if own >= 0:
            os.dup2(own, 2)
            os.close(own)
        cv2.utils.logging.setLogLevel(level)
