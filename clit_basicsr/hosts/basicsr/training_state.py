"""Whether a training state is one: what the host's ``resume_training`` reads, before it reads it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from clit_basicsr.base.errors import UserError


def check_training_state(state: dict, path: Path) -> None:
    """Raises UserError unless the content of a file has the parts of a training state, each of its type, and finite."""
    for key in ('iter', 'epoch'):
        if not isinstance(state.get(key), int) or isinstance(state[key], bool) or state[key] < 0:
            raise not_a_state(path, key)
    for key in ('optimizers', 'schedulers'):
        if not isinstance(state.get(key), list) or not all(isinstance(one, dict) for one in state[key]):
            raise not_a_state(path, key)
    for optimizer in state['optimizers']:
        check_optimizer(optimizer, path)


def check_optimizer(optimizer: dict, path: Path) -> None:
    """Raises UserError unless it is what `torch.optim.Optimizer.state_dict` returns."""
    groups, state = optimizer.get('param_groups'), optimizer.get('state')
    if not isinstance(state, dict) or not all(isinstance(values, dict) for values in state.values()):
        raise not_a_state(path, 'state of an optimizer')
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get('params'), list) for group in groups
    ):
        raise not_a_state(path, 'param_groups of an optimizer')
    for number, values in state.items():
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        if len({value.shape for value in tensors.values() if value.dim()}) > 1:
            raise not_a_state(path, f'state of parameter {number}')
        for key, value in tensors.items():
            if not value.isfinite().all():
                raise UserError(
                    f'{path} is not finite: {key} of parameter {number} holds NaN or infinity; the training diverged, '
                    'so resume from an earlier state.'
                )


def not_a_state(path: Path, part: str) -> UserError:
    return UserError(f'{path} is not a training state of BasicSR, or it is damaged: its {part} is missing or wrong.')
