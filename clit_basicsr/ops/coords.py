"""The public names of :mod:`clit_basicsr.ops.geometry.coords`."""

from clit_basicsr.ops.geometry.coords import Frame, make_coord

__all__ = ['Frame', 'make_coord']
