"""Ending in an orderly way: in a training, SIGTERM (a batch system's) and Ctrl-C save a state first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from clit_basicsr.base.errors import Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class OrderlyStop:
    """Saves a state after the iteration in which the first signal arrives, or immediately during a validation.

    A second signal of the same kind ends the training without saving. (The other kind does not: on Ctrl-C, torchrun's
    ranks get SIGINT from the terminal and then SIGTERM from torchrun.) Use as a context around the iterations.

    A subclass has :meth:`save` and :meth:`last_saved`, sets ``iteration``, and calls :meth:`after_iteration` and
    :meth:`validation`.

    Attributes:
        iteration: number of iterations that are done; before the first, there is nothing to save.
    """

    def __init__(self) -> None:
        self.iteration = 0
        self.validating = False
        self.received: list[int] = []

    def save(self) -> str:
        """Saves a state; returns what to say after 'terminated after iteration 7; '."""
        raise NotImplementedError

    def last_saved(self) -> str:
        """What to say after 'terminated; ', where nothing is saved now."""
        raise NotImplementedError

    def __enter__(self) -> OrderlyStop:
        self.process = os.getpid()
        self.before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background job ignores Ctrl-C
                    self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def after_iteration(self, iteration: int) -> None:
        """Ends the training, once a state is saved, if a signal has arrived.

        Raises:
            Terminated, KeyboardInterrupt: after SIGTERM; after Ctrl-C.
        """
        self.iteration = iteration
        if self.received:
            self._save_and_end()

    @contextmanager
    def validation(self) -> Iterator[None]:
        """A context in which a state may be saved at any moment."""
        self.validating = True
        try:
            if self.received:
                self._save_and_end()
            yield
        finally:
            self.validating = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker of a data loader that has just been forked
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return  # the training, which has Ctrl-C too, ends it
        first = number not in self.received
        self.received.append(number)
        if not first or not self.iteration:
            # While workers fork, Python drops what is raised in its own hooks; the next iteration raises it again.
            self._end(self.last_saved())
        if self.validating and len(self.received) == 1:
            self._save_and_end()
        if number == signal.SIGINT and sys.stderr.isatty():  # not print(): a handler may interrupt one
            os.write(2, b'\nbasicsr: saving a state after this iteration; Ctrl-C again ends without\n')

    def _save_and_end(self) -> NoReturn:
        saved = self.save()
        if self.received[0] == signal.SIGINT:
            self._end(f'stopped after iteration {self.iteration:,}; {saved}')
        raise Terminated(f'terminated after iteration {self.iteration:,}; {saved}')

    def _end(self, message: str) -> NoReturn:
        if self.received[0] == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise Terminated(f'terminated; {message}')


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated within the block, so that unfinished files are removed, as on Ctrl-C."""
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            os._exit(128 + number)
        raise Terminated('terminated')

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def outlive_first_signal() -> None:
    """For a worker of a data loader: SIGTERM of a batch system and Ctrl-C reach every process of a run, and the
    training still needs its batches until it has saved a state. A second one, or the first after the training has
    died, ends the worker.
    """
    parent = os.getppid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            os._exit(128 + number)
        signal.signal(number, lambda number, frame: os._exit(128 + number))

    for number in SIGNALS:
        signal.signal(number, handle)
