"""The kernels of :mod:`clit_basicsr.ops.torch_backend` in CUDA (``csrc/``), around matrix products of the library.

Single and half precision; sums are made in single precision, always in the same order. What is large is made for a
chunk of queries or a tile of pixels at a time, so that it stays in the second-level cache between two kernels.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops.torch_backend import pack

__all__ = [
    'attend_linear',
    'attend_linear_backward',
    'attention',
    'attention_backward',
    'dense_linear',
    'pack',
    'upsampled_conv',
    'upsampled_conv_backward',
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Bytes of what two kernels hand over: attention-weighted values of a chunk of queries (2,048 at C = 256, G = 7 in half
# precision), products of a tile of pixels. About the size of the second-level cache of the larger GPUs.
CHUNK_BYTES = 52 << 20
# Bytes of what does not fit there in any case: sums of one map's gradient, products of a convolution.
GROUP_BYTES = 256 << 20

# Queries per pixel from which on sharing a window is cheaper: by the bytes that both ways move; not measured yet.
SHARING_PAYS = 4.0
# See clit_basicsr.ops.dense: a GPU wants more work at once than a processor's cache holds.
BAND_BYTES = 256 << 20
STEP_QUERIES = 1 << 17


def run(name: str, *arguments) -> None:
    """Launches a kernel on the device of its first argument, on torch's current stream there."""
    device = arguments[0].device
    with torch.cuda.device(device):
        getattr(torch.ops.clit_cuda, name)(*arguments, torch.cuda.current_stream(device).cuda_stream)


def attention(query: Tensor, k: Tensor, bias_y: Tensor, bias_x: Tensor, y: Tensor, x: Tensor) -> Tensor:
    grid, heads = bias_y.shape[2:]
    out = query.new_empty(*query.shape[:2], heads, grid * grid)
    tables = bias_y.float().contiguous(), bias_x.float().contiguous()
    run('attention', *_alike(query, query, k), *tables, y.contiguous(), x.contiguous(), out)
    return out


