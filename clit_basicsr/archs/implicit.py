"""What every implicit network shares: encode once, query anywhere, and from both a whole picture of any size."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clit_basicsr.archs.encoders import RawPixels, build_encoder
from clit_basicsr.archs.features import Features, LocalAttention, Prepared
from clit_basicsr.archs.precision import convolution_layout, own_precision
from clit_basicsr.archs.sizes import hr_range, image_size, lr_range, output_size, parse_tile
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.decoder import runs_compiled
from clit_basicsr.ops.geometry.coords import Bounds, Frame, Piece, exact, in_larger, make_coord, numbers
from clit_basicsr.ops.geometry.mirror import mirror_pad
from clit_basicsr.ops.geometry.sampling import sample_bilinear

# HR pixels per side of the pieces in which a picture is answered, and queries per pass: both only bound the memory.
PIECE = 192
MAX_QUERIES = 4096
# Queries per thread that pass through a decoder together on a processor, where their values stay in its cache: of the
# kernel, which is given little and keeps the rest to itself, and of plain torch.
KERNEL_QUERIES, TORCH_QUERIES = 2048, 256


# Calls for the tiles of a picture, in the same order each time: features, and the piece of the result to answer.
Tiles = Callable[[], Iterator[tuple[Features, Piece]]]


class ImplicitNet(nn.Module):
    """Base of the implicit networks: an encoder and a continuous decoder.

    No call leaves a state behind on the module: ``feat = net.encode(lq)``, then ``net.query(feat, ...)`` as often as
    needed, or ``net.query(net.prepare(feat), ...)``, which runs the decoder's own convolutions over the map only once.

    A network defines ``reach``, ``decode`` and, where it derives maps from the features, ``prepare_maps``; it sets
    ``image_skip`` if its values are added to the LR image.

    Args:
        encoder (dict | None): ``type`` and options of a network of the host (see :mod:`clit_basicsr.archs.encoders`);
            None: the LR image itself is the feature map.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    # Whether a query needs the factors of the network's branches.
    cascaded = False
    # Whether the decoder's values are added to the LR image, read bilinearly.
    image_skip = False
    # Whether a value depends on all queries of the call and not on its own place alone.
    uses_all_queries = False
    # Whether more than positions is computed in double precision, which Apple's GPUs lack.
    needs_double = False
    # Branches that cumulative training may add one by one.
    num_branches: int = 1

    def __init__(self, encoder: dict | None, upscale: float = 4) -> None:
        super().__init__()
        if not upscale >= 1:
            raise UserError(f'upscale must be at least 1; got {upscale}.')
        self.default_scale = upscale
        self.encoder = RawPixels() if encoder is None else build_encoder(encoder)

    @property
    def reach(self) -> int:
        """How many LR pixels beyond its nearest one a query reads from the features."""
        raise NotImplementedError

    @property
    def feature_channels(self) -> int:
        """Channels of the features."""
        return self.encoder.out_channels

    @property
    def context(self) -> int:
        """LR pixels beyond the encoder's own reach that features depend on; tiles get them beside their padding."""
        return 0

    @property
    def alignment(self) -> int:
        """Tiles have to begin and end at multiples of this many LR pixels to get the features of the whole image."""
        return self.encoder.alignment

    def extract(self, lq: Tensor) -> Tensor:
        """The features (B, C0, h, w) of an image or a window of it, (B, 3, h, w), RGB in [0, 1]."""
        return self.encoder(convolution_layout(lq)) * self.encoder.feat_scale

    def encode(self, lq: Tensor) -> Features:
        """Features of a whole LR image (B, 3, h, w), RGB in [0, 1]."""
        padded = self._with_margin(lq)
        return self._encode_window(padded, (lq.shape[2], lq.shape[3]), (0, padded.shape[2]), (0, padded.shape[3]))

    def prepare(self, feat: Features, scales=None) -> Prepared:
        """Derives from features, once, all that the decoder can derive without knowing the queries.

        Args:
            feat: from :meth:`encode`.
            scales: the branches' factors, for networks that have branches; None: the result works at every scale.

        Returns:
            Prepared: accepted by :meth:`query` and :meth:`attention` in place of ``feat``; the same results, bit for
            bit.
        """
        with own_precision(self):
            return Prepared(feat, self.prepare_maps(feat, scales), scales)

    def query(self, feat: Features | Prepared, coord: Tensor, cell: Tensor, scales=None) -> Tensor:
        """RGB values at HR pixel centres.

        Args:
            feat: from :meth:`encode` or :meth:`prepare`.
            coord: (B, Q, 2), HR pixel centres (y, x) in [-1, 1].
            cell: (B, 2) or (B, Q, 2), the HR pixel's size 2 / (H_hr, W_hr).
            scales: the branches' factors, for networks that have branches; None: those of ``prepare``, or found from
                ``cell``.

        Returns:
            Tensor: (B, Q, 3) in [0, 1], not clamped.
        """
        prepared, coord, cell = self._in_frame(feat, coord, cell, scales)
        with own_precision(self):
            if prepared.maps is None and self.pays_to_prepare(prepared.feat, coord):
                prepared = prepared._replace(maps=self.prepare_maps(prepared.feat, prepared.scales))
            return self.finish(self.decode(prepared, coord, cell), prepared.feat, coord)

    def attention(self, feat: Features | Prepared, coord: Tensor, cell: Tensor, scales=None) -> list[LocalAttention]:
        """The attention weights of every active branch at HR pixel centres; arguments as for :meth:`query`.

        Raises:
            UserError: this network has no local attention.
        """
        raise UserError(f'{type(self).__name__} has no local attention to show; use LIT or CLIT.')

    def _in_frame(
        self, feat: Features | Prepared, coord: Tensor, cell: Tensor, scales
    ) -> tuple[Prepared, Tensor, Tensor]:
        """Prepared features with the factors of their branches, coord and cell in the frame of the features."""
        prepared = feat if isinstance(feat, Prepared) else Prepared(feat, None)
        (h, w), size = prepared.feat.image_size, prepared.feat.frame.size
        scales = prepared.scales if scales is None else scales
        if scales is None and self.cascaded:
            hr = [round(2 / side) for side in cell.reshape(-1, 2)[0].tolist()]
            scales = self.plan_scales((hr[0] / h, hr[1] / w))
        if size != (h, w):  # the same places in the image with its margin
            ratio = numbers((h / size[0], w / size[1]), exact(coord))
            coord = in_larger(coord, ratio)
            cell = (exact(cell) * ratio).to(cell)
        return prepared._replace(scales=scales), coord, cell

    def prepare_maps(self, feat: Features, scales) -> Any:
        """What the decoder derives from features alone, for :meth:`decode`; None if nothing."""
        return None

    def pays_to_prepare(self, feat: Features, coord: Tensor) -> bool:
        """Whether a single call of :meth:`query` makes the maps of :meth:`prepare_maps` as well."""
        return True

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        """The decoder's values at the queries, in its units: see :func:`to_image`.

        Args:
            prepared: features, the maps of :meth:`prepare_maps` and the branches' factors.
            coord, cell: as for :meth:`query`, in the frame of the features.

        Returns:
            Tensor: (B, Q, 3).
        """
        raise NotImplementedError

    def finish(self, out: Tensor, feat: Features, coord: Tensor) -> Tensor:
        """The image at the queries from the decoder's values there."""
        return to_image(out, skip_connection(feat, coord) if self.image_skip else None)

    def plan_scales(self, scale: tuple[float, float]):
        """The ``scales`` of :meth:`query` for a picture enlarged by that factor (y, x); None without branches."""
        return

    def survey(self, tiles: Tiles, scales) -> tuple[Tiles, Any]:
        """What pieces of a picture need to know of the whole, before the first one is answered.

        Args:
            tiles: what is going to be answered.
            scales: from :meth:`plan_scales`.

        Returns:
            The tiles, which may have been kept, and what :meth:`_fill` gets as its ``scales``.
        """
        return tiles, scales

    def forward(self, lq: Tensor, coord: Tensor | None = None, cell: Tensor | None = None, scales=None) -> Tensor:
        """Training: RGB (B, Q, 3) at the queries. With an image alone: the image at the scale of option ``upscale``."""
        if (coord is None) != (cell is None):
            raise UserError('coord and cell come together: places, and the size of an HR pixel.')
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
            lq: (B, 3, h, w), RGB in [0, 1], or uint8 or uint16.
            size: (H, W) of the result; or
            scale: its factor, a number or (y, x), at least 1: H = round(h * scale), half to even.
            tile: ``{tile_size, tile_pad}`` in LR pixels: the encoder, too, sees one padded tile at a time. The result
                is the untiled one where ``tile_pad`` covers the encoder's receptive field. None: the encoder sees the
                whole image.

        Returns:
            Tensor: (B, 3, H, W), not clamped.

        Raises:
            UserError: neither or both of size and scale, or one that is not at least the LR size; or see
                :func:`~clit_basicsr.archs.sizes.image_size`.
        """
        size, factors = output_size(image_size(lq, self), size, scale)
        out = _empty(lq, *size)
        tiles, scales = self.survey(partial(self._encoded_tiles, lq, size, tile), self.plan_scales(factors))
        for feat, piece in tiles():
            with own_precision(self):
                self._fill(out[..., slice(*piece.rows), slice(*piece.cols)], *self.enlarged_frame(feat, piece), scales)
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
            lq: (B, 3, h, w), RGB in [0, 1], or in 0 ... 255 as uint8 or 0 ... 65535 as uint16; only one tile at a time
                is converted to floating point.
            size, scale, tile: see :meth:`upscale`.

        Yields:
            Rows, columns and pixels (B, 3, rows, columns) of a tile of the result, not clamped. The tiles come row by
            row and cover the result exactly once.
        """
        size, factors = output_size(image_size(lq, self), size, scale)
        tiles, scales = self.survey(partial(self._encoded_tiles, lq, size, tile), self.plan_scales(factors))
        for feat, piece in tiles():
            yield slice(*piece.rows), slice(*piece.cols), self._answer(feat, piece, scales)

    @torch.no_grad()
    def encode_part(self, lq: Tensor, start: tuple[int, int], side: int, pad: int) -> Features:
        """Features of a square of the image, for queries inside it; the encoder sees ``pad`` LR pixels around it too.

        Args:
            lq: (B, 3, h, w), see :meth:`upscale_tiles`.
            start, side: first LR pixel (y, x) of the square, and its side in LR pixels; it may extend beyond the image.
        """
        padded = self._with_margin(lq)
        return self._encode_window(padded, (lq.shape[2], lq.shape[3]), *self._window(padded, start, side, pad))

    @torch.no_grad()
    def upscale_part(self, feat: Features, size: tuple[int, int], rows: Bounds, cols: Bounds, scales) -> Tensor:
        """The HR pixels rows x cols of a picture of that size (H, W): (B, 3, num_rows, num_cols), not clamped.

        Args:
            scales: from :meth:`plan_scales`.
        """
        piece = Piece(size, rows, cols)
        _, scales = self.survey(lambda: iter([(feat, piece)]), scales)
        return self._answer(feat, piece, scales)

    def _with_margin(self, lq: Tensor) -> Tensor:
        return mirror_pad(lq, self.encoder.padded_size(*image_size(lq, self)))

    def _encoded_tiles(self, lq: Tensor, size: tuple[int, int], tile: dict | None) -> Iterator[tuple[Features, Piece]]:
        """Features and piece of the result of each tile; neighbours whose padded windows are equal share features."""
        h, w = lq.shape[-2:]
        padded = self._with_margin(lq)
        tiling = parse_tile(tile, max(padded.shape[-2:]), self.reach)
        feat, encoded = None, None
        for y0 in range(0, h, tiling.size):
            for x0 in range(0, w, tiling.size):
                window = self._window(padded, (y0, x0), *tiling)
                if feat is None or window != encoded:
                    feat, encoded = self._encode_window(padded, (h, w), *window), window
                rows = hr_range(size[0], h, y0, y0 + tiling.size)
                cols = hr_range(size[1], w, x0, x0 + tiling.size)
                yield feat, Piece(size, rows, cols)

    def _window(self, lq: Tensor, start: tuple[int, int], side: int, pad: int) -> tuple[Bounds, Bounds]:
        """Rows and columns of a tile with its surroundings, rounded outwards to what the encoder can cut at."""
        step, pad = self.alignment, pad + self.context
        rows, cols = (
            (max(first - pad, 0) // step * step, min(-(-(first + side + pad) // step) * step, n))
            for first, n in zip(start, lq.shape[-2:], strict=True)
        )
        return rows, cols

    def _encode_window(self, lq: Tensor, image_size: tuple[int, int], rows: Bounds, cols: Bounds) -> Features:
        """Features of rows x cols of an image with its margin; ``image_size``: its size without the margin."""
        window = lq[..., slice(*rows), slice(*cols)]
        if not window.is_floating_point():
            window = window.to(torch.get_default_dtype()) / torch.iinfo(lq.dtype).max
        with own_precision(self):
            z = self.extract(window)
        return Features(z, window, Frame((lq.shape[2], lq.shape[3]), (rows[0], cols[0])), image_size)

    def enlarged_frame(self, feat: Features, piece: Piece) -> tuple[Features, Piece]:
        """Features and piece as :meth:`_fill` gets them: the margin is a part of the picture where that is exact."""
        return feat.with_margin(piece)

    def _answer(self, feat: Features, piece: Piece, scales) -> Tensor:
        out = _empty(feat.lq, piece.rows[1] - piece.rows[0], piece.cols[1] - piece.cols[0])
        with own_precision(self):
            self._fill(out, *self.enlarged_frame(feat, piece), scales)
        return out

    def _fill(self, out: Tensor, feat: Features, piece: Piece, scales) -> None:
        """Answers a piece of the picture into ``out`` (B, 3, rows, cols), in blocks that bound the memory."""
        size = piece.size
        cell = numbers((2 / size[0], 2 / size[1]), out).expand(out.shape[0], 2)
        # Places that are recomputed for an image with a margin may round to the next pixel.
        reach = self.reach if feat.image_size == feat.frame.size else self.reach + 1
        for y0 in range(*piece.rows, PIECE):
            for x0 in range(*piece.cols, PIECE):
                y1, x1 = min(y0 + PIECE, piece.rows[1]), min(x0 + PIECE, piece.cols[1])
                window = feat.crop(
                    lr_range(feat.image_size[0], size[0], y0, y1, reach),
                    lr_range(feat.image_size[1], size[1], x0, x1, reach),
                )
                coord = make_coord(size, (y0, y1), (x0, x1), device=out.device).expand(out.shape[0], -1, 2)
                rgb = self.query(window, coord, cell, scales)  # (B, num_rows * num_cols, 3)
                rows, cols = piece.place(slice(y0, y1), slice(x0, x1))
                out[..., rows, cols] = rgb.transpose(1, 2).unflatten(2, (y1 - y0, x1 - x0))


def in_pieces(answer: Callable[[Tensor, Tensor], Tensor], coord: Tensor, cell: Tensor, feat: Features) -> Tensor:
    """``answer(coord, cell)``, (B, Q, 3), on the CPU without gradients for some queries at a time.

    Args:
        coord, cell: as for :meth:`ImplicitNet.query`.
        feat: what is queried; whether the kernel serves it decides how many queries each thread gets.
    """
    if torch.is_grad_enabled() or coord.device.type != 'cpu' or torch.compiler.is_compiling():
        return answer(coord, cell)
    queries = KERNEL_QUERIES if runs_compiled(feat.z) else TORCH_QUERIES
    step = max(1, queries * torch.get_num_threads() // len(coord))
    cells = [cell] * -(-coord.shape[1] // step) if cell.dim() == 2 else cell.split(step, dim=1)
    return torch.cat([answer(*part) for part in zip(coord.split(step, dim=1), cells, strict=True)], dim=1)


def to_image(out: Tensor, skip: Tensor | None = None) -> Tensor:
    """RGB in [0, 1] from a decoder's values, whose unit is that of the published networks' images (x - 0.5) / 0.5.

    Args:
        out: any shape.
        skip: the LR image at the same places, in [0, 1], to which the values are added; None: the values are the image.
    """
    return 0.5 * out + (0.5 if skip is None else skip)


def skip_connection(feat: Features, coord: Tensor) -> Tensor:
    """The LR image read bilinearly at the queries, edges repeated: (B, Q, 3)."""
    return sample_bilinear(feat.lq, coord, feat.frame, padding='border')


def expand_cell(cell: Tensor, coord: Tensor) -> Tensor:
    """The HR pixel's size of every query, (B, Q, 2), from either form that :meth:`ImplicitNet.query` accepts."""
    return (cell.unsqueeze(1) if cell.dim() == 2 else cell).expand(-1, coord.shape[1], 2)


def relative_cell(cell: Tensor, coord: Tensor, frame: Frame) -> Tensor:
    """The HR pixel's size in units of half an LR pixel, (B, Q, 2)."""
    return expand_cell(cell * numbers(frame.size, cell), coord)


def _empty(lq: Tensor, height: int, width: int) -> Tensor:
    dtype = lq.dtype if lq.is_floating_point() else torch.get_default_dtype()
    return torch.empty(lq.shape[0], 3, height, width, dtype=dtype, device=lq.device)
