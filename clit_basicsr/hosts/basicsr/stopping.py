"""SIGTERM and Ctrl-C in a training under BasicSR: a training state is saved, from which --auto_resume continues."""

from __future__ import annotations

import logging
from typing import Any

from clit_basicsr.base import ranks, stopping
from clit_basicsr.base.errors import UserError

RESUME = 'resume with the same command and --auto_resume'


class OrderlyStop(stopping.OrderlyStop):
    """Use as a context around the host's ``train_pipeline``; :meth:`watch` takes its model."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = None
        self.saved = 0  # the last iteration of which there is a state
        self.busy = False  # within an iteration, or writing

    def watch(self, model: Any) -> None:
        """Takes over the model's ``optimize_parameters``, after which a state may be saved, ``validation``, and
        ``save``, with which the host leaves no state of the last iteration.
        """
        optimize, validation, save = model.optimize_parameters, model.validation, model.save

        def optimize_parameters(current_iter: int) -> None:
            self.busy = True
            optimize(current_iter)
            self.busy = False
            self.after_iteration(current_iter)

        def save_all(epoch: int, current_iter: int, **kwargs: Any) -> None:
            if current_iter == -1 and self.iteration > self.saved:  # the end of the training
                self.save()
            self.busy = True
            save(epoch, current_iter, **kwargs)
            self.busy, self.saved = False, max(self.saved, current_iter)

        def validate(*args: Any, **kwargs: Any) -> None:
            with self.validation():
                validation(*args, **kwargs)

        self.model, model.optimize_parameters, model.validation = model, optimize_parameters, validate
        model.save = save_all

    def __exit__(self, *exception: object) -> None:
        """After an error between two iterations, such as a damaged image, a state is saved too."""
        super().__exit__(*exception)
        first, between = not ranks.place()[0], not self.busy and self.iteration > self.saved
        if first and between and any(isinstance(one, UserError) for one in exception):
            try:
                self.save()
            except UserError:
                return  # the error that ended the training is the one to report
            logging.getLogger('basicsr').info(f'A state of iteration {self.iteration:,} is saved; {RESUME}.')

    def save(self) -> str:
        epoch = (self.iteration - 1) // self.model.opt['iters_per_epoch']
        self.model.save(epoch, self.iteration)
        return 'the first process saves the state' if ranks.place()[0] else self.last_saved()

    def last_saved(self) -> str:
        saved = None
        if self.model:
            saved = getattr(self.model, 'last_state', None) or self.model.opt['path'].get('resume_state')
        return f'the last state is {saved}; {RESUME}' if saved else 'no state has been saved yet'
