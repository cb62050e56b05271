"""What SRNO and HIIF share: attention whose sums run over all queries, so that every value depends on all of them.

A block adds to each query's features what q KV says, KV being the mean over the queries of k^T v: Galerkin attention,
linear in their number. Whoever answers a picture tile by tile, each with a mean of its own, gets another function. Here
a picture has one mean: it is swept once for the sums of each block and once more for the values
(:mod:`clit_basicsr.archs.galerkin_sweeps`).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from clit_basicsr.archs import galerkin_sweeps as sweeps
from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.galerkin_block import GalerkinBlock, HeadNorm, LayerNorm
from clit_basicsr.archs.implicit import ImplicitNet, Tiles, relative_cell, skip_connection, to_image
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.coords import Piece, numbers

# Queries per pass of a call of ``query`` without gradients.
QUERIES = 16384


class GalerkinNet(ImplicitNet):
    """Base of the networks with Galerkin blocks: :meth:`first`, two blocks, :meth:`last`.

    ``query`` takes the sums over the queries of the call, ``upscale`` over the picture, or over every ``rows`` rows of
    it. What is queried anywhere else is the part of a picture that is asked for.

    Args:
        encoder: see :class:`ImplicitNet`.
        dim: channels C.
        num_heads: heads H, a divisor of C.
        norm: of keys and values.
        rows: HR rows of a strip with sums of its own, as the published code tests; None: the whole picture.
        max_scale: scale whose HR pixel is the smallest that the decoder sees; None: no limit.
        upscale: see :class:`ImplicitNet`.
    """

    image_skip = True
    pixel: float  # length of a pixel in distances
    uses_all_queries = True
    needs_double = True

    def __init__(
        self,
        encoder: dict,
        dim: int,
        num_heads: int,
        norm: type[HeadNorm] | type[LayerNorm],
        rows: int | None,
        max_scale: float | None,
        upscale: float,
    ) -> None:
        super().__init__(encoder, upscale)
        if num_heads < 1 or dim % num_heads or dim < 2 * num_heads:
            raise UserError(f'dim must be a multiple of num_heads, twice it at least; got {dim} and {num_heads}.')
        if rows is not None and rows < 1:
            raise UserError(f'rows must be at least 1, or ~ for the whole picture; got {rows}.')
        if max_scale is not None and not max_scale >= 1:
            raise UserError(f'max_scale must be at least 1, or ~; got {max_scale}.')
        self.rows, self.max_scale = rows, max_scale
        self.conv0, self.conv1 = GalerkinBlock(dim, num_heads, norm), GalerkinBlock(dim, num_heads, norm)

    @property
    def blocks(self) -> tuple[GalerkinBlock, GalerkinBlock]:
        return self.conv0, self.conv1

    def first(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        """What the blocks begin with, (B, Q, C)."""
        raise NotImplementedError

    def last(self, x: Tensor, prepared: Prepared, coord: Tensor) -> Tensor:
        """The values (B, Q, 3) from what the blocks end with."""
        raise NotImplementedError

    def corner_maps(self, prepared: Prepared) -> tuple[Tensor, Tensor | None]:
        """The map (1, C, h, w) that :meth:`first` reads around a query, and other numbers (h * w, S) of its pixels."""
        raise NotImplementedError

    def axis_table(self, low: Tensor, n: int) -> list[Tensor]:
        """What :meth:`first` makes of the distance ``low`` to the lower pixel along one axis of n, the shape of low."""
        return []

    def folded(self, size: Tensor, means: list[Tensor]) -> 'sweeps.Folded':
        """The same network on a part of a picture, its matrices multiplied with each other where nothing is between.

        Args:
            size: (2,), :meth:`seen_cell` of the picture.
            means: (H, d, d) each, of the blocks whose sums are known; the next block's come from the result.
        """
        raise NotImplementedError

    def _in_frame(self, feat, coord: Tensor, cell: Tensor, scales) -> tuple[Prepared, Tensor, Tensor]:
        """Converts ``coord`` to single precision: areas and bits are defined by its rounding."""
        prepared, coord, cell = super()._in_frame(feat, coord, cell, scales)
        return prepared, coord.float(), cell

    def seen_cell(self, cell: Tensor, coord: Tensor, prepared: Prepared) -> Tensor:
        """The HR pixel's size as the decoder sees it, (B, Q, 2) in units of half an LR pixel."""
        size = relative_cell(cell, coord, prepared.feat.frame)
        return size if self.max_scale is None else size.clamp(min=2 / self.max_scale)

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        count, step = coord.shape[1], max(1, QUERIES // len(coord))
        if torch.is_grad_enabled() or count <= step:
            x = self.first(prepared, coord, cell)
            for block in self.blocks:
                x = block(x, block.products(x) / count)
            return self.last(x, prepared, coord)
        cells = [cell] * -(-count // step) if cell.dim() == 2 else cell.split(step, dim=1)
        parts = list(zip(coord.split(step, dim=1), cells, strict=True))
        means: list[Tensor] = []
        for block in self.blocks:
            total = sum(block.products(self._after(means, prepared, *part)).double() for part in parts)
            means.append((total / count).to(prepared.feat.z.dtype))
        return torch.cat([self.last(self._after(means, prepared, *part), prepared, part[0]) for part in parts], dim=1)

    def _after(self, means: list[Tensor], prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        """What the blocks whose means are known make of some queries."""
        x = self.first(prepared, coord, cell)
        for block, mean in zip(self.blocks, means, strict=False):
            x = block(x, mean)
        return x

    def survey(self, tiles: Tiles, scales) -> tuple[Tiles, dict]:
        """One sweep over the picture for each block: its mean, which the next one needs.

        Sweeps and values are in single precision: in half precision the sums overflow.
        """
        tiles, size = sweeps.KeptTiles(tiles), self.conv0.qkv.weight.new_zeros(2)
        means: dict = {}
        for _ in self.blocks:
            sums: dict = {}
            for feat, piece in tiles():
                size = self._picture_cell(feat, piece)
                for key, one, part in self._parts(feat, piece):
                    if key not in sums:
                        sums[key] = sweeps.Sums(self.folded(size, means.get(key, [])))
                    with torch.autocast(one.z.device.type, enabled=False):
                        for chunk in sweeps.chunks(self, one, part):
                            sums[key].add(chunk)
            means = {key: [*means.get(key, []), one.mean()] for key, one in sums.items()}
        return tiles, {key: self.folded(size, found) for key, found in means.items()}

    def enlarged_frame(self, feat: Features, piece: Piece) -> tuple[Features, Piece]:
        return feat, piece  # places are those of ``query`` to the bit: HIIF reads their last digits

    def _fill(self, out: Tensor, feat: Features, piece: Piece, scales) -> None:
        for (strip, image), one, part in self._parts(feat, piece):
            with torch.autocast(out.device.type, enabled=False):
                for chunk in sweeps.chunks(self, one, part):
                    rgb = to_image(scales[strip, image].values(chunk), skip_connection(one, chunk.coord)[0])
                    out[image, :, chunk.rows - piece.rows[0], chunk.cols - piece.cols[0]] = rgb.t().to(out.dtype)

    def _parts(self, feat: Features, piece: Piece) -> Iterator[tuple[tuple[int, int], Features, Piece]]:
        """The parts of a piece whose sums are apart: number of the strip and of the image, features, piece."""
        step = self.rows or piece.rows[1]
        own = self.conv0.qkv.weight.dtype
        for image, one in enumerate(feat._replace(z=feat.z.to(own)).images()):
            for strip in range(piece.rows[0] // step, -(-piece.rows[1] // step)):
                rows = max(piece.rows[0], strip * step), min(piece.rows[1], (strip + 1) * step)
                yield (strip, image), one, piece._replace(rows=rows)

    def _picture_cell(self, feat: Features, piece: Piece) -> Tensor:
        """:meth:`seen_cell` of a whole picture, (2,)."""
        cell = numbers((2 / piece.size[0], 2 / piece.size[1]), self.conv0.qkv.weight).view(1, 2)
        _, coord, cell = self._in_frame(feat, cell.unsqueeze(1), cell, None)
        return self.seen_cell(cell, coord, Prepared(feat, None))[0, 0]
