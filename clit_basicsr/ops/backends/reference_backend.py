"""The backend that can run everything: :mod:`clit_basicsr.ops.attention.reference`, which needs no kernels."""

import torch

from clit_basicsr.ops.backends.contract import Call

NAME = 'reference'


def unavailable(device: torch.device | None = None) -> str | None:
    return None


def reason(call: Call) -> str | None:
    return None
