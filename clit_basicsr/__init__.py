"""LIT and CLIT, arbitrary-scale super-resolution, as a plugin of BasicSR.

Importing this package makes ``import basicsr`` work on today's torchvision and puts the fixes of
``clit_basicsr.hosts`` in force the moment BasicSR is imported; neither torch nor BasicSR is imported here.
"""

from clit_basicsr.hosts import import_hooks

__version__ = '0.1.0'

import_hooks.install()
