"""The papers' evaluation protocols: on which channel PSNR is measured, and how wide a border is cut off.

Imports neither torch nor the host, so that data sets and options may name protocols too.

To add a protocol: an entry of :data:`PROTOCOLS`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from clit_basicsr.base.errors import UserError


class Protocol(NamedTuple):
    """How PSNR is measured.

    Attributes:
        luma: on the luma of ITU-R BT.601; otherwise on RGB.
        margin: pixels that are cut off at each edge in addition to the scale.
    """

    luma: bool
    margin: int

    def __str__(self) -> str:
        margin = f' + {self.margin} pixels' if self.margin else ''
        return f'{"luma" if self.luma else "RGB"}, a border of the scale{margin} cut off'


PROTOCOLS = {'div2k': Protocol(luma=False, margin=6), 'benchmark': Protocol(luma=True, margin=0)}
DEFAULT = 'div2k'


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: the name is not known.
    """
    if name not in PROTOCOLS:
        raise UserError(f"protocol: '{name}' is not known; use {' or '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def border_width(protocol: str, scale: float | Sequence[float]) -> int:
    """Pixels that a protocol cuts off at each edge before it measures PSNR.

    Args:
        scale: a number or (y, x); the larger one counts, rounded up.

    Raises:
        UserError: the protocol is not known.
    """
    largest = max(scale) if isinstance(scale, Sequence) else scale
    return math.ceil(largest - 1e-9) + find_protocol(protocol).margin


def dataset_protocol(dataset: Any) -> str:
    """How a validation set, ours or the host's, is measured: by its option ``protocol``, or else by the default."""
    return getattr(dataset, 'protocol', None) or dataset.opt.get('protocol') or DEFAULT
