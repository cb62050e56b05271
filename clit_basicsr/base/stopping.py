"""Ending in an orderly way: in a training, SIGTERM (a batch system's) and Ctrl-C save a state first."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from clit_basicsr.base.errors import Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds in which signals of one kind count as one: torchrun and batch systems send SIGTERM to every process of a run,
# and torchrun once more to each of its own.
ECHO = 2.0


class OrderlyStop:
    """Saves a state after the iteration in which the first signal arrives, or immediately during a validation.

    A second signal of the same kind, more than ``ECHO`` seconds later, ends the training without saving. Use as a
    context around the iterations.

    A subclass has :meth:`save` and :meth:`last_saved`, and calls :meth:`after_iteration` and :meth:`validation`.

    Attributes:
        iteration: number of iterations that are done; before the first, there is nothing to save.
    """

    current: OrderlyStop | None = None

    def __init__(self) -> None:
        self.iteration = 0
        self.validating = self.starting = False
        self.received: dict[int, float] = {}  # signal -> when it came first
        self.ends_now = False

    def save(self) -> str:
        """Saves a state; returns what to say after 'terminated after iteration 7; '."""
        raise NotImplementedError

    def last_saved(self) -> str:
        """What to say after 'terminated; ', where nothing is saved now."""
        raise NotImplementedError

    def agree(self, requested: bool) -> bool:
        """Whether a signal has arrived at any process of the run; all of them call after every iteration."""
        from clit_basicsr.base import ranks  # which imports torch

        return ranks.any_rank(requested, self.iteration)

    def __enter__(self) -> OrderlyStop:
        self.process = os.getpid()
        self.before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background job ignores Ctrl-C
                    self.before[number] = signal.signal(number, self._handle)
        OrderlyStop.current = self
        return self

    def __exit__(self, *_: object) -> None:
        OrderlyStop.current = None
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def after_iteration(self, iteration: int) -> None:
        """Ends the training, once a state is saved, if a signal has arrived.

        Raises:
            Terminated, KeyboardInterrupt: after SIGTERM; after Ctrl-C.
        """
        self.iteration = iteration
        if self.agree(bool(self.received)):
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
        if os.getpid() != self.process:  # a worker of a data loader that has just been forked: see outlive_signals
            return
        now = time.monotonic()
        first = self.received.setdefault(number, now)
        if now != first and now - first < ECHO:
            return
        self.ends_now = now != first or not self.iteration
        if not self.starting:
            self._answer()

    def _answer(self) -> None:
        """What a signal leads to, apart from the end after the iteration."""
        if self.ends_now:
            self._end(self.last_saved())
        if self.validating and len(self.received) == 1:
            self._save_and_end()
        if signal.SIGINT in self.received and sys.stderr.isatty():  # not print(): a handler may interrupt one
            os.write(2, b'\nbasicsr: saving a state after this iteration; Ctrl-C again in 2 s ends without\n')

    def _save_and_end(self) -> NoReturn:
        saved = self.save()
        ending = 'stopped' if self._is_interrupt() else 'terminated'
        self._raise(f'{ending} after iteration {self.iteration:,}; {saved}')

    def _end(self, message: str) -> NoReturn:
        self._raise(message if self._is_interrupt() else f'terminated; {message}')

    def _raise(self, message: str) -> NoReturn:
        raise (KeyboardInterrupt if self._is_interrupt() else Terminated)(message)

    def _is_interrupt(self) -> bool:
        return next(iter(self.received), signal.SIGTERM) == signal.SIGINT


@contextmanager
def starting_workers() -> Iterator[None]:
    """For the start of a data loader's workers: a signal waits, in this process and in those that it starts, which
    would die of it before :func:`outlive_signals`, or leave a half-made loader behind.
    """
    stop = OrderlyStop.current
    if stop is None or not stop.before or not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    # The processes inherit the mask; this one needs the flag too, as any of its threads may take the signal.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stop.before)
    stop.starting, before = True, len(stop.received)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        stop.starting = False
    if threading.current_thread() is threading.main_thread() and (len(stop.received) != before or stop.ends_now):
        stop._answer()


def outlive_signals() -> None:
    """For a worker of a data loader: SIGTERM of a batch system and Ctrl-C reach every process of a run, and the
    training still needs its batches until it has saved a state. One more than ``ECHO`` seconds after the first, or the
    first after the training has died, ends the worker.
    """
    parent = os.getppid()
    received: dict[int, float] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getppid() != parent or now - received.setdefault(number, now) >= ECHO:
            os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


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


def ignore_signals_at_exit() -> None:
    """From the beginning of the interpreter's end on; to be called last: what is registered last runs first."""
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in SIGNALS])
