"""How a function becomes an operator of torch.library, namespace ``clit``.

By the functions of ``torch.library`` that ``torch.library.custom_op`` is made of: a ``custom_op`` imports torch._dynamo
at its first call, which takes as long as importing torch itself. (It does so to keep the compiler out of the kernel
where one is called outside of a compiled graph; within a graph the compiler is off.)
"""

from collections.abc import Callable

import torch

library = torch.library.Library('clit', 'FRAGMENT')


def operator(function: Callable) -> torch._ops.OpOverload:
    """Registers a function of tensors under its own name, for every device; it must return new tensors alone.

    The schema is made of its annotations; a fake kernel, a gradient and autocast are registered for the result, see
    ``torch.library.register_fake``, ``register_autograd`` and ``register_autocast``.
    """
    name = function.__name__
    schema = torch.library.infer_schema(function, mutates_args=())
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, function, 'CompositeExplicitAutograd')
    return getattr(torch.ops.clit, name).default
