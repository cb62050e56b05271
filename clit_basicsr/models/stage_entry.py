"""What a stage of cumulative training does to a network and to its averages, under either host."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from clit_basicsr.data.schedule import TrainingPlan
from clit_basicsr.models.branches import initialise_branches, set_trained_branches
from clit_basicsr.models.freezing import freeze, frozen_names, take_averages


def begin_stage(networks: Sequence[Any], plan: TrainingPlan, index: int, seed: int) -> None:
    """At the stage's first iteration: frozen weights become their averages, new branches are initialised.

    Args:
        networks: the one that is trained, then its averages.
        index: of the stage in the plan's schedule.
        seed: of the training.
    """
    net, *averages = networks
    for averaged in averages:
        take_averages(net, averaged, _frozen(net, plan, index))
    stage = plan.schedule.stages[index]
    if index > 0 or plan.start_stage > 1:
        new = range(plan.branches_before(index), stage.branches)
        for one in networks:
            initialise_branches(one, new, stage.init, seed + stage.branches)


def set_up_stage(networks: Sequence[Any], plan: TrainingPlan, index: int, trainable: Collection[str]) -> None:
    """What follows from the options alone, when the stage begins and when it is resumed.

    Args:
        networks, index: see :func:`begin_stage`.
        trainable: names of the parameters that get gradients where nothing is frozen.
    """
    set_trained_branches(networks, plan.schedule.stages[index].branches)
    freeze(networks[0], _frozen(networks[0], plan, index), trainable)


def _frozen(net: nn.Module, plan: TrainingPlan, index: int) -> set[str]:
    """Names of the weights that the stage freezes."""
    return frozen_names(net, plan.schedule.stages[index].freeze, plan.branches_before(index))
