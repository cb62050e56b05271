"""The papers' metrics, on float tensors.

To add a metric: a function registered in the host's METRIC_REGISTRY; ``takes_float_tensors = True`` on it if it
measures float images.
"""

from importlib import import_module
from typing import Any

__all__ = ['calculate_psnr_float', 'calculate_ssim_float']


def __getattr__(name: str) -> Any:
    """The metrics, imported when they are used: the command line needs the names of the protocols alone."""
    if name in __all__:
        return getattr(import_module(f'{__name__}.psnr_ssim_float'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
