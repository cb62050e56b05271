"""q, k and v of a part of a window, made on demand: no map of C channels is ever held whole."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops.geometry.coords import Bounds, Frame
from clit_basicsr.ops.upsampled import Conv, Upsampling, narrowed, upsampled_conv


class MapRows(NamedTuple):
    """The source of q, k and v: features, and the convolutions that make them.

    Attributes:
        z: (1, C0, h, w), the features of one image.
        frame: their place in the feature grid.
        first: the convolution C0 -> C.
        convs: those for q, k and v.
        upsampling: the finer grid on which q, k and v live; None: that of the features.
        backend: which backend makes convolutions over upsampled features.
    """

    z: Tensor
    frame: Frame
    first: Conv
    convs: tuple[Conv, Conv, Conv]
    upsampling: Upsampling | None
    backend: str

    @property
    def target(self) -> Frame:
        """The place of q, k and v in their grid."""
        return self.frame if self.upsampling is None else self.upsampling.target

    @property
    def window(self) -> tuple[int, int]:
        """(rows, columns) of q, k and v."""
        return (self.z.shape[2], self.z.shape[3]) if self.upsampling is None else self.upsampling.size

    def make(self, rows: Bounds, cols: Bounds) -> Iterator[Tensor]:
        """q, k and v, each (1, C, num_rows, num_cols), of a part of the window, one after the other."""
        height, width = self.window
        if self.upsampling is None:
            # Cut where the next convolution still sees all that it reads; what it sees beyond the window is 0.
            y, x = (Inner.within(bounds, n) for bounds, n in ((rows, height), (cols, width)))
            z = F.pad(self._first(y.bounds, x.bounds), (*x.missing, *y.missing))
            for conv in self.convs:
                yield F.conv2d(z, *conv)
            return
        narrow, source = narrowed(self.upsampling, (rows, cols), (self.z.shape[2], self.z.shape[3]))
        z = self._first(*source)
        for conv in self.convs:
            yield upsampled_conv(z, *conv, narrow, self.backend)

    def _first(self, rows: Bounds, cols: Bounds) -> Tensor:
        """Rows and columns of the first convolution's output, channels last in memory."""
        y, x = (Inner.within(bounds, n) for bounds, n in ((rows, self.z.shape[2]), (cols, self.z.shape[3])))
        part = self.z[:, :, slice(*y.bounds), slice(*x.bounds)]
        padded = F.pad(part, (*x.missing, *y.missing)).contiguous(memory_format=torch.channels_last)
        return F.conv2d(padded, *self.first)


class Inner(NamedTuple):
    """The pixels of an axis that a 3-tap convolution reads.

    Attributes:
        bounds: those inside the map.
        missing: how many more it reads before and behind, which are 0.
    """

    bounds: Bounds
    missing: tuple[int, int]

    @classmethod
    def within(cls, bounds: Bounds, length: int) -> 'Inner':
        """For the output pixels ``bounds`` of a map of that length."""
        start, stop = bounds[0] - 1, bounds[1] + 1
        inside = max(start, 0), min(stop, length)
        return cls(inside, (inside[0] - start, stop - inside[1]))
