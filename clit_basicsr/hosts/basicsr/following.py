"""A resumed training follows its option file: learning rate, milestones and the optimizer's options."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from clit_basicsr.base.errors import UserError

# Of a scheduler's state: where it stands, not what it was made with.
POSITION = ('last_epoch', '_step_count', '_last_lr', '_get_lr_called_within_step', '_is_initial')


def following(resume_training: Callable) -> Callable:
    """The host's ``BaseModel.resume_training``, which takes all of these from the state instead."""

    @functools.wraps(resume_training)
    def wrapper(self: Any, resume_state: dict) -> None:
        options = [own_options(optimizer) for optimizer in self.optimizers]
        schedules = [copy.copy(scheduler.state_dict()) for scheduler in self.schedulers]
        load_state(functools.partial(resume_training, self), resume_state)
        for optimizer, groups in zip(self.optimizers, options, strict=True):
            follow_options(optimizer, groups)
        for scheduler, schedule in zip(self.schedulers, schedules, strict=True):
            follow_schedule(scheduler, schedule)

    return wrapper


def load_state(resume_training: Callable[[dict], None], state: dict) -> None:
    """The host's ``resume_training``.

    Raises:
        UserError: the state is that of other optimizers or schedulers.
    """
    try:
        resume_training(state)
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        text = ' '.join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f'the training state of iteration {state["iter"]} does not fit these options ({text}); resume with those '
            'it was saved with'
        ) from error


def own_options(optimizer: torch.optim.Optimizer) -> list[dict]:
    """The options of each group of parameters."""
    return [{key: value for key, value in group.items() if key != 'params'} for group in optimizer.param_groups]


def follow_options(optimizer: torch.optim.Optimizer, groups: list[dict]) -> None:
    """Gives an optimizer that has loaded a state its own options back, all but the current learning rate."""
    for group, options in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in options.items() if key != 'lr'})


def follow_schedule(scheduler: Any, own: dict) -> None:
    """Gives a scheduler of the host that has loaded a state its own milestones back, if they are others.

    Args:
        own: its ``state_dict()`` before it loaded the state.
    """
    options = {key: value for key, value in own.items() if key not in POSITION}
    if all(scheduler.state_dict().get(key) == value for key, value in options.items()):
        return
    scheduler.__dict__.update(options)
    now = scheduler.last_epoch
    groups = scheduler.optimizer.param_groups
    for group, base in zip(groups, scheduler.base_lrs, strict=True):
        group['lr'] = group['initial_lr'] = base
    # The host's rates depend on the one before; they change at these iterations alone.
    changes = {*getattr(scheduler, 'milestones', ()), *getattr(scheduler, 'restarts', ()), now}
    for iteration in sorted(one for one in changes if 0 <= one <= now):
        scheduler.last_epoch = iteration
        for group, lr in zip(groups, scheduler.get_lr(), strict=True):
            group['lr'] = lr
    scheduler._last_lr = [group['lr'] for group in groups]
