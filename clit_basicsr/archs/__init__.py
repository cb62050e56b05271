"""Networks, registered in the host's ARCH_REGISTRY: one file per system."""

from clit_basicsr.archs.bicubic_arch import Bicubic
from clit_basicsr.archs.clit_arch import CLIT
from clit_basicsr.archs.lit_arch import LIT

__all__ = ['CLIT', 'LIT', 'Bicubic']
