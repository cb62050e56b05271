"""Functions on tensors. ``reference`` is the readable definition of the local attention."""

from clit_basicsr.ops.reference import PositionalBias, local_attention

__all__ = ['PositionalBias', 'local_attention']
