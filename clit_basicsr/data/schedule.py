"""Cumulative training's plan: which stage a batch belongs to and which scale factors it uses. Pure Python.

A batch is known by its global number, the training iteration minus 1: the same on every rank, in every worker and after
a resume.
"""

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import cos, isfinite, pi
from typing import Any, Protocol

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest

Alternative = tuple[tuple[float, float], ...]


class Uniform(Protocol):
    """numpy's Generator and Python's random.Random alike."""

    def uniform(self, low: float, high: float, /) -> float: ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of cumulative training (section "Cumulative training" of the paper, eq. (8))."""

    branches: int
    """Branches that exist in this stage."""
    iters: int
    """Training iterations."""
    lr: float
    """Learning rate at the start of the stage."""
    milestones: tuple[int, ...]
    """Iterations of the stage after which the rate is multiplied by gamma."""
    scales: tuple[Alternative, ...]
    """Alternatives between which the batches alternate; each is a range (lo, hi) of scale factors per active branch."""
    gamma: float = 0.5
    warmup_iter: int = -1
    """Iterations of linear warm-up; -1: none."""
    eta_min: float | None = None
    """In place of milestones: the rate falls from lr to this one over the stage, along half a period of a cosine."""
    cosine_from: int = 0
    """Iterations before the cosine begins."""
    warmup_lr: float | None = None
    """Rate that the warm-up begins with, from which it goes straight to lr, in place of the cosine's beginning; None:
    as in the host, the first iterations have a growing share of the rate that they would have without warm-up."""
    lr_period: int = 1
    """Iterations, an epoch for instance, for which the cosine and a warm-up from ``warmup_lr`` keep a rate."""
    freeze: tuple[str, ...] = ()
    """Parts that keep their weights, of PARTS: 'encoder', and 'branches', the earlier ones with what they share with
    the new one (LIT's first convolution and positional bias)."""
    init: str = 'default'
    """How the stage's new branch begins: 'default', as the network is built; 'copy', with the weights of the branch
    before; 'zero', as a copy whose last layer is zero: it then adds nothing, and with ``residual_weight: 1`` the
    network gives what it gave before."""
    pixel_opt: dict[str, Any] | None = None
    """The stage's loss; None: that of ``train``."""
    min_size: int = 0
    """Images with a side of fewer pixels are not used; the smallest of a batch limits its scales."""
    lq_size: int | None = None
    """Side of the stage's LR patches in pixels; None: that of the data set."""

    def learning_rate(self, iteration: int) -> float:
        """The rate of an iteration of the stage, counted from 1; as the host's schedulers have it."""
        done = (iteration - 1) // self.lr_period * self.lr_period
        if self.warmup_lr is not None and done < self.warmup_iter:
            return self.warmup_lr + (self.lr - self.warmup_lr) * done / self.warmup_iter
        if self.eta_min is None:
            lr = self.lr * self.gamma ** sum(iteration > milestone for milestone in self.milestones)
        else:
            way = max(0, done - self.cosine_from) / (self.iters - self.cosine_from)
            lr = self.eta_min + (self.lr - self.eta_min) * (1 + cos(pi * way)) / 2
        host_warms_up = self.warmup_lr is None and self.warmup_iter > 0
        return lr * min(1.0, iteration / self.warmup_iter) if host_warms_up else lr

    def describe(self) -> str:
        """All but the scales, in a few words: 'branches 1 to 2, 500 iterations, learning rate 0.001, ...'."""
        parts = ['branch 1' if self.branches == 1 else f'branches 1 to {self.branches}', f'{self.iters:,} iterations']
        parts.append(f'learning rate {self.lr:g}' + ('' if self.eta_min is None else f' to {self.eta_min:g}'))
        named = {'encoder': 'encoder', 'branches': 'earlier branches'}
        parts += [f'frozen: {" and ".join(named[part] for part in self.freeze)}'] if self.freeze else []
        parts += [f'init: {self.init}'] if self.init != 'default' else []
        parts += [self.pixel_opt['type']] if self.pixel_opt else []
        parts += [f'LR patches of {self.lq_size} pixels'] if self.lq_size else []
        parts += [f'images of at least {self.min_size} pixels a side'] if self.min_size else []
        return ', '.join(parts)


PARTS = ('encoder', 'branches')
INITS = ('default', 'copy', 'zero')
STAGE_KEYS = tuple(field.name for field in dataclasses.fields(Stage))
_REQUIRED = tuple(field.name for field in dataclasses.fields(Stage) if field.default is dataclasses.MISSING)


def parse_stages(stages: Any, start_stage: int = 1) -> tuple[Stage, ...]:
    """Checks the option list ``train.stages`` and makes Stages of it.

    Args:
        stages: list of dicts with the keys of :class:`Stage`; those with a default may be left out, and with
            eta_min the milestones.
        start_stage: number of the first stage to train, from 1; the stages before it are checked and dropped.

    Raises:
        UserError: names the stage (from 1) and the key.
    """
    if not isinstance(stages, Sequence) or isinstance(stages, str) or not stages:
        raise UserError(f'stages: must be a list of at least one stage, got {stages!r}.')
    if not _is_int(start_stage) or not 1 <= start_stage <= len(stages):
        raise UserError(f'start_stage: must be between 1 and {len(stages)}, the number of stages, got {start_stage!r}.')
    parsed = [_parse_stage(stage, f'stage {number}') for number, stage in enumerate(stages, 1)]
    for number, (before, after) in enumerate(pairwise(parsed), 2):
        if after.branches < before.branches:
            raise UserError(
                f'stage {number}: branches: {after.branches} is fewer than the {before.branches} of the stage before; '
                'a stage may only keep or add branches.'
            )
    for number, stage in enumerate(parsed, 1):
        _check_new_branches(stage, parsed[number - 2].branches if number > 1 else 0, f'stage {number}')
    return tuple(parsed[start_stage - 1 :])


def parse_scales(scales: Any, branches: int | None = None, where: str = 'scales') -> tuple[Alternative, ...]:
    """Checks a list of alternatives ``[[[lo, hi], ...], ...]``, each of 1 to ``branches`` (None: any number of) ranges.

    Raises:
        UserError: starts with ``where``.
    """
    if not isinstance(scales, Sequence) or isinstance(scales, str) or not scales:
        raise UserError(
            f'{where}: must be a list of alternatives such as [[[1, 4]], [[1, 4], [1, 4]]], got {scales!r}.'
        )
    alternatives = []
    for number, ranges in enumerate(scales, 1):
        if not isinstance(ranges, Sequence) or isinstance(ranges, str) or not ranges:
            raise UserError(f'{where}: alternative {number} must be a list of ranges such as [[1, 4]], got {ranges!r}.')
        alternatives.append(tuple(_parse_range(pair, f'{where}: alternative {number}') for pair in ranges))
        if branches is not None and len(ranges) > branches:
            raise UserError(
                f'{where}: alternative {number} has {len(ranges)} ranges, but the stage has {branches} '
                f'branch{"es" if branches > 1 else ""}; give one range per active branch.'
            )
    return tuple(alternatives)


def clip_scales(scales: Sequence[float], lq_size: int, smallest_side: int) -> tuple[float, ...]:
    """Reduces factors until an HR crop of ``lq_size`` times their product fits: the first one first, none below 1.

    Args:
        scales: factors s_1 ... s_n, each >= 1.
        lq_size: side of the LR patch in pixels.
        smallest_side: smallest side in pixels of the HR images of the batch, at least ``lq_size``.
    """
    clipped = list(scales)
    for i, factor in enumerate(clipped):
        side = float(lq_size)
        for other in clipped:
            side *= other
        if side <= smallest_side:
            break
        clipped[i] = max(1.0, factor * smallest_side / side)
    return tuple(clipped)


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """The stages of a training run, parsed: what the data set, the model and the checks of options read alike."""

    stages: tuple[Stage, ...]
    """All stages of the option file."""
    start_stage: int
    """Number of the first stage to train, from 1."""

    @classmethod
    def parse(cls, block: dict) -> 'TrainingPlan':
        """The plan of a block with the options ``stages`` and ``start_stage``: ``train``, or the train data set's.

        Raises:
            UserError: names the stage (from 1) and the key.
        """
        start_stage = block.get('start_stage') or 1
        parse_stages(block['stages'], start_stage)
        return cls(parse_stages(block['stages']), start_stage)

    @property
    def trained(self) -> tuple[Stage, ...]:
        """The stages that are trained, in order."""
        return self.stages[self.start_stage - 1 :]

    @property
    def schedule(self) -> 'ScaleSchedule':
        return ScaleSchedule(self.trained)

    @property
    def total_iter(self) -> int:
        return sum(stage.iters for stage in self.trained)

    @property
    def branches(self) -> int:
        """Branches that the last stage has."""
        return self.stages[-1].branches

    def branches_before(self, index: int) -> int:
        """Branches that are trained when the trained stage of that index (from 0) begins."""
        number = self.start_stage - 1 + index
        return self.stages[number - 1].branches if number else 0

    def describe(self, index: int) -> str:
        """The trained stage of that index (from 0), for the log."""
        number, total = index + self.start_stage, len(self.stages)
        return f'stage {number} of {total} ({self.trained[index].describe()})'


class ScaleSchedule:
    """The stages laid out on the axis of global batch numbers.

    Args:
        stages: in the order of training; the last one has no end, so that batches loaded ahead have a stage too.
    """

    def __init__(self, stages: Sequence[Stage]):
        self.stages = tuple(stages)
        ends = list(accumulate(stage.iters for stage in self.stages))
        self.total_iter = ends[-1]
        self._starts = [0, *ends[:-1]]

    @classmethod
    def constant(cls, scales: tuple[Alternative, ...]) -> 'ScaleSchedule':
        """The same alternatives throughout, for training without stages."""
        return cls([Stage(branches=max(map(len, scales)), iters=1, lr=0.0, milestones=(), scales=scales)])

    def stage_of(self, batch: int) -> tuple[int, int]:
        """Index of the batch's stage (from 0) and the global number of that stage's first batch."""
        index = bisect_right(self._starts, batch) - 1
        return index, self._starts[index]

    def draw(self, batch: int, rng: Uniform) -> tuple[float, ...]:
        """Scale factors s_1 ... s_n of the n branches that are active in a batch.

        The alternative, and with it n, depends on the batch's number alone; s_i ~ U(lo, hi) comes from ``rng``.
        """
        index, first = self.stage_of(batch)
        alternatives = self.stages[index].scales
        return tuple(float(rng.uniform(lo, hi)) for lo, hi in alternatives[(batch - first) % len(alternatives)])


def _parse_stage(stage: Any, where: str) -> Stage:
    if not isinstance(stage, dict):
        raise UserError(f'{where}: must be a block of keys ({", ".join(STAGE_KEYS)}), got {stage!r}.')
    for key in stage:
        if key not in STAGE_KEYS:
            near = nearest(key, STAGE_KEYS)
            raise UserError(f"{where}: key '{key}' is not known; the nearest valid one is '{near}'.")
    cosine = stage.get('eta_min') is not None
    for key in _REQUIRED:
        if key not in stage and not (cosine and key == 'milestones'):
            raise UserError(f'{where}: {key} is missing.')
    whole = {
        'branches': 1,
        'iters': 1,
        'warmup_iter': -1,
        'min_size': 0,
        'lq_size': 1,
        'cosine_from': 0,
        'lr_period': 1,
    }
    for key, lowest in whole.items():
        value = stage.get(key, getattr(Stage, key, -1))
        if key == 'lq_size' and value is None:
            continue
        if not _is_int(value) or value < lowest:
            raise UserError(f'{where}: {key}: must be a whole number of at least {lowest}, got {value!r}.')
    for key in ('lr', 'gamma'):
        value = stage.get(key, Stage.gamma)
        if not _is_number(value) or value <= 0:
            raise UserError(f'{where}: {key}: must be a number above 0 (write !!float 1e-4 or 0.0001), got {value!r}.')
    if cosine and (not _is_number(stage['eta_min']) or not 0 <= stage['eta_min'] < stage['lr']):
        raise UserError(f'{where}: eta_min: must be a number from 0 to below lr, got {stage["eta_min"]!r}.')
    if cosine and stage.get('milestones'):
        raise UserError(f'{where}: eta_min: the learning rate follows a cosine or milestones; leave one of them out.')
    cosine_from = stage.get('cosine_from', Stage.cosine_from)
    if cosine_from and (not cosine or cosine_from >= stage['iters']):
        raise UserError(f'{where}: cosine_from: needs eta_min and more iterations than {cosine_from}.')
    begin = stage.get('warmup_lr')
    if begin is not None and (not _is_number(begin) or not 0 <= begin <= stage['lr']):
        raise UserError(f'{where}: warmup_lr: must be a number from 0 to lr, {stage["lr"]}; got {begin!r}.')
    loss = stage.get('pixel_opt')
    if loss is not None and (not isinstance(loss, dict) or not isinstance(loss.get('type'), str)):
        raise UserError(f'{where}: pixel_opt: must be a block such as {{type: MSELoss}}, got {loss!r}.')
    return Stage(
        branches=stage['branches'],
        iters=stage['iters'],
        lr=float(stage['lr']),
        milestones=_parse_milestones(stage.get('milestones', []), stage['iters'], where),
        scales=parse_scales(stage['scales'], stage['branches'], f'{where}: scales'),
        gamma=float(stage.get('gamma', Stage.gamma)),
        warmup_iter=stage.get('warmup_iter', Stage.warmup_iter),
        eta_min=float(stage['eta_min']) if cosine else None,
        cosine_from=cosine_from,
        warmup_lr=None if begin is None else float(begin),
        lr_period=stage.get('lr_period', Stage.lr_period),
        freeze=_parse_freeze(stage.get('freeze'), where),
        init=_known(stage.get('init', Stage.init), INITS, f'{where}: init'),
        pixel_opt=loss,
        min_size=stage.get('min_size', Stage.min_size),
        lq_size=stage.get('lq_size'),
    )


def _known(word: Any, words: Sequence[str], where: str) -> str:
    if word not in words:
        raise UserError(f'{where}: {word!r} is not known; the nearest is {nearest(word, words)!r}.')
    return word


def _parse_freeze(freeze: Any, where: str) -> tuple[str, ...]:
    if freeze is None or isinstance(freeze, bool):
        return PARTS if freeze else ()
    named = [freeze] if isinstance(freeze, str) else freeze
    if not isinstance(named, Sequence):
        raise UserError(f'{where}: freeze: must be true or a list of {", ".join(PARTS)}, got {freeze!r}.')
    known = {_known(part, PARTS, f'{where}: freeze') for part in named}
    return tuple(part for part in PARTS if part in known)


def _check_new_branches(stage: Stage, before: int, where: str) -> None:
    """Whether the stage has the branches that ``init`` and ``freeze`` speak of, the new ones and ``before`` others."""
    for key, asked in (('init', stage.init != Stage.init), ('freeze', 'branches' in stage.freeze)):
        if asked and before == 0:
            instead = 'leave it out' if key == 'init' else 'only [encoder] can be frozen'
            raise UserError(f'{where}: {key}: there is no branch before; {instead}.')
        if asked and stage.branches == before:
            raise UserError(f'{where}: {key}: the stage adds no branch to those before; leave it out or add one.')
    for number, ranges in enumerate(stage.scales, 1):
        if stage.freeze == PARTS and len(ranges) <= before:
            raise UserError(
                f'{where}: scales: alternative {number} has {len(ranges)} range{"s" if len(ranges) > 1 else ""}, but '
                f'freeze leaves only the branches after {before} to be trained; give at least {before + 1} ranges.'
            )


def _parse_milestones(milestones: Any, iters: int, where: str) -> tuple[int, ...]:
    if not isinstance(milestones, Sequence) or not all(_is_int(value) for value in milestones):
        raise UserError(f'{where}: milestones: must be a list of whole numbers, got {milestones!r}.')
    bounds = [0, *milestones, iters]
    if any(after <= before for before, after in pairwise(bounds)):
        raise UserError(
            f'{where}: milestones: must increase and lie between 1 and {iters - 1}, inside the stage of {iters} '
            f'iterations, got {list(milestones)}.'
        )
    return tuple(milestones)


def _parse_range(pair: Any, where: str) -> tuple[float, float]:
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(_is_number(value) for value in pair):
        raise UserError(f'{where}: a range is two numbers [lo, hi], got {pair!r}.')
    lo, hi = pair
    if not 1 <= lo <= hi:
        raise UserError(f'{where}: a range [lo, hi] needs 1 <= lo <= hi, got {list(pair)}.')
    return float(lo), float(hi)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
