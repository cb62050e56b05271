"""Functions whose result torch.compile may take for a constant, without importing the compiler to say so."""

from collections.abc import Callable
from typing import TypeVar

import torch

F = TypeVar('F', bound=Callable)

# What torch.compiler.assume_constant_result sets on a function, and all that it does: up to this version of torch.
MARK, KNOWN_UP_TO = '_dynamo_marked_constant', (2, 13)


def constant_result(function: F) -> F:
    """``torch.compiler.assume_constant_result``: torch.compile calls the function once instead of tracing it.

    torch's own decorator imports torch._dynamo, which takes about as long as torch itself, in every process, compiled
    or not. Up to the version of torch whose decorator is known it is therefore repeated here; later versions use their
    own.
    """
    major, minor = torch.__version__.split('.')[:2]
    if (int(major), int(minor)) > KNOWN_UP_TO:
        return torch.compiler.assume_constant_result(function)
    setattr(function, MARK, True)
    return function
