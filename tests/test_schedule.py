"""The stage, the branches and the scale factors of each batch."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.schedule import STAGE_KEYS, ScaleSchedule, clip_scales, parse_scales, parse_stages


def stage(branches=1, iters=10, scales=None, **others):
    options = {'branches': branches, 'iters': iters, 'lr': 1e-4, 'milestones': [], 'scales': scales or [[[1, 4]]]}
    return options | others


THREE_STAGES = [
    stage(1, 4),
    stage(2, 6, [[[1, 4]], [[1, 4], [1, 4]]]),
    stage(3, 9, [[[1, 4]], [[1, 4], [1, 4]], [[1, 4], [1, 4], [1, 2]]], milestones=[3, 6], gamma=0.25, warmup_iter=2),
]


def test_parsed_stage_holds_the_options():
    last = parse_stages(THREE_STAGES)[2]
    assert (last.branches, last.iters, last.lr, last.milestones) == (3, 9, 1e-4, (3, 6))
    assert (last.gamma, last.warmup_iter) == (0.25, 2)
    assert last.scales[2] == ((1, 4), (1, 4), (1, 2))
    first = parse_stages(THREE_STAGES)[0]
    assert (first.gamma, first.warmup_iter) == (0.5, -1)
    assert set(THREE_STAGES[2]) < set(STAGE_KEYS)


def test_learning_rate_falls_at_milestones_or_along_a_cosine():
    steps = parse_stages([stage(iters=10, milestones=[3, 6], gamma=0.5)])[0]
    assert [steps.learning_rate(i) / 1e-4 for i in (1, 3, 4, 6, 7, 10)] == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])
    cosine = parse_stages([{'eta_min': 1e-6, 'warmup_iter': 4} | stage(iters=100)])[0]
    torch_has = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=1e-4), 100, 1e-6)
    for iteration in range(1, 101):
        warm = min(1, iteration / 4)
        assert cosine.learning_rate(iteration) == pytest.approx(torch_has.get_last_lr()[0] * warm, rel=1e-9)
        torch_has.optimizer.step()
        torch_has.step()
    without = {key: value for key, value in stage(eta_min=0.0).items() if key != 'milestones'}
    assert parse_stages([without])[0].learning_rate(6) == pytest.approx(0.5e-4)


def test_warm_up_and_cosine():
    """The rates of SRNO and HIIF in their epochs k = 1, 2, ..., as their papers' code has them."""
    common = {'branches': 1, 'lr': 4e-4, 'scales': [[[1, 4]]]}
    srno = {
        **common,
        'iters': 262500,
        'warmup_iter': 12500,
        'warmup_lr': 4e-5,
        'cosine_from': 12500,
        'eta_min': 0,
        'lr_period': 250,
    }
    hiif = {**common, 'iters': 2100000, 'warmup_iter': 100000, 'warmup_lr': 2e-6, 'eta_min': 2e-6}
    srno_stage, hiif_stage = parse_stages([srno])[0], parse_stages([hiif | {'lr_period': 2000}])[0]
    for k in (1, 2, 30, 50, 51, 52, 600, 1050):
        warm = 4e-5 * (1 + 9 * (k - 1) / 50)
        expected = warm if k <= 51 else 2e-4 * (1 + math.cos(math.pi * (k - 51) / 1000))
        for iteration in (250 * (k - 1) + 1, 250 * k):
            assert srno_stage.learning_rate(iteration) == pytest.approx(expected, rel=1e-9)
        warm = 2e-6 + 3.98e-4 * (k - 1) / 50
        expected = warm if k <= 50 else 2e-6 + 1.99e-4 * (1 + math.cos(math.pi * (k - 1) / 1050))
        for iteration in (2000 * (k - 1) + 1, 2000 * k):
            assert hiif_stage.learning_rate(iteration) == pytest.approx(expected, rel=1e-9)
    for wrong in ({'cosine_from': 300000}, {'warmup_lr': 1.0}, {'lr_period': 0}, {'eta_min': -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            parse_stages([srno | wrong])
    with pytest.raises(UserError, match='cosine or milestones'):
        parse_stages([srno | {'milestones': [5]}])


def test_batches_fall_into_their_stages_and_alternate():
    schedule = ScaleSchedule(parse_stages(THREE_STAGES))
    assert schedule.total_iter == 19
    assert [schedule.stage_of(batch) for batch in (0, 3, 4, 9, 10, 18, 19, 500)] == [
        (0, 0), (0, 0), (1, 4), (1, 4), (2, 10), (2, 10), (2, 10), (2, 10),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    assert [len(schedule.draw(batch, rng)) for batch in range(19)] == [1] * 4 + [1, 2] * 3 + [1, 2, 3] * 3


def test_starting_later_drops_stages_and_counts_from_zero():
    schedule = ScaleSchedule(parse_stages(THREE_STAGES, start_stage=2))
    assert schedule.total_iter == 15
    assert [len(schedule.draw(batch, random.Random(0))) for batch in range(8)] == [1, 2] * 3 + [1, 2]
    assert schedule.stage_of(6) == (1, 6)


def test_factors_are_uniform_in_their_own_range():
    schedule = ScaleSchedule(parse_stages([stage(2, 1, [[[1, 4], [6, 7]]])]))
    rng = np.random.default_rng(1)
    drawn = np.array([schedule.draw(0, rng) for _ in range(4000)])
    assert (drawn.min(0) >= [1, 6]).all() and (drawn.max(0) <= [4, 7]).all()
    np.testing.assert_allclose(drawn.mean(0), [2.5, 6.5], atol=0.05)
    np.testing.assert_allclose(drawn.std(0), [3 / 12**0.5, 1 / 12**0.5], atol=0.03)


@pytest.mark.parametrize(
    ('scales', 'smallest_side', 'expected'),
    [
        ((4.0,), 192, (4,)),  # exactly fits
        ((4.0,), 191, (Fraction(191, 48),)),
        ((4.0,), 48, (1,)),
        ((2.0, 4.0), 240, (Fraction(5, 4), 4)),  # the first factor gives way alone
        ((2.0, 4.0), 120, (1, Fraction(5, 2))),  # then the second
        ((1.5, 4.0, 2.0), 96, (1, 1, 2)),
        ((1.5, 4.0, 2.0), 72, (1, 1, Fraction(3, 2))),
        ((1.5, 4.0, 2.0), 48, (1, 1, 1)),
        ((1.5, 1.2, 1.0), 1000, (1.5, 1.2, 1)),
    ],
)
def test_clip_rule(scales, smallest_side, expected):
    clipped = clip_scales(scales, 48, smallest_side)
    assert clipped == pytest.approx([float(value) for value in expected], rel=1e-15)
    assert round(48 * np.prod(clipped)) <= smallest_side


def test_clipped_crop_never_exceeds_the_image_by_rounding():
    rng = np.random.default_rng(2)
    for _ in range(2000):
        lq_size, factors = int(rng.integers(1, 60)), rng.uniform(1, 4, rng.integers(1, 4))
        side = int(rng.integers(lq_size, 40 * lq_size + 1))
        clipped = clip_scales(factors, lq_size, side)
        assert min(clipped) >= 1 and all(after <= before for after, before in zip(clipped, factors, strict=True))
        assert lq_size <= round(lq_size * np.prod(clipped)) <= side
        if lq_size * np.prod(factors) >= side:
            assert lq_size * np.prod(clipped) == pytest.approx(side, rel=1e-12)


@pytest.mark.parametrize(
    ('stages', 'message'),
    [
        ([], 'stages: must be a list'),
        ({'branches': 1}, 'stages: must be a list'),
        ([3], 'stage 1: must be a block'),
        ([stage(), stage(milestone=[3])], "key 'milestone' is not known; the nearest valid one is 'milestones'"),
        ([{key: value for key, value in stage().items() if key != 'lr'}], 'stage 1: lr is missing'),
        ([stage(branches=0)], 'stage 1: branches: must be a whole number of at least 1, got 0'),
        ([stage(branches=True)], 'stage 1: branches:'),
        ([stage(iters=1e3)], 'stage 1: iters: must be a whole number'),
        ([stage(warmup_iter=-2)], 'stage 1: warmup_iter:'),
        ([stage(lr='1e-4')], "stage 1: lr: must be a number above 0 (write !!float 1e-4 or 0.0001), got '1e-4'"),
        ([stage(lr=0)], 'stage 1: lr:'),
        ([stage(gamma=float('nan'))], 'stage 1: gamma:'),
        ([stage(milestones=[5, 5])], 'stage 1: milestones: must increase'),
        ([stage(milestones=[0, 5])], 'stage 1: milestones: must increase'),
        ([stage(milestones=[5, 10])], 'stage 1: milestones: must increase and lie between 1 and 9'),
        ([stage(eta_min=1e-4)], 'stage 1: eta_min: must be a number from 0 to below lr, got 0.0001'),
        ([stage(eta_min='0')], 'stage 1: eta_min: must be a number'),
        ([stage(eta_min=0, milestones=[5])], 'stage 1: eta_min: the learning rate follows a cosine or milestones'),
        ([stage(milestones=5)], 'stage 1: milestones: must be a list'),
        ([stage(scales=[[[1, 4], [1, 4]]])], 'scales: alternative 1 has 2 ranges, but the stage has 1 branch;'),
        ([stage(), stage(2, scales=[[[1, 4]], []])], 'stage 2: scales: alternative 2 must be a list of ranges'),
        ([stage(scales=[[1, 4]])], 'stage 1: scales: alternative 1: a range is two numbers [lo, hi], got 1'),
        ([stage(scales=[[[0.5, 4]]])], 'stage 1: scales: alternative 1: a range [lo, hi] needs 1 <= lo <= hi'),
        ([stage(scales=[[[3, 2]]])], 'stage 1: scales: alternative 1: a range [lo, hi] needs 1 <= lo <= hi'),
        ([stage(scales=[[['1', 2]]])], 'stage 1: scales: alternative 1: a range is two numbers'),
        ([stage(2), stage(1)], 'stage 2: branches: 1 is fewer than the 2'),
    ],
)  # fmt: skip
def test_wrong_stages_are_named(stages, message):
    with pytest.raises(UserError) as error:
        parse_stages(stages)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('start', [0, 4, '1', True, 1.0])
def test_wrong_start_stage(start):
    with pytest.raises(UserError, match='start_stage: must be between 1 and 3'):
        parse_stages(THREE_STAGES, start)


def test_scales_without_stages_may_have_any_number_of_ranges():
    assert parse_scales([[[1, 4]], [[4, 12]]]) == (((1, 4),), ((4, 12),))
    assert len(parse_scales([[[1, 2]] * 5])[0]) == 5
    with pytest.raises(UserError, match=r'^scales: must be a list of alternatives'):
        parse_scales('1, 4')
