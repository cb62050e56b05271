"""The folder of a run: one writer at a time, no left-overs of a kill, and one line when the disk is full."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import socket
import sys
from collections.abc import Callable
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows, which has no such locks
    fcntl = None  # type: ignore[assignment]

from clit_basicsr.base.errors import UserError

# The names that base.files.temporary_name gives.
TEMPORARY = re.compile(r'\..+\.\d+-[0-9a-f]{8}\.tmp(\.\w+)?')
WRONG_WARNING = 'Multiple validation datasets are *only* supported by SRModel.'  # every model here is one

_locks: dict[str, TextIO] = {}  # held until the process ends


def take(opt: dict) -> None:
    """Makes this process the only one that writes into the run's folder, and removes temporary files in it.

    Args:
        opt: with the folders filled in, on rank 0.

    Raises:
        UserError: another process trains or tests under the same name.
    """
    root = opt['path']['experiments_root' if opt['is_train'] else 'results_root']
    lock(root)
    for folder, _, files in os.walk(root):
        for name in files:
            if TEMPORARY.fullmatch(name):
                os.remove(os.path.join(folder, name))


def lock(root: str) -> None:
    """Locks ``.<name>.lock`` next to the folder; the system drops the lock when the process ends, however it does."""
    if root in _locks:
        return
    parent, name = os.path.split(root)
    try:
        os.makedirs(parent, exist_ok=True)
        file = open(os.path.join(parent, f'.{name}.lock'), 'a+')  # noqa: SIM115  open as long as the process lives
    except OSError as error:
        raise UserError(f'{parent} cannot be written ({error.strerror}); choose another working directory') from error
    try:
        if sys.platform == 'win32':
            return
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by the workers of data loaders
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        file.seek(0)
        owner = file.read().strip() or 'another process'
        raise UserError(f'{root} is being written by {owner}; wait for it, or choose another name') from error
    file.seek(0)
    file.truncate()
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    _locks[root] = file


def quiet(get_root_logger: Callable) -> Callable:
    """The host's ``get_root_logger``: a log that cannot be written is reported once, not by a traceback per line."""

    @functools.wraps(get_root_logger)
    def wrapper(*args: Any, **kwargs: Any) -> logging.Logger:
        logger = get_root_logger(*args, **kwargs)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = functools.partial(report_once, handler)  # type: ignore[method-assign]
        if without_wrong_warning not in logger.filters:
            logger.addFilter(without_wrong_warning)
        return logger

    return wrapper


def without_wrong_warning(record: logging.LogRecord) -> bool:
    return record.msg != WRONG_WARNING


def report_once(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """In place of ``Handler.handleError``."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
    elif not getattr(handler, 'reported', False):
        handler.reported = True  # type: ignore[attr-defined]
        print(f'basicsr: the log {handler.baseFilename} cannot be written: {error.strerror}', file=sys.stderr)


def reporting_files(function: Callable) -> Callable:
    """``make_exp_dirs``, ``copy_opt_file``: what cannot be written is one line."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> None:
        try:
            function(*args)
        except OSError as error:
            raise UserError(f'{error.filename or "the experiment"} cannot be written ({error.strerror})') from error

    return wrapper


def copy_unless_same(copy_opt_file: Callable) -> Callable:
    """``copy_opt_file``: a run that is resumed from the option file in its own folder leaves it as it is."""

    @functools.wraps(copy_opt_file)
    def wrapper(opt_file: str, experiments_root: str) -> None:
        target = os.path.join(experiments_root, os.path.basename(opt_file))
        if not (os.path.exists(target) and os.path.samefile(opt_file, target)):
            copy_opt_file(opt_file, experiments_root)

    return wrapper
