"""Networks, registered in the host's ARCH_REGISTRY: one file per system."""

from clit_basicsr.archs.bicubic_arch import Bicubic
from clit_basicsr.archs.checkpoint import build_network, load_checkpoint, save_checkpoint
from clit_basicsr.archs.clit_arch import CLIT
from clit_basicsr.archs.ipe_arch import IPE
from clit_basicsr.archs.liif_arch import LIIF
from clit_basicsr.archs.lit_arch import LIT
from clit_basicsr.archs.lte_arch import LTE
from clit_basicsr.archs.metasr_arch import MetaSR
from clit_basicsr.archs.rdn_arch import RDN
from clit_basicsr.archs.ultrasr_arch import UltraSR

__all__ = [
    'CLIT',
    'IPE',
    'LIIF',
    'LIT',
    'LTE',
    'RDN',
    'Bicubic',
    'MetaSR',
    'UltraSR',
    'build_network',
    'load_checkpoint',
    'save_checkpoint',
]
