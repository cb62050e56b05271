"""q, k and v of a part of a window, made on demand: no map of C channels is ever held whole."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops.geometry.axes import affine_runs
from clit_basicsr.ops.geometry.coords import Bounds, Frame
from clit_basicsr.ops.upsampled import Conv, Upsampling, narrowed, upsampled_conv

# Numbers up to which torch's conv2d takes one image for a small one.
SMALL_INPUT = 20480


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

    def runs(self) -> tuple[Tensor, Tensor] | None:
        """Rows and columns of the window on which v is affine, see
        :func:`~clit_basicsr.ops.geometry.axes.affine_runs`; None where q, k and v live on the features' own grid.
        """
        if self.upsampling is None:
            return None
        source, target, size, padding = self.upsampling
        rows, cols = (
            affine_runs(axis, source, target.size[axis], (start, start + size[axis]), padding)
            for axis, start in enumerate(target.origin)
        )
        return rows, cols

    def make(self, rows: Bounds, cols: Bounds) -> Iterator[Tensor]:
        """q, k and v, each (1, C, num_rows, num_cols), of a part of the window, one after the other."""
        if self.upsampling is None:
            wide = _large_enough((rows, cols), self.window, len(self.first.bias))
            # Cut where the convolutions still see all that they read; what they see beyond the window is 0.
            y, x = (Inner.within(bounds, n) for bounds, n in zip(wide, self.window, strict=True))
            z = F.pad(self._first(y.bounds, x.bounds), (*x.missing, *y.missing))
            for conv in self.convs:
                made = F.conv2d(z, *conv)
                yield _cut(made, wide, rows, cols)
            return
        narrow, source = narrowed(self.upsampling, (rows, cols), (self.z.shape[2], self.z.shape[3]))
        z = self._first(*source)
        for conv in self.convs:
            yield upsampled_conv(z, *conv, narrow, self.backend)

    def _first(self, rows: Bounds, cols: Bounds) -> Tensor:
        """Rows and columns of the first convolution's output, channels last in memory."""
        channels, *size = self.z.shape[1:]
        wide = _large_enough((rows, cols), (size[0], size[1]), channels)
        y, x = (Inner.within(bounds, n) for bounds, n in zip(wide, size, strict=True))
        part = self.z[:, :, slice(*y.bounds), slice(*x.bounds)]
        padded = F.pad(part, (*x.missing, *y.missing)).contiguous(memory_format=torch.channels_last)
        return _cut(F.conv2d(padded, *self.first), wide, rows, cols)


def _large_enough(part: tuple[Bounds, Bounds], window: tuple[int, int], channels: int) -> tuple[Bounds, Bounds]:
    """The part, or a larger one of the window where torch would take it for so small that it chooses another
    convolution, whose last bits differ: a pixel's values must not depend on how the window is cut.
    """
    (y0, y1), (x0, x1) = part
    needed = SMALL_INPUT // channels + 1
    if (y1 - y0) * (x1 - x0) < needed:
        x0, x1 = _widened((x0, x1), -(-needed // (y1 - y0)), window[1])
        y0, y1 = _widened((y0, y1), -(-needed // (x1 - x0)), window[0])
    return (y0, y1), (x0, x1)


def _cut(feat: Tensor, held: tuple[Bounds, Bounds], rows: Bounds, cols: Bounds) -> Tensor:
    """Rows and columns of a map that covers the part ``held``."""
    (top, _), (left, _) = held
    return feat[..., rows[0] - top : rows[1] - top, cols[0] - left : cols[1] - left]


def _widened(bounds: Bounds, count: int, length: int) -> Bounds:
    """Bounds around these of at least ``count`` pixels, as far as there are so many."""
    start = max(0, min(bounds[0], length - count))
    return start, max(bounds[1], min(start + count, length))


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
