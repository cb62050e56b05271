"""The host's own calls of `torch.load`, made safe.

It leaves `weights_only` to torch, whose default is False before torch 2.6, and with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD in
the environment later too: then a file with weights may run any code. These calls are in constructors that an option
file reaches: VGG of the perceptual loss (experiments/pretrained_models), networks with an option for a path.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch

from clit_basicsr.base.checkpoints import read_checkpoint

MODULES = tuple(f'basicsr.archs.{name}_arch' for name in ('vgg', 'spynet', 'basicvsr', 'tof', 'dfdnet'))


class SafeTorch(ModuleType):
    """`torch`, except that `load` reads tensors and plain values only."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(f: Any, map_location: Any = None) -> dict:
        """`torch.load` of a file by its name, to the CPU, where all of these calls want it."""
        return read_checkpoint(f)


def install() -> None:
    """Gives the host's modules this `torch`. BasicSR must be imported."""
    for name in MODULES:
        sys.modules[name].torch = SafeTorch('torch')  # type: ignore[attr-defined]
