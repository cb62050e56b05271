"""Functions on tensors. ``reference`` is the readable definition of local attention; the rest is the same, faster."""

from clit_basicsr.ops.attention.local import local_attention
from clit_basicsr.ops.attention.reference import PositionalBias
from clit_basicsr.ops.backends import use_backend

__all__ = ['PositionalBias', 'local_attention', 'use_backend']
