"""What has changed in the options since a training state was saved: what may not, ends; the rest is logged."""

from __future__ import annotations

from typing import Any

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.option_types import plain
from clit_basicsr.data.schedule import TrainingPlan

# Kept in a training state: all that the user writes. Paths, names and logging may change without a word.
KEPT = ('model_type', 'scale', 'manual_seed', 'world_size', 'datasets', 'train', 'val', 'network_')
FIXED = ('manual_seed', 'world_size', 'datasets:train:batch_size_per_gpu', 'network_')
# Of a stage, from its first iteration on: what its weights began with, and which of them its optimizer knows.
FIXED_ONCE_BEGUN = ('freeze', 'init')
# What comes with the weights of a pretrained encoder, and what is filled in.
FILLED_IN = ('img_range', 'rgb_mean', 'feat_scale', 'phase', 'stages', 'start_stage', 'total_iter', 'manual_seed')


def kept_options(opt: dict) -> dict:
    """The part of the options that a training state keeps, in plain values."""
    return {key: plain(value, repr) for key, value in opt.items() if key.startswith(KEPT)}


def flat(value: Any, where: str = '') -> dict[str, Any]:
    """Values by their place: 'train:stages:0:lr'."""
    if isinstance(value, dict):
        items = [(key, item) for key, item in value.items() if not (where and key in FILLED_IN and key != 'stages')]
        items = [(key, item) for key, item in items if not (key == 'stages' and where != 'train')]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {where: value}
    return {place: one for key, item in items for place, one in flat(item, f'{where}:{key}' if where else key).items()}


def check_changes(saved: dict, opt: dict, iteration: int) -> list[str]:
    """A line for every option that differs from those of a training state.

    Args:
        saved: from :func:`kept_options`.
        iteration: that the state was saved at.

    Raises:
        UserError: network, batch, seed or a finished stage differ, or the state lies beyond the end.
    """
    before, now = flat(saved), flat(kept_options(opt))
    changed = [place for place in dict.fromkeys([*before, *now]) if before.get(place) != now.get(place)]
    finished = finished_stages(saved, opt, iteration)
    for place in changed:
        parts = place.split(':')
        ended = parts[:2] == ['train', 'stages'] and len(parts) > 2 and int(parts[2]) < finished
        begun = place in [f'train:stages:{finished}:{key}' for key in FIXED_ONCE_BEGUN]
        if place.startswith(FIXED) or ended or begun:
            reason = 'that stage is finished' if ended else 'the state was saved with the other'
            raise UserError(
                f'{place}: {shown(now, place)}, but {shown(before, place)} when the training state was saved; '
                f'{reason}; restore it to resume, or start anew (under another name, or without --auto_resume)'
            )
    total = opt['train'].get('total_iter')
    if total is not None and iteration > total:
        raise UserError(f'the training state is of iteration {iteration}, beyond the last one, {int(total)}')
    return [f'{place}: {shown(now, place)}, before {shown(before, place)}' for place in changed]


def shown(options: dict, place: str) -> str:
    return repr(options[place]) if place in options else 'left out'


def finished_stages(saved: dict, opt: dict, iteration: int) -> int:
    """How many stages of the list are finished; UserError if old and new options do not agree on it."""
    numbers = []
    for train in (saved.get('train') or {}, opt['train']):
        if not train.get('stages'):
            numbers.append(0)
            continue
        plan = TrainingPlan.parse(train)
        numbers.append(plan.start_stage - 1 + plan.schedule.stage_of(iteration - 1)[0])
    if bool((saved.get('train') or {}).get('stages')) != bool(opt['train'].get('stages')):
        raise UserError('train:stages: the training state was saved with stages, or these options have them; not both')
    if numbers[0] != numbers[1]:
        raise UserError(
            f'train:stages: iteration {iteration} of the training state is in stage {numbers[0] + 1} of its own '
            f'options, but in stage {numbers[1] + 1} of these; a finished stage may not change'
        )
    return numbers[0]
