"""What every implicit network shares: encode once, query anywhere, and from both a whole picture of any size."""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clit_basicsr.archs.encoders import RawPixels, build_encoder
from clit_basicsr.archs.precision import laid_out
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.coords import Frame, make_coord, nearest_index, numbers, pixel_centers, sample_bilinear
from clit_basicsr.ops.geometry.mirror import mirror_pad

# HR pixels per side of the pieces in which a picture is answered, and queries per pass: both only bound the memory.
PIECE = 192
MAX_QUERIES = 4096


class Features(NamedTuple):
    """What :meth:`ImplicitNet.encode` returns: everything a query needs, for one window of an image.

    Attributes:
        z: (B, C0, h, w), the encoder's features.
        lq: (B, 3, h, w), the LR image in [0, 1], for the skip connection.
        frame: which part of the LR image the window is. Where the encoder needs a margin (SwinIR), the frame is that of
            the image with its margin.
        image: (h, w) of the LR image without the margin.
    """

    z: Tensor
    lq: Tensor
    frame: Frame
    image: tuple[int, int]

    def crop(self, rows: tuple[int, int], cols: tuple[int, int]) -> 'Features':
        """The part of the window within rows x cols, given in pixels of the whole LR image."""
        (top, left), (h, w) = self.frame.origin, self.z.shape[-2:]
        y0, y1 = max(rows[0], top), min(rows[1], top + h)
        x0, x1 = max(cols[0], left), min(cols[1], left + w)
        window = (..., slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        return self._replace(z=self.z[window], lq=self.lq[window], frame=Frame(self.frame.size, (y0, x0)))

    def over_margin(self, size: tuple[int, int]) -> tuple['Features', tuple[int, int]]:
        """The same features with the margin as a part of the image, and the size of the result (H, W) with its margin.

        Only where the margin is a whole number of HR pixels; otherwise features and size stay as they are.
        """
        scaled = [hr * n / lr for hr, lr, n in zip(size, self.image, self.frame.size, strict=True)]
        if any(value != int(value) for value in scaled):
            return self, size
        return self._replace(image=self.frame.size), (int(scaled[0]), int(scaled[1]))


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


# First and one past the last pixel along an axis.
Bounds = tuple[int, int]
# The features that a tile of the result is read from, its HR rows and columns.
EncodedTile = tuple[Features, Bounds, Bounds]


class ImplicitNet(nn.Module):
    """Base of the implicit networks: an encoder and a continuous decoder.

    No call leaves a state behind on the module: ``feat = net.encode(lq)``, ``net.query(feat, ...)`` as often as wanted.

    Args:
        encoder (dict | None): ``type`` and options of a network of the host (see :mod:`clit_basicsr.archs.encoders`);
            None: the LR image itself is the feature map.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    # Whether the network has branches, so that a query needs their factors.
    cascaded = False

    def __init__(self, encoder: dict | None, upscale: float = 4) -> None:
        super().__init__()
        self.default_scale = upscale
        self.encoder = RawPixels() if encoder is None else build_encoder(encoder)

    @property
    def reach(self) -> int:
        """How many LR pixels beyond its nearest one a query reads from the features."""
        raise NotImplementedError

    def query(self, feat: Features, coord: Tensor, cell: Tensor, scales=None) -> Tensor:
        """RGB values at HR pixel centres.

        Args:
            feat: from :meth:`encode`.
            coord: (B, Q, 2), HR pixel centres (y, x) in [-1, 1].
            cell: (B, 2) or (B, Q, 2), the HR pixel's size 2 / (H_hr, W_hr).
            scales: the branches' factors, for networks that have branches; None: found from ``cell``.

        Returns:
            Tensor: (B, Q, 3) in [0, 1], not clamped.
        """
        return self.decode(feat, *self._in_frame(feat, coord, cell, scales))

    def attention(self, feat: Features, coord: Tensor, cell: Tensor, scales=None) -> list[LocalAttention]:
        """The attention weights of every active branch at HR pixel centres; arguments as for :meth:`query`.

        Raises:
            UserError: this network has no local attention.
        """
        raise UserError(f'{type(self).__name__} has no local attention to show; take LIT or CLIT.')

    def _in_frame(self, feat: Features, coord: Tensor, cell: Tensor, scales):
        """coord, cell and scales of :meth:`query` as :meth:`decode` takes them."""
        if coord.dim() != 3 or coord.shape[2] != 2 or cell.shape[-1] != 2:
            raise ValueError(
                f'coord must be (B, Q, 2) and cell (B, 2) or (B, Q, 2), got {coord.shape=} and {cell.shape=}'
            )
        (h, w), size = feat.image, feat.frame.size
        if scales is None and self.cascaded:
            hr = [round(2 / side) for side in cell.reshape(-1, 2)[0].tolist()]
            scales = self.plan_scales((hr[0] / h, hr[1] / w))
        if size != (h, w):  # the same places in the image with its margin
            exact = coord.double()
            ratio = numbers((h / size[0], w / size[1]), exact)
            coord = ((exact + 1) * ratio - 1).to(coord.dtype)
            cell = (cell * ratio).to(cell.dtype)
        return coord, cell, scales

    def decode(self, feat: Features, coord: Tensor, cell: Tensor, scales) -> Tensor:
        """What a network does in :meth:`query`, with coord and cell in the frame of the features."""
        raise NotImplementedError

    def plan_scales(self, scale: tuple[float, float]):
        """The ``scales`` of :meth:`query` for a picture enlarged by that factor (y, x); None without branches."""
        return

    def encode(self, lq: Tensor) -> Features:
        """Features of a whole LR image (B, 3, h, w), RGB in [0, 1]."""
        padded = self._with_margin(lq)
        return self._encode_window(padded, (lq.shape[2], lq.shape[3]), (0, padded.shape[2]), (0, padded.shape[3]))

    def _with_margin(self, lq: Tensor) -> Tensor:
        if lq.dim() != 4 or lq.shape[1] != 3:
            raise ValueError(f'lq must be (B, 3, h, w), got {tuple(lq.shape)}')
        return mirror_pad(lq, self.encoder.padded_size(*lq.shape[-2:]))

    def forward(self, lq: Tensor, coord: Tensor | None = None, cell: Tensor | None = None, scales=None) -> Tensor:
        """Training: RGB (B, Q, 3) at the queries. With an image alone: the image at the scale of option ``upscale``."""
        if coord is None or cell is None:
            return self.upscale(lq, scale=self.default_scale)
        return self.query(self.encode(lq), coord, cell, scales)

    @torch.no_grad()
    def upscale(
        self,
        lq: Tensor,
        size: tuple[int, int] | None = None,
        scale: float | Sequence[float] | None = None,
        tile: dict | None = None,
    ) -> Tensor:
        """A whole picture of any size, answered piece by piece.

        Args:
            lq: (B, 3, h, w), RGB in [0, 1].
            size: (H, W) of the result; or
            scale: its factor, a number or (y, x), at least 1: H = round(h * scale), half to even.
            tile: ``{tile_size, tile_pad}`` in LR pixels: the encoder too sees one padded tile at a time. The result is
                the untiled one where ``tile_pad`` covers the encoder's receptive field. None: the encoder sees the
                whole image.

        Returns:
            Tensor: (B, 3, H, W), not clamped.

        Raises:
            UserError: neither or both of size and scale, or one that is not at least the LR size.
        """
        size, factors = output_size((lq.shape[2], lq.shape[3]), size, scale)
        out, scales = _empty(lq, *size), self.plan_scales(factors)
        for feat, rows, cols in self._encoded_tiles(lq, size, tile):
            part = out[..., slice(*rows), slice(*cols)]
            self._fill(part, *feat.over_margin(size), rows, cols, scales)
        return out

    @torch.no_grad()
    def upscale_tiles(
        self,
        lq: Tensor,
        size: tuple[int, int] | None = None,
        scale: float | Sequence[float] | None = None,
        tile: dict | None = None,
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """:meth:`upscale` for pictures that are too large to be held in floating point: one tile after another.

        Args:
            lq: (B, 3, h, w), RGB in [0, 1], or in 0 ... 255 as uint8 or 0 ... 65535 as uint16; only a tile at a time is
                made floating point of it.
            size, scale, tile: see :meth:`upscale`.

        Yields:
            Rows, columns and pixels (B, 3, rows, columns) of a tile of the result, not clamped. The tiles follow one
            another by rows and cover the result once.
        """
        size, factors = output_size((lq.shape[2], lq.shape[3]), size, scale)
        scales = self.plan_scales(factors)
        for feat, rows, cols in self._encoded_tiles(lq, size, tile):
            part = _empty(lq, rows[1] - rows[0], cols[1] - cols[0])
            self._fill(part, *feat.over_margin(size), rows, cols, scales)
            yield slice(*rows), slice(*cols), part

    @torch.no_grad()
    def encode_part(self, lq: Tensor, start: tuple[int, int], side: int, pad: int) -> Features:
        """Features of a square of the image, for queries within; the encoder sees ``pad`` LR pixels around it too.

        Args:
            lq: (B, 3, h, w), see :meth:`upscale_tiles`.
            start, side: first LR pixel (y, x) of the square, and its side in LR pixels; it may go beyond the image.
        """
        padded = self._with_margin(lq)
        return self._encode_window(padded, (lq.shape[2], lq.shape[3]), *self._window(padded, start, side, pad))

    @torch.no_grad()
    def upscale_part(self, feat: Features, size: tuple[int, int], rows: Bounds, cols: Bounds, scales) -> Tensor:
        """The HR pixels rows x cols of a picture of that size (H, W): (B, 3, num_rows, num_cols), not clamped.

        Args:
            scales: from :meth:`plan_scales`.
        """
        out = _empty(feat.lq, rows[1] - rows[0], cols[1] - cols[0])
        self._fill(out, *feat.over_margin(size), rows, cols, scales)
        return out

    def _encoded_tiles(self, lq: Tensor, size: tuple[int, int], tile: dict | None) -> Iterator[EncodedTile]:
        """Features, HR rows and HR columns of each tile; neighbours whose padded windows are the same share them."""
        h, w = lq.shape[-2:]
        padded = self._with_margin(lq)
        tile_size, tile_pad = _tile_options(tile, max(padded.shape[-2:]), self.reach)
        feat, encoded = None, None
        for y0 in range(0, h, tile_size):
            for x0 in range(0, w, tile_size):
                window = self._window(padded, (y0, x0), tile_size, tile_pad)
                if feat is None or window != encoded:
                    feat, encoded = self._encode_window(padded, (h, w), *window), window
                rows = _hr_range(size[0], h, y0, y0 + tile_size)
                cols = _hr_range(size[1], w, x0, x0 + tile_size)
                yield feat, rows, cols

    def _window(self, lq: Tensor, start: tuple[int, int], tile_size: int, pad: int) -> tuple[Bounds, Bounds]:
        """Rows and columns of a tile with its surroundings, rounded outwards to what the encoder can cut at."""
        step = self.encoder.alignment
        rows, cols = (
            (max(first - pad, 0) // step * step, min(-(-(first + tile_size + pad) // step) * step, n))
            for first, n in zip(start, lq.shape[-2:], strict=True)
        )
        return rows, cols

    def _encode_window(self, lq: Tensor, image: tuple[int, int], rows: Bounds, cols: Bounds) -> Features:
        """Features of rows x cols of an image with its margin; ``image``: its size without."""
        window = lq[..., slice(*rows), slice(*cols)]
        if not window.is_floating_point():
            window = window.to(torch.get_default_dtype()) / torch.iinfo(lq.dtype).max
        z = self.encoder(laid_out(window)) * self.encoder.feat_scale
        return Features(z, window, Frame((lq.shape[2], lq.shape[3]), (rows[0], cols[0])), image)

    def _fill(self, out: Tensor, feat: Features, size, rows: Bounds, cols: Bounds, scales) -> None:
        """Answers the HR pixels rows x cols into ``out``, (B, 3, rows, cols), in pieces that bound the memory."""
        cell = numbers((2 / size[0], 2 / size[1]), out).expand(out.shape[0], 2)
        # Places that are recomputed for an image with a margin may round to the next pixel.
        reach = self.reach if feat.image == feat.frame.size else self.reach + 1
        for y0 in range(rows[0], rows[1], PIECE):
            for x0 in range(cols[0], cols[1], PIECE):
                y1, x1 = min(y0 + PIECE, rows[1]), min(x0 + PIECE, cols[1])
                window = feat.crop(
                    _lr_range(feat.image[0], size[0], y0, y1, reach),
                    _lr_range(feat.image[1], size[1], x0, x1, reach),
                )
                coord = make_coord(size, (y0, y1), (x0, x1), device=out.device).expand(out.shape[0], -1, 2)
                rgb = self.query(window, coord, cell, scales)  # (B, num_rows * num_cols, 3)
                part = out[..., y0 - rows[0] : y1 - rows[0], x0 - cols[0] : x1 - cols[0]]
                part.copy_(rgb.transpose(1, 2).unflatten(2, (y1 - y0, x1 - x0)))


def skip_connection(feat: Features, coord: Tensor) -> Tensor:
    """The LR image read bilinearly at the queries, edges repeated: (B, Q, 3)."""
    return sample_bilinear(feat.lq, coord, feat.frame, padding='border')


def expand_cell(cell: Tensor, coord: Tensor) -> Tensor:
    """The HR pixel's size of every query, (B, Q, 2), from one of the two forms that :meth:`ImplicitNet.query`
    accepts.
    """
    return (cell.unsqueeze(1) if cell.dim() == 2 else cell).expand(-1, coord.shape[1], 2)


def relative_cell(cell: Tensor, coord: Tensor, frame: Frame) -> Tensor:
    """The HR pixel's size in units of half an LR pixel, (B, Q, 2)."""
    return expand_cell(cell * numbers(frame.size, cell), coord)


def output_size(
    lq_size: tuple[int, int], size: tuple[int, int] | None, scale: float | Sequence[float] | None
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Size (H, W) of an enlarged picture and its factor per axis, from one of the two; numpy's and torch's numbers too.

    Raises:
        UserError: neither or both are given, the result would be smaller than the LR image, or infinitely large.
    """
    if (size is None) == (scale is None):
        raise UserError('give either the size of the result or the scale, not both and not neither.')
    h, w = lq_size
    if size is None:
        numbers = _numbers(scale, float)
        pair = numbers * 2 if len(numbers) == 1 else numbers
        if len(pair) != 2 or not all(math.isfinite(s) and s >= 1 for s in pair):
            raise UserError(f'scale must be a number, or a pair (y, x), of at least 1; got {scale}.')
        if math.isinf(max(h * pair[0], w * pair[1])):
            raise UserError(f'scale {scale} is too large for a picture of {h} rows and {w} columns.')
        return (round(h * pair[0]), round(w * pair[1])), (pair[0], pair[1])
    sides = _numbers(size, operator.index)
    if len(sides) != 2 or sides[0] < h or sides[1] < w:
        raise UserError(
            f'size must be a pair (H, W) of whole numbers, at least those of the LR image {lq_size}; got {size}.'
        )
    return (sides[0], sides[1]), (sides[0] / h, sides[1] / w)


def _numbers(value: Any, convert: Callable[[Any], Any]) -> tuple:
    """One or several numbers, numpy's and torch's too, in a tuple; () for anything else."""
    try:
        several = () if isinstance(value, str) else tuple(value)
    except TypeError:
        several = (value,)
    try:
        return tuple(convert(number) for number in several)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last one is torch's, of tensors with axes
        return ()


def _empty(lq: Tensor, height: int, width: int) -> Tensor:
    dtype = lq.dtype if lq.is_floating_point() else torch.get_default_dtype()
    return torch.empty(lq.shape[0], 3, height, width, dtype=dtype, device=lq.device)


def _tile_options(tile: dict | None, longest: int, reach: int) -> tuple[int, int]:
    if tile is None:
        return longest, longest
    tile_size, tile_pad = int(tile.get('tile_size', 0)), int(tile.get('tile_pad', 32))
    if tile_size < 1 or tile_pad < reach:
        raise UserError(
            f'tile_size must be at least 1 and tile_pad at least {reach} for this network; got {dict(tile)}.'
        )
    return tile_size, tile_pad


def _hr_range(n_hr: int, n_lr: int, start: int, stop: int) -> tuple[int, int]:
    """HR pixels whose nearest LR pixel lies in start ... stop - 1, along one axis."""
    nearest = nearest_index(pixel_centers(n_hr), n_lr)
    first, last = torch.searchsorted(nearest, torch.tensor([start, stop])).tolist()
    return first, last


def _lr_range(n_lr: int, n_hr: int, start: int, stop: int, reach: int) -> tuple[int, int]:
    """LR pixels that the HR pixels start ... stop - 1 read, along one axis; may go beyond the image."""
    edge = pixel_centers(n_hr, start, stop)[[0, -1]]
    first, last = nearest_index(edge, n_lr).tolist()
    return first - reach, last + reach + 1
