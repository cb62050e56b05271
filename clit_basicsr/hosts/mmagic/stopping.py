"""SIGTERM and Ctrl-C in a training under mmengine: a checkpoint is saved, from which --resume continues."""

from __future__ import annotations

import os
from typing import Any

from mmengine.hooks import CheckpointHook

from clit_basicsr.base import ranks, stopping
from clit_basicsr.base.errors import UserError
from clit_basicsr.hosts.basicsr import experiment


class OrderlyStop(stopping.OrderlyStop):
    """Use as a context around the iterations.

    Args:
        runner: mmengine's.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self.runner = runner

    def save(self) -> str:
        hook = self._hook()
        if hook is None:
            return 'without CheckpointHook nothing is saved'
        meta = {'epoch': self.runner.epoch, 'iter': self.iteration}
        hook._save_checkpoint_with_step(self.runner, self.iteration, meta=meta)
        return 'the first process saves the checkpoint' if ranks.place()[0] else self.last_saved()

    def last_saved(self) -> str:
        last = getattr(self._hook(), 'last_ckpt', None) or (self.runner._load_from if self.runner._resume else None)
        if not last:
            return 'no checkpoint has been saved yet'
        return f'the last checkpoint is {last}; resume with the same command and --resume'

    def _hook(self) -> CheckpointHook | None:
        return next((hook for hook in self.runner.hooks if isinstance(hook, CheckpointHook)), None)


def lock(work_dir: str) -> None:
    """Locks the folder of a training until the process ends.

    Raises:
        UserError: another training holds it.
    """
    try:
        experiment.lock(os.path.abspath(work_dir))
    except UserError as error:
        raise UserError(str(error).replace('another name', 'another --work-dir')) from error
