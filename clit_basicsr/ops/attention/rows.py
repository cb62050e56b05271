"""q, k and v of some rows of a window, made on demand: no map of C channels is ever held whole."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops.geometry.coords import Frame
from clit_basicsr.ops.upsampled import Conv, Upsampling, narrowed, upsampled_conv

Maps = tuple[Tensor, Tensor, Tensor]


class MapRows(NamedTuple):
    """The source of the rows of q, k and v: features, and the convolutions that make them.

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

    def make(self, start: int, stop: int) -> Maps:
        """q, k and v, each (1, C, stop - start, w), of the rows start ... stop - 1 of the window."""
        if self.upsampling is None:
            low, high = max(start - 1, 0), min(stop + 1, self.window[0])
            z = self._first_rows(low, high)
            q, k, v = (F.conv2d(z, *conv, padding=1)[:, :, start - low : stop - low] for conv in self.convs)
            return q, k, v
        narrow, (first, last) = narrowed(self.upsampling, (start, stop), self.z.shape[2])
        z = self._first_rows(first, last)
        q, k, v = (upsampled_conv(z, *conv, narrow, self.backend) for conv in self.convs)
        return q, k, v

    def _first_rows(self, start: int, stop: int) -> Tensor:
        """Rows start ... stop - 1 of the first convolution's output, channels last in memory."""
        low = max(start - 1, 0)
        part = self.z[:, :, low : stop + 1].contiguous(memory_format=torch.channels_last)
        return F.conv2d(part, *self.first, padding=1)[:, :, start - low : stop - low]
