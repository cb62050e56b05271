"""Ending a training under mmengine in an orderly way: SIGTERM saves a checkpoint, from which --resume continues."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from mmengine.hooks import CheckpointHook

from clit_basicsr.base.errors import Terminated, UserError
from clit_basicsr.hosts.basicsr import experiment


class OrderlyStop:
    """Saves a checkpoint after the iteration in which SIGTERM arrives, or immediately during a validation.

    Use as a context around the iterations.

    Args:
        loop: the training's; ``iter`` is the number of iterations that are done.
    """

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.requested = self.validating = False

    def __enter__(self) -> OrderlyStop:
        self.main, self.process = threading.current_thread() is threading.main_thread(), os.getpid()
        if self.main:
            self.before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before)

    def after_iteration(self) -> None:
        """Raises Terminated, once a checkpoint is saved, if SIGTERM has arrived."""
        if self.requested:
            self._save_and_end()

    def validate(self) -> None:
        """Runs the loop's validation."""
        self.validating = True
        try:
            self.loop.runner.val_loop.run()
        finally:
            self.validating = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker of a data loader that has just been forked
            os._exit(128 + number)
        if self.requested or not self.loop.iter:
            raise Terminated('terminated; nothing has been saved since the last checkpoint')
        self.requested = True
        if self.validating:
            self._save_and_end()

    def _save_and_end(self) -> None:
        runner, done = self.loop.runner, self.loop.iter
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        if hook is None:
            raise Terminated(f'terminated after iteration {done:,}; without CheckpointHook nothing is saved')
        hook._save_checkpoint_with_step(runner, done, meta={'epoch': runner.epoch, 'iter': done})
        raise Terminated(
            f'terminated after iteration {done:,}; the last checkpoint is {hook.last_ckpt}; resume with the same '
            'command and --resume'
        )


def lock(work_dir: str) -> None:
    """Locks the folder of a training until the process ends.

    Raises:
        UserError: another training holds it.
    """
    try:
        experiment.lock(os.path.abspath(work_dir))
    except UserError as error:
        raise UserError(str(error).replace('another name', 'another --work-dir')) from error
