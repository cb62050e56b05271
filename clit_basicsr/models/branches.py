"""The branches of a cascade at the beginning of a stage: fresh weights for the new ones, and how many are trained."""

from collections.abc import Sequence

import torch
from torch import nn


def initialise_branches(nets: Sequence[nn.Module], first: int, stop: int, seed: int) -> None:
    """Fresh weights for branches first ... stop - 1: the same in every network, on every rank and after a resume.

    Args:
        nets: the trained network, and its average if there is one.
        seed: of the run.
    """
    if stop <= first:
        return
    for net in nets:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + stop)
            for branch in net.branches[first:stop]:  # type: ignore[index]
                for module in branch.modules():
                    if hasattr(module, 'reset_parameters'):
                        module.reset_parameters()


def set_trained_branches(nets: Sequence[nn.Module], count: int) -> None:
    """Notes in networks that have branches how many of them are trained; it is saved with the weights."""
    for net in nets:
        if hasattr(net, 'trained_branches'):
            net.trained_branches.fill_(count)