def attention_backward(
    grad: Tensor, out: Tensor, query: Tensor, k: Tensor, y: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads, grid = out.shape[2], round(out.shape[3] ** 0.5)
    grad, out, query, key = _alike(query, grad, out, query, k)
    y, x = y.contiguous(), x.contiguous()
    grad_query, slope = torch.empty_like(query), torch.empty_like(out)
    grad_y, grad_x = (query.new_empty(*query.shape[:2], grid, heads) for _ in range(2))
    run('attention_backward', grad, out, key, y, x, grad_query, slope, grad_y, grad_x)
    order, begin = _sorted(y, x, k.shape[1:3])
    grad_k = k.new_empty(k.shape)
    scale = (k.shape[3] // heads) ** -0.5
    for images in _groups(k):
        sums = _sums(grad_k[images])
        places = images.start * y.shape[1], images.stop * y.shape[1]
        run('gather', slope, query, y, x, order, begin, *places, images.start, False, scale, False, sums)
        grad_k[images] = sums
    return grad_query, grad_k, grad_y, grad_x


def attend_linear(attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor) -> Tensor:
    attention, v, weight = _alike(attention, attention, v, weight)
    y, x = y.contiguous(), x.contiguous()
    total, width = y.numel(), weight.shape[1]
    step = min(_chunk(v, width), total)
    z = v.new_empty(step, width)
    out = attention.new_empty(total, len(weight))
    for start in range(0, total, step):
        part = z[: total - start]
        run('weigh', attention, v, y, x, start, part)
        torch.mm(part, weight.t(), out=out[start : start + step])
    return out.unflatten(0, y.shape)


def attend_linear_backward(
    grad: Tensor, attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad, attention, value, weight = _alike(attention, grad, attention, v, weight)
    y, x = y.contiguous(), x.contiguous()
    batch, queries = y.shape
    order, begin = _sorted(y, x, v.shape[1:3])
    grad_attention, grad_v = torch.empty_like(attention), v.new_empty(v.shape)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    sums = grad_v[:0]
    for images, places, first in _parts(batch, queries, _chunk(v, weight.shape[1])):
        if first:
            sums = _sums(grad_v[images])
        upstream = grad.flatten(0, 1)[order[places]]
        z = weight.new_empty(len(upstream), weight.shape[1])
        torch.mm(upstream, weight, out=z)  # the gradient of z; weigh_backward turns it into z
        arguments = (y, x, order, begin, places.start, places.stop, images.start, True, 1.0, not first)
        run('gather', attention, z, *arguments, sums)
        run('weigh_backward', attention, value, y, x, order, places.start, z, grad_attention)
        grad_weight += torch.mm(upstream.t(), z)
        if places.stop == images.stop * queries:
            grad_v[images] = sums
    return grad_attention, grad_v, grad_weight.to(weight.dtype)


def upsampled_conv(
    z: Tensor, weight: Tensor, bias: Tensor, rows: tuple[Tensor, Tensor], cols: tuple[Tensor, Tensor]
) -> Tensor:
    z, weight = _alike(z, z, weight)
    matrix, taps = _taps_matrix(weight), (*_contiguous_taps(rows), *_contiguous_taps(cols))
    out = z.new_empty(len(z), len(rows[0]), len(cols[0]), len(weight))
    for images in _product_groups(z, matrix):
        products = torch.mm(z[images].flatten(0, 2), matrix).unflatten(0, (-1, *z.shape[1:3]))
        run('interpolate', products, bias.float().contiguous(), *taps, out[images])
    return out


def upsampled_conv_backward(
    grad: Tensor, z: Tensor, weight: Tensor, rows: tuple[Tensor, Tensor], cols: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    grad, z, weight = _alike(z, grad, z, weight)
    matrix, taps = _taps_matrix(weight), (*_inverse(*rows, z.shape[1]), *_inverse(*cols, z.shape[2]))
    grad_z = torch.empty_like(z)
    grad_matrix = torch.zeros_like(matrix, dtype=torch.float32)
    for images in _product_groups(z, matrix):
        products = z.new_empty(len(grad[images]) * z.shape[1] * z.shape[2], matrix.shape[1])
        run('interpolate_backward', grad[images], *taps, products.view(-1, *z.shape[1:3], matrix.shape[1]))
        torch.mm(products, matrix.t(), out=grad_z[images].flatten(0, 2))
        grad_matrix += torch.mm(z[images].flatten(0, 2).t(), products)
    grad_weight = grad_matrix.view(-1, 3, 3, len(weight)).permute(3, 0, 1, 2).to(weight.dtype).contiguous()
    return grad_z, grad_weight, grad.sum((0, 1, 2), dtype=torch.float32).to(weight.dtype)


def dense_linear(
    q: Tensor, k: Tensor, v: Tensor, packed: Tensor, bias: Tensor, rows: tuple[Tensor, ...], cols: tuple[Tensor, ...]
) -> Tensor:
    q, k, v, packed, bias = _alike(q, q, k, v, packed, bias)
    heads, positions, _, channels = packed.shape
    grid = rows[3].shape[1]
    y, x = _Line.make(rows), _Line.make(cols)
    places = y.most * x.most
    per_pixel = heads * positions * (channels + places) * q.element_size()
    width = min(x.pixels, max(1, CHUNK_BYTES // per_pixel))
    height = max(1, CHUNK_BYTES // per_pixel // width)
    padded = F.pad(v, (0, 0, grid // 2, grid // 2, grid // 2, grid // 2))
    out = q.new_empty(len(q), len(rows[0]), len(cols[0]), channels)
    for b, y0, x0 in _tiles(len(q), y.pixels, height, x.pixels, width):
        part, across = y.part(y0, height), x.part(x0, width)
        pixels = part.pixels * across.pixels
        attention = q.new_empty(pixels, places, heads * positions)
        tables = (*part.kernel_arguments(), *across.kernel_arguments())
        run('dense_attention', q[b], k[b], *tables, part.first, across.first, y.most, x.most, attention)
        value = _windows(padded[b], part, across, grid, heads)  # (H * G * G, pixels, C / H)
        shared = torch.bmm(value, packed.flatten(0, 1))  # (H * G * G, pixels, O)
        first = torch.baddbmm(bias, attention, shared.transpose(0, 1))  # (pixels, places, O)
        pixel = part.pixel.unsqueeze(1) * across.pixels + across.pixel
        index = pixel * places + part.place.unsqueeze(1) * x.most + across.place
        out[b, part.queries, across.queries] = first.flatten(0, 1)[index]
    return out


class _Line(NamedTuple):
    """One axis of a dense grid of queries, or a part of it, by its pixels.

    Attributes:
        axis: taps, weights and bias of :class:`~clit_basicsr.ops.axes.Axis`, of the whole axis.
        begin: (pixels + 1,), where the queries of each pixel begin; ``edges``: the same on the host, of the whole axis.
        offset: of the first pixel in ``edges``.
        first, pixels: the first pixel, in the map's own, and their number.
        most: the most queries of any pixel of the whole axis.
        pixel, place: of each query of the part, its pixel, counted from the first, and its place among that pixel's
            queries.
    """

    axis: tuple[Tensor, Tensor, Tensor]
    begin: Tensor
    edges: list[int]
    offset: int
    first: int
    pixels: int
    most: int
    pixel: Tensor
    place: Tensor

    @classmethod
    def make(cls, fields: tuple[Tensor, ...]) -> '_Line':
        nearest, taps, weights, bias = (t.contiguous() for t in fields)
        first, last = int(nearest[0]), int(nearest[-1])
        begin = torch.searchsorted(nearest, torch.arange(first, last + 2, device=nearest.device))
        edges = begin.tolist()
        most = max(b - a for a, b in pairwise(edges))
        pixel = nearest - first
        place = torch.arange(len(nearest), device=nearest.device) - begin[pixel]
        axis = taps, weights.float(), bias.float()
        return cls(axis, begin, edges, 0, first, last + 1 - first, most, pixel, place)

    def part(self, start: int, count: int) -> '_Line':
        """The pixels start ... start + count - 1, or as many as there are."""
        count = min(count, self.pixels - start)
        own = slice(self.edges[start], self.edges[start + count])
        return self._replace(
            begin=self.begin[start : start + count + 1],
            offset=start,
            first=self.first + start,
            pixels=count,
            pixel=self.pixel[own] - start,
            place=self.place[own],
        )

    @property
    def queries(self) -> slice:
        return slice(self.edges[self.offset], self.edges[self.offset + self.pixels])

    def kernel_arguments(self) -> tuple[Tensor, ...]:
        return (*self.axis, self.begin)


def _tiles(batch: int, rows: int, height: int, cols: int, width: int) -> Iterator[tuple[int, int, int]]:
    for b in range(batch):
        for y in range(0, rows, height):
            for x in range(0, cols, width):
                yield b, y, x


def _windows(padded: Tensor, rows: _Line, cols: _Line, grid: int, heads: int) -> Tensor:
    """The local grids of rows x cols of pixels, head by head: (H * G * G, pixels, C / H)."""
    dim = padded.shape[2] // heads
    line, pixel, _ = padded.stride()
    size = (heads, grid, grid, rows.pixels, cols.pixels, dim)
    stride = (dim, line, pixel, line, pixel, 1)
    offset = padded.storage_offset() + rows.first * line + cols.first * pixel
    return padded.as_strided(size, stride, offset).reshape(heads * grid * grid, -1, dim)


def _alike(like: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous, all of one type: the kernels do not mix them."""
    return tuple(t.to(like.dtype).contiguous() for t in tensors)


def _chunk(like: Tensor, width: int) -> int:
    """Queries whose attention-weighted values, ``width`` numbers each, are made at once."""
    return max(128, CHUNK_BYTES // (width * like.element_size()) // 128 * 128)


def _parts(batch: int, queries: int, step: int) -> Iterator[tuple[slice, slice, bool]]:
    """Chunks for the backward pass: (images, places of their sorted queries, whether they are these images' first).

    Several whole images where they fit, else an image in equal parts.
    """
    together = max(1, step // queries)
    for b in range(0, batch, together):
        images = slice(b, min(b + together, batch))
        start, total = b * queries, (images.stop - b) * queries
        count = -(-total // step)
        for i in range(count):
            yield images, slice(start + total * i // count, start + total * (i + 1) // count), i == 0


def _sorted(y: Tensor, x: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """The queries of all images ordered by pixel, (B * Q,), and where those of each begin, (B * h * w + 1,)."""
    height, width = size
    image = torch.arange(len(y), device=y.device).unsqueeze(1)
    pixel, order = torch.sort(((image * height + y) * width + x).flatten(), stable=True)
    return order, torch.searchsorted(pixel, torch.arange(len(y) * height * width + 1, device=y.device))


def _groups(maps: Tensor) -> Iterator[slice]:
    """Images whose sums fit in GROUP_BYTES."""
    step = max(1, GROUP_BYTES // (4 * maps[0].numel()))
    return (slice(b, min(b + step, len(maps))) for b in range(0, len(maps), step))


def _sums(target: Tensor) -> Tensor:
    """Where a map's gradient is summed up in single precision: in place, if that is its type."""
    return target if target.dtype == torch.float32 else torch.empty_like(target, dtype=torch.float32)


def _taps_matrix(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (C, 3 * 3 * O), y tap slow."""
    return weight.permute(1, 2, 3, 0).flatten(1).contiguous()


def _contiguous_taps(taps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return taps[0].contiguous(), taps[1].float().contiguous()


def _product_groups(z: Tensor, matrix: Tensor) -> Iterator[slice]:
    """Images whose products fit in GROUP_BYTES."""
    step = max(1, GROUP_BYTES // (z.shape[1] * z.shape[2] * matrix.shape[1] * z.element_size()))
    return (slice(b, min(b + step, len(z))) for b in range(0, len(z), step))


def _inverse(index: Tensor, weight: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Taps, and for every tap and pixel below the fine pixels first ... last - 1 that read it: (3, length) each."""
    low, high = index.permute(2, 1, 0).contiguous()  # (3, n) each, ascending
    pixel = torch.arange(length, device=index.device).expand(3, -1).contiguous()
    first, last = torch.searchsorted(high, pixel), torch.searchsorted(low, pixel, right=True)
    return *_contiguous_taps((index, weight)), first, last
