"""SIGTERM and Ctrl-C in a training under BasicSR: a training state is saved, from which --auto_resume continues."""

from __future__ import annotations

from typing import Any

from clit_basicsr.base import ranks, stopping

RESUME = 'resume with the same command and --auto_resume'


class OrderlyStop(stopping.OrderlyStop):
    """Use as a context around the host's ``train_pipeline``; :meth:`watch` takes its model."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = None

    def watch(self, model: Any) -> None:
        """Takes over the model's ``optimize_parameters``, after which a state may be saved, and ``validation``."""
        optimize, validation = model.optimize_parameters, model.validation

        def optimize_parameters(current_iter: int) -> None:
            optimize(current_iter)
            self.after_iteration(current_iter)

        def validate(*args: Any, **kwargs: Any) -> None:
            with self.validation():
                validation(*args, **kwargs)

        self.model, model.optimize_parameters, model.validation = model, optimize_parameters, validate

    def save(self) -> str:
        epoch = (self.iteration - 1) // self.model.opt['iters_per_epoch']
        self.model.save(epoch, self.iteration)
        return 'the first process saves the state' if ranks.place()[0] else self.last_saved()

    def last_saved(self) -> str:
        saved = None
        if self.model:
            saved = getattr(self.model, 'last_state', None) or self.model.opt['path'].get('resume_state')
        return f'the last state is {saved}; {RESUME}' if saved else 'no state has been saved yet'
