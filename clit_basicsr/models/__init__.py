"""Trainers on the host's SRModel, registered in its MODEL_REGISTRY."""

from clit_basicsr.models.cumulative_sr_model import CumulativeSRModel
from clit_basicsr.models.implicit_sr_model import ImplicitSRModel

__all__ = ['CumulativeSRModel', 'ImplicitSRModel']
