"""Functions on tensors. ``reference`` is the readable definition of local attention; the rest is the same, faster."""

from clit_basicsr.ops.backends import use_backend
from clit_basicsr.ops.reference import PositionalBias
from clit_basicsr.ops.scattered import local_attention

__all__ = ['PositionalBias', 'local_attention', 'use_backend']
