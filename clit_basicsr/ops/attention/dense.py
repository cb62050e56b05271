"""Local attention for a whole grid of queries, in bands, for ``upscale``. Only the result is ever held whole."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from clit_basicsr.ops import backends, operators
from clit_basicsr.ops.attention.reference import Head, Linear
from clit_basicsr.ops.attention.rows import MapRows
from clit_basicsr.ops.geometry.axes import Axis, make_axis
from clit_basicsr.ops.geometry.coords import Piece

# The most queries of a step, where a few pixels have them all.
MOST_QUERIES = 1 << 15


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
    halo = max(grid_size // 2, 1)
    channels = layer.weight.shape[1] // grid_size**2
    kernels = backends.kernels(backend)
    tuning = kernels.tuning(layer.weight.device)
    band = max(4, tuning.band_bytes // (3 * 4 * channels * window[1]) - 2 * halo)
    sharing = len(y.nearest) * len(x.nearest) >= tuning.sharing_pays * _pixels(y) * _pixels(x)
    packed = kernels.pack(layer.weight, head.num_heads, grid_size) if sharing else layer.weight
    linear = operators.dense_linear if sharing else _direct
    for top, (start, stop) in _groups(y, band):
        low = max(top - halo, 0)
        maps = [t.permute(0, 2, 3, 1) for t in source.make(low, min(top + band + halo, window[0]))]
        for part, across in _blocks(y, x, start, stop, tuning.step_queries):
            y_part, x_part = _moved(_part(y, part), low), _part(x, across)
            begin, end = max(int(y_part.nearest[0]) - halo, 0), int(y_part.nearest[-1]) + halo + 1
            q, k, v = (t[:, begin:end] for t in maps)
            first = linear(q, k, v, packed, layer.bias, list(_moved(y_part, begin)), list(x_part), backend)[0]
            yield _shift(part, piece.rows[0]), _shift(across, piece.cols[0]), first
        del maps, q, k, v, first  # before the next band is made


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


def _groups(axis: Axis, count: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Queries whose nearest pixels lie within ``count`` pixels of each other: (first pixel, their range)."""
    first, last = int(axis.nearest[0]), int(axis.nearest[-1])
    begin = torch.arange(first, last + 1 + count, count)
    edges = torch.searchsorted(axis.nearest, begin).tolist()
    for i, (start, stop) in enumerate(pairwise(edges)):
        if stop > start:
            yield first + i * count, (start, stop)


def _blocks(y: Axis, x: Axis, start: int, stop: int, step: int) -> Iterator[tuple[slice, slice]]:
    """Cuts the rows start ... stop - 1 into blocks of about ``step`` queries. A pixel's queries, which share its
    products, are split only where they are many more than that.
    """
    per_pixel = len(y.nearest) / _pixels(y) * len(x.nearest) / _pixels(x)
    width = min(_pixels(x), max(32, int(step / per_pixel)))
    height = max(1, int(step / per_pixel / width))
    rows = _part(y, slice(start, stop))
    most = max(step, MOST_QUERIES)
    for _, (r0, r1) in _groups(rows, height):
        for _, (c0, c1) in _groups(x, width):
            wide = min(c1 - c0, most)
            tall = max(1, most // wide)
            for row in range(r0, r1, tall):
                for col in range(c0, c1, wide):
                    yield slice(start + row, start + min(row + tall, r1)), slice(col, min(col + wide, c1))
