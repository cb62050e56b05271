"""How a function becomes an operator of torch.library, namespace ``clit``.

By the functions of ``torch.library`` that ``torch.library.custom_op`` is made of: a ``custom_op`` imports torch._dynamo
at its first call, which takes as long as importing torch itself.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

library = torch.library.Library('clit', 'FRAGMENT')


class Gradient(NamedTuple):
    """How an operator is differentiated, see ``torch.library.register_autograd``.

    Attributes:
        backward: (ctx, gradient of each result) -> gradient of each argument.
        context: (ctx, inputs, output), saves on ``ctx`` what ``backward`` reads.
    """

    backward: Callable
    context: Callable


# What each operator computes, and how it is differentiated.
functions: dict[torch._ops.OpOverload, Callable] = {}
_gradients: dict[torch._ops.OpOverload, Gradient] = {}


def operator(function: Callable) -> torch._ops.OpOverload:
    """Registers a function of tensors under its own name, for every device; it must return new tensors alone.

    The schema is made of its annotations; a fake kernel, a gradient and autocast are registered for the result, see
    ``torch.library.register_fake``, :func:`register_gradient` and ``torch.library.register_autocast``. Differentiating
    an operator without a gradient raises RuntimeError: torch alone would warn, and take the gradient for zero or
    differentiate the calls of torch within the kernel.
    """
    name = function.__name__
    schema = torch.library.infer_schema(function, mutates_args=())
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, _outside_of_the_compiler(function), 'CompositeExplicitAutograd')
    registered = getattr(torch.ops.clit, name).default
    functions[registered] = function

    def context(ctx, inputs, output):
        if registered in _gradients:
            _gradients[registered].context(ctx, inputs, output)

    def backward(ctx, *grads):
        if registered not in _gradients:
            raise RuntimeError(f'operator {registered} has no gradient')
        return _gradients[registered].backward(ctx, *grads)

    torch.library.register_autograd(registered, backward, setup_context=context)
    return registered


def register_gradient(op: torch._ops.OpOverload, gradient: Gradient) -> None:
    """Makes an operator of this module differentiable."""
    _gradients[op] = gradient


def check(condition: bool, message: Callable[[], str]) -> None:
    """What an operator expects of its arguments; ``torch._check`` would import sympy, which takes 0.3 s.

    Raises:
        RuntimeError: it is not so.
    """
    if not condition:
        raise RuntimeError(message())


def _outside_of_the_compiler(function: Callable) -> Callable:
    """``torch.compiler.disable(function)`` in a process that has imported the compiler.

    Where a compiled program has to call an operator itself, at a graph break, torch.compile would else trace the kernel
    as if it were a part of that program.
    """
    disabled: list[Callable] = []

    def kernel(*args, **kwargs):
        if 'torch._dynamo' not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return kernel
