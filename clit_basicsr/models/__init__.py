"""Trainers on the host's SRModel, registered in its MODEL_REGISTRY.

To add a trainer: ``<name>_model.py`` here, found by its suffix, with a subclass of :class:`ImplicitSRModel`.
"""

from clit_basicsr.models.cumulative_sr_model import CumulativeSRModel
from clit_basicsr.models.implicit_sr_model import ImplicitSRModel

__all__ = ['CumulativeSRModel', 'ImplicitSRModel']
