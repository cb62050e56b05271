"""The networks in MMagic's registry MODELS: LIT is ``LITNet``, and so on; LIIF and LTE may be MMagic's own names."""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY
from mmagic.registry import MODELS
from torch import nn

import clit_basicsr.archs  # noqa: F401  registers the networks
from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.base.option_types import plain

SUFFIX = 'Net'


def implicit_networks() -> dict[str, type[ImplicitNet]]:
    """Name in MODELS -> class, of every implicit network of this package."""
    found = {}
    for name, network in ARCH_REGISTRY:
        if issubclass(network, ImplicitNet) and network.__module__.startswith('clit_basicsr.'):
            found[f'{name}{SUFFIX}'] = network
    return found


def network_g(network: nn.Module, generator: dict) -> dict:
    """Type and options of a network as checkpoints hold them: the block ``network_g`` of an option file.

    Args:
        generator: the block it was built from, with ``type`` in any form that MODELS accepts.
    """
    options = {key: value for key, value in generator.items() if key not in ('type', '_scope_')}
    return {'type': type(network).__name__, **plain(options)}


for _name, _network in implicit_networks().items():
    MODELS.register_module(name=_name, module=_network)
