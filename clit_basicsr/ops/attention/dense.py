"""Local attention for a whole grid of queries, in bands, for ``upscale``. Only the result is ever held whole."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from clit_basicsr.ops import backends, operators
from clit_basicsr.ops.attention.reference import Head, Linear
from clit_basicsr.ops.attention.rows import MapRows
from clit_basicsr.ops.geometry.axes import Axis, make_axis
from clit_basicsr.ops.geometry.coords import Bounds, Piece

# The most queries of a step, where a few pixels have them all.
MOST_QUERIES = 1 << 15
# Pixels: how high bands are where the window is too wide for one strip, and how high the blocks of a step.
BAND_ROWS, BLOCK_ROWS = 32, 32
# Pixels along a side of a tile within which kernels share the products of runs: runs are cut at its border.
RUN_TILE = 32


def dense_first_layer(
    source: MapRows, piece: Piece, layer: Linear, head: Head, backend: str
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Equations (1)-(7) up to the first activation for a piece of the picture, block by block.

    Args:
        source: gives q, k and v.
        piece: the HR pixels that are asked for.
        layer: the decoder's first layer, (O, G * G * C) and (O,), the constant share of the cell in its bias.

    Yields:
        HR rows, HR columns (in the whole picture) and the layer's output there, (R, S, O).
    """
    frame, window, grid_size = source.target, source.window, head.grid_size
    y, x = (
        make_axis(
            axis, frame, window[axis], piece.size[axis], bounds, grid_size, head.num_heads, head.bias, layer.weight
        )
        for axis, bounds in ((0, piece.rows), (1, piece.cols))
    )
    channels = layer.weight.shape[1] // grid_size**2
    kernels = backends.kernels(backend)
    tuning = kernels.tuning(layer.weight.device)
    pixels = _pixels(y), _pixels(x)
    per_pixel = y.nearest.shape[0] / pixels[0] * x.nearest.shape[0] / pixels[1]
    sharing = y.nearest.shape[0] * x.nearest.shape[0] >= tuning.sharing_pays * pixels[0] * pixels[1]
    packed = kernels.pack(layer.weight, head.num_heads, grid_size) if sharing else layer.weight
    runs = source.runs() if sharing and tuning.shares_runs else None
    if runs is not None and not _runs_pay(runs, per_pixel):
        runs = None
    halo = max(grid_size // 2, 1)
    for band in _bands(source, y, x, halo, tuning.band_bytes // (3 * 4 * channels)):
        for part, across in _blocks(y, x, band, tuning.step_queries, per_pixel):
            rows, cols = _part(y, part), _part(x, across)
            low, high = (int(rows.nearest[i]) - band.origin[0] for i in (0, -1))
            begin, end = max(low - halo, 0), high + halo + 1
            q, k, v = (t[:, begin:end] for t in band.maps)
            rows, cols = _moved(rows, band.origin[0] + begin), _moved(cols, band.origin[1])
            arguments = q, k, v, packed, layer.bias, list(rows), list(cols)
            if runs is not None:
                top, left = band.origin[0] + begin, band.origin[1]
                own = [runs[0][top : top + q.shape[1]], runs[1][left : left + q.shape[2]]]
                first = operators.dense_linear_runs(*arguments, own, backend)[0]
            else:
                first = (operators.dense_linear if sharing else _direct)(*arguments, backend)[0]
            yield _shift(part, piece.rows[0]), _shift(across, piece.cols[0]), first
            del q, k, v, first  # before the next band is made


def _runs_pay(runs: tuple[Tensor, Tensor], queries_per_pixel: float) -> bool:
    """Whether products that are made for two pixels of each run and combined cost less than products for every pixel.

    Per pixel, in units of G * G * H * O operations: C / H for the products and one for each query; against C / H for
    each pixel that is multiplied, two for each interpolated along x, and two for each query. C / H is taken for 32.
    """
    shares = []
    for run in runs:
        lengths = torch.unique_consecutive(run, return_counts=True)[1]
        made = torch.where(lengths < 3, lengths, 2).sum().item()
        shares.append(min(1.0, made / len(run) + 2 / RUN_TILE))
    products = 32 * shares[0] * shares[1] + 2 * shares[0] + 2 * queries_per_pixel
    return products < 0.9 * (32 + queries_per_pixel)


class _Band(NamedTuple):
    """A part of q, k and v that is held at a time, and the queries that it answers.

    Attributes:
        maps: q, k and v, (1, h, w, C) each, with the halo that the queries' windows reach into.
        origin: (y, x) of their first pixel in the window.
        rows, cols: the queries.
    """

    maps: list[Tensor]
    origin: tuple[int, int]
    rows: Bounds
    cols: Bounds


def _bands(source: MapRows, y: Axis, x: Axis, halo: int, pixels: int) -> Iterator[_Band]:
    """Cuts the queries into strips of columns and these into bands of rows, whose maps have about ``pixels`` pixels.

    Where one band follows another, the rows of the maps that both read are handed on; columns beside a strip are made
    twice, so that strips are as wide as bands of BAND_ROWS allow.
    """
    height, width = source.window
    strip = max(BAND_ROWS, pixels // (BAND_ROWS + 2 * halo) - 2 * halo)
    for left, cols in _groups(x, slice(0, len(x.nearest)), strip):
        across = max(left - halo, 0), min(left + strip + halo, int(x.nearest[cols.stop - 1]) + halo + 1, width)
        count = max(4, pixels // (across[1] - across[0]) - 2 * halo)
        maps: list[Tensor] = []
        begin = made = 0
        for top, rows in _groups(y, slice(0, len(y.nearest)), count):
            low, high = max(top - halo, 0), min(top + count + halo, int(y.nearest[rows.stop - 1]) + halo + 1, height)
            maps = [held[:, low - begin :] for held in maps] if made > low else []  # rows that are made already
            start = max(low, made)
            if start < high:
                for i, new in enumerate(source.make((start, high), across)):
                    new = new.permute(0, 2, 3, 1).contiguous()
                    maps[i : i + 1] = [torch.cat((maps[i], new), dim=1) if made > low else new]
            begin, made = low, high
            yield _Band(maps, (low, across[0]), (rows.start, rows.stop), (cols.start, cols.stop))


def _direct(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    offset: Tensor,
    rows: list[Tensor],
    cols: list[Tensor],
    backend: str,
) -> Tensor:
    """The same as :func:`~clit_basicsr.ops.operators.dense_linear`, query by query."""
    y, x = Axis(*rows), Axis(*cols)
    low, high = (y.weights[:, tap, None, None] * q[0, y.taps[:, tap]] for tap in (0, 1))
    lines = low + high  # (R, w, C)
    low, high = (x.weights[:, tap, None] * lines[:, x.taps[:, tap]] for tap in (0, 1))
    query = low + high  # (R, S, C)
    num_rows, num_cols = len(y.nearest), len(x.nearest)
    bias_y = y.bias.repeat_interleave(num_cols, dim=0).unsqueeze(0)  # (1, R * S, G, H)
    bias_x = x.bias.repeat(num_rows, 1, 1).unsqueeze(0)
    near_y, near_x = (axis.nearest.to(k.device, non_blocking=True) for axis in (y, x))
    nearest = near_y.repeat_interleave(num_cols).unsqueeze(0), near_x.repeat(num_rows).unsqueeze(0)
    attention = operators.attention(query.flatten(0, 1).unsqueeze(0), k, bias_y, bias_x, *nearest, backend)
    out = operators.attend_linear(attention, v, weight, *nearest, backend) + offset
    return out.unflatten(1, (num_rows, num_cols))


def _pixels(axis: Axis) -> int:
    return int(axis.nearest[-1] - axis.nearest[0]) + 1


def _part(axis: Axis, part: slice) -> Axis:
    return Axis(*(field[part] for field in axis))


def _moved(axis: Axis, by: int) -> Axis:
    """The same queries over a window that begins ``by`` pixels later."""
    return axis._replace(nearest=axis.nearest - by, taps=(axis.taps - by).clamp(min=0))


def _shift(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _groups(axis: Axis, queries: slice, count: int) -> Iterator[tuple[int, slice]]:
    """Cuts some queries of an axis where their nearest pixels leave one group of ``count`` pixels for the next: (first
    pixel of the group, its queries).
    """
    nearest = axis.nearest[queries]
    first, last = int(nearest[0]), int(nearest[-1])
    edges = torch.searchsorted(nearest, torch.arange(first, last + 1 + count, count)).tolist()
    for i, (start, stop) in enumerate(pairwise(edges)):
        if stop > start:
            yield first + i * count, slice(queries.start + start, queries.start + stop)


def _blocks(y: Axis, x: Axis, band: _Band, step: int, per_pixel: float) -> Iterator[tuple[slice, slice]]:
    """Cuts the queries of a band into blocks of about ``step``, BLOCK_ROWS pixels high. A pixel's queries, which share
    its products, are split only where they are many more than that.
    """
    width = max(32, int(step / per_pixel / BLOCK_ROWS))
    height = max(1, int(step / per_pixel / min(width, _pixels(x))))
    most = max(step, MOST_QUERIES)
    for _, rows in _groups(y, slice(*band.rows), height):
        for _, cols in _groups(x, slice(*band.cols), width):
            wide = min(cols.stop - cols.start, most)
            tall = max(1, most // wide)
            for row in range(rows.start, rows.stop, tall):
                for col in range(cols.start, cols.stop, wide):
                    yield slice(row, min(row + tall, rows.stop)), slice(col, min(col + wide, cols.stop))
