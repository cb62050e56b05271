"""What an implicit network hands from one step to the next: features, prepared features, attention weights."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from clit_basicsr.ops.geometry.coords import Bounds, Frame, Piece


class Features(NamedTuple):
    """What :meth:`ImplicitNet.encode` returns: everything a query needs, for one window of an image.

    Attributes:
        z: (B, C0, h, w), the encoder's features.
        lq: (B, 3, h, w), the LR image in [0, 1], for the skip connection.
        frame: which part of the LR image the window is. Where the encoder needs a margin (SwinIR), the frame is that of
            the image with its margin.
        image_size: (h, w) of the LR image without the margin.
    """

    z: Tensor
    lq: Tensor
    frame: Frame
    image_size: tuple[int, int]

    def crop(self, rows: Bounds, cols: Bounds) -> 'Features':
        """The part of the window within rows x cols, given in pixels of the whole LR image."""
        (top, left), (h, w) = self.frame.origin, self.z.shape[-2:]
        y0, y1 = max(rows[0], top), min(rows[1], top + h)
        x0, x1 = max(cols[0], left), min(cols[1], left + w)
        window = (..., slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        return self._replace(z=self.z[window], lq=self.lq[window], frame=Frame(self.frame.size, (y0, x0)))

    def with_margin(self, piece: Piece) -> tuple['Features', Piece]:
        """The same features with the margin as a part of the image, and the piece of that larger picture.

        Only where the margin is a whole number of HR pixels; otherwise features and piece stay as they are.
        """
        scaled = [hr * n / lr for hr, lr, n in zip(piece.size, self.image_size, self.frame.size, strict=True)]
        if any(value != int(value) for value in scaled):
            return self, piece
        return self._replace(image_size=self.frame.size), piece._replace(size=(int(scaled[0]), int(scaled[1])))

    def images(self) -> Iterator['Features']:
        """The images of the batch, one by one."""
        for b in range(len(self.z)):
            yield self._replace(z=self.z[b : b + 1], lq=self.lq[b : b + 1])


class Prepared(NamedTuple):
    """What :meth:`ImplicitNet.prepare` returns: features, and what the decoder derives from them once.

    Attributes:
        feat: the features.
        maps: the decoder's own, see its ``prepare_maps``; None where it has nothing to derive.
        scales: the branches' factors that ``maps`` were made for; None where they work at any scale.
    """

    feat: Features
    maps: Any
    scales: Any = None


class LocalAttention(NamedTuple):
    """What :meth:`ImplicitNet.attention` returns for each branch.

    Attributes:
        weights: (B, Q, H, G, G), for each head the weights on the local grid, rows (y) first; they sum to 1.
        grid: (h, w) of the feature grid that the branch works on.
        center: (B, Q, 2), row and column of the local grid's middle on it, the pixel nearest to the query; positions
            of the local grid may lie outside.
    """

    weights: Tensor
    grid: tuple[int, int]
    center: Tensor
