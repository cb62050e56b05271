"""The ways in which LR images are made, by name; :mod:`clit_basicsr.data.pairs` makes them.

Imports neither torch nor numpy, so that the command line may name them.
"""

from clit_basicsr.base.errors import UserError

DOWNSAMPLINGS = ('pil', 'matlab')


def check_downsampling(name: str) -> None:
    """Raises UserError unless ``name`` is one of DOWNSAMPLINGS."""
    if name not in DOWNSAMPLINGS:
        raise UserError(f"downsampling: '{name}' is not known; use one of {', '.join(DOWNSAMPLINGS)}.")
