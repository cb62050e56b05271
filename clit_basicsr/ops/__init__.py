"""Functions on tensors: no options, no host.

Read :mod:`clit_basicsr.ops.attention.reference` first: it is the definition of local attention, and the rest is the
same, faster. ``geometry`` says where pixels are and how maps are read; ``attention`` calls ``operators``, which the
``backends`` compute; ``upsampled`` is the convolution over upsampled features; ``csrc`` has the C++ and CUDA sources.

To add an operator: its function in every backend, its schema and gradient in ``operators``, its entry in the contract.
"""

from clit_basicsr.ops.attention.local import local_attention
from clit_basicsr.ops.attention.reference import PositionalBias
from clit_basicsr.ops.backends import use_backend

__all__ = ['PositionalBias', 'local_attention', 'use_backend']
