"""What the benchmarks call a backend: also the reference in chunks of another length, and a backend in bf16."""

from collections.abc import Callable
from typing import Any

import torch

from clit_basicsr.archs import lit_branch
from clit_basicsr.archs.precision import in_precision
from clit_basicsr.ops import use_backend

# Queries in a chunk.
REFERENCES = {'reference 2048': 2048, 'reference 30000': 30000}


def by_backend(backend: str, function: Callable[[], Any]) -> None:
    """Calls a function by a backend: 'cpu', 'torch', 'cpu bf16', or one of :data:`REFERENCES`."""
    queries = lit_branch.MAX_QUERIES
    lit_branch.MAX_QUERIES = REFERENCES.get(backend, queries)
    precision = 'bf16' if backend.endswith(' bf16') else None
    try:
        with use_backend(backend.split()[0]), in_precision(precision, torch.device('cpu')):
            function()
    finally:
        lit_branch.MAX_QUERIES = queries
