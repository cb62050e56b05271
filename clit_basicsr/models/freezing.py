"""Parts of a network that a stage of cumulative training keeps as they are."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from clit_basicsr.archs.encoders.trunk import Trunk


def frozen_names(net: nn.Module, parts: Sequence[str], branches: int) -> set[str]:
    """Names of the parameters in these parts.

    Args:
        parts: of :data:`clit_basicsr.data.schedule.PARTS`. 'branches' means the first ``branches`` of ``net.branches``
            and all that they share with the branches after them: everything outside the encoder.
    """

    def part_of(name: str) -> str:
        first, _, rest = name.partition('.')
        if first == 'encoder':
            return 'encoder'
        return 'new' if first == 'branches' and int(rest.partition('.')[0]) >= branches else 'branches'

    return {name for name, _ in net.named_parameters() if part_of(name) in parts}


def freeze(net: nn.Module, names: Collection[str], trainable: Collection[str]) -> None:
    """Lets exactly those parameters get gradients that are ``trainable`` at all and not among ``names``.

    Where no parameter of the encoder does, it is set to evaluation mode (no dropped paths), and autograd records
    nothing of it; see :meth:`clit_basicsr.archs.lit_arch.LITBase.decode` for the branches.
    """
    for name, value in net.named_parameters():
        value.requires_grad_(name in trainable and name not in names)
        value.grad = None
    encoder = getattr(net, 'encoder', None)
    if isinstance(encoder, Trunk):
        encoder.frozen = not any(value.requires_grad for value in encoder.parameters())
        encoder.train(net.training)


@torch.no_grad()
def take_averages(net: nn.Module, averaged: nn.Module, names: Collection[str]) -> None:
    """Copies these weights of the EMA network, as they are frozen now: it was validated with them."""
    averages = dict(averaged.named_parameters())
    for name, value in net.named_parameters():
        if name in names:
            value.copy_(averages[name])
