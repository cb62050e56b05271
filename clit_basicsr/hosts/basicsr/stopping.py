"""Ending a training in an orderly way: SIGTERM saves a state (pre-emption), and Ctrl-C says what was saved last."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from clit_basicsr.base.errors import Terminated

RESUME = 'resume with the same command and --auto_resume'


class OrderlyStop:
    """Saves a state after the iteration in which SIGTERM arrives, or at once during a validation.

    Use as a context around the host's ``train_pipeline``; :meth:`watch` takes its model.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.requested = self.validating = self.interrupted = False
        self.iteration = 0

    def __enter__(self) -> OrderlyStop:
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGTERM, self._handle), signal.signal(signal.SIGINT, self._interrupt)
        self.process = os.getpid()
        return self

    def __exit__(self, *_: object) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before[0])
            signal.signal(signal.SIGINT, self.before[1])

    def watch(self, model: Any) -> None:
        """Takes over the model's ``optimize_parameters``, after which a state may be saved, and ``validation``."""
        optimize, validation = model.optimize_parameters, model.validation

        def optimize_parameters(current_iter: int) -> None:
            optimize(current_iter)
            self.iteration = current_iter
            if self.interrupted:
                raise KeyboardInterrupt
            if self.requested:
                self._save_and_end()

        def validate(*args: Any, **kwargs: Any) -> None:
            self.validating = True
            try:
                if self.requested:
                    self._save_and_end()
                validation(*args, **kwargs)
            finally:
                self.validating = False

        self.model, model.optimize_parameters, model.validation = model, optimize_parameters, validate

    def last_saved(self) -> str:
        """What to say after Ctrl-C."""
        saved = None
        if self.model:
            saved = getattr(self.model, 'last_state', None) or self.model.opt['path'].get('resume_state')
        return f'the last state is {saved}; {RESUME}' if saved else 'no state has been saved yet'

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker of a data loader that has just been forked
            os._exit(128 + number)
        if self.requested or not self.iteration:
            raise Terminated('terminated; ' + self.last_saved())
        self.requested = True
        if self.validating:
            self._save_and_end()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # While workers fork, Python drops what is raised in its own hooks; the next iteration raises it again.
        self.interrupted = True
        raise KeyboardInterrupt

    def _save_and_end(self) -> None:
        opt = self.model.opt
        epoch = (self.iteration - 1) // opt['iters_per_epoch']
        self.model.save(epoch, self.iteration)
        raise Terminated(f'terminated after iteration {self.iteration:,}; ' + self.last_saved())


def outlive_first_sigterm() -> None:
    """For a worker of a data loader: a batch system's SIGTERM reaches every process of a run, and the training still
    needs its batches until it has saved a state. A second one, or the first after the training has died, ends it.
    """
    parent = os.getppid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            os._exit(128 + number)
        signal.signal(number, lambda number, frame: os._exit(128 + number))

    signal.signal(signal.SIGTERM, handle)
