"""How the branches that a stage of cumulative training adds begin, and how many are trained."""

from collections.abc import Iterable
from typing import Any

import torch


@torch.no_grad()
def initialise_branches(net: Any, new: Iterable[int], init: str, seed: int) -> None:
    """Sets the weights of new branches, the same ones on every rank and after a resume.

    'default' gives the EMA network the same random weights; 'copy' and 'zero' start from each network's own branch.

    Args:
        net: with ``branches``, if ``new`` names any.
        new: numbers of the branches, from 0, in order.
        init: one of :data:`clit_basicsr.data.schedule.INITS`.
        seed: of random weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number in new:
            branch = net.branches[number]
            if init == 'default':
                for module in branch.modules():
                    if hasattr(module, 'reset_parameters'):
                        module.reset_parameters()
            else:
                branch.load_state_dict(net.branches[number - 1].state_dict())
            if init == 'zero':
                for value in branch.decoder[-1].parameters():
                    value.zero_()


def set_trained_branches(nets: Iterable[Any], count: int) -> None:
    """Notes in networks that have branches how many of them are trained; it is saved with the weights."""
    for net in nets:
        if hasattr(net, 'trained_branches'):
            net.trained_branches.fill_(count)
