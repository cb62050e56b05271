"""The backend ``cuda``: kernels in CUDA (``csrc/``), around matrix products of cuBLAS.

See :class:`clit_basicsr.ops.backends.contract.Kernels` for what each function does.

Single and half precision; sums are made in single precision, always in the same order. What is large is made for a
chunk of queries or a tile of pixels at a time.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops.backends.constant import constant_result
from clit_basicsr.ops.backends.contract import Call, Tuning, not_built, unsupported
from clit_basicsr.ops.backends.cuda_device import device_reason, gpus, no_device, trial_reason
from clit_basicsr.ops.backends.cuda_pieces import Axis, make_lines, tile_size, tiles
from clit_basicsr.ops.backends.torch_backend import pack as pack_by_heads

__all__ = [
    'NAME',
    'attend_linear',
    'attend_linear_backward',
    'attention',
    'attention_backward',
    'dense_linear',
    'pack',
    'reason',
    'tuning',
    'unavailable',
    'upsampled_conv',
    'upsampled_conv_backward',
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Bytes of the attention of a tile of pixels, which a kernel writes and the next one reads: they stay in the
# second-level cache of the larger GPUs (A100 40 MB, H100 50 MB).
DENSE_BYTES = 40 << 20
# Bytes of the attention-weighted values of a chunk of queries (20,000 at C = 256, G = 7 in half precision): in no
# cache, but few chunks, each of which costs the host its time.
SCATTERED_BYTES = 512 << 20
# Bytes of a tile of pixels where cuBLAS makes their products: the same.
PRODUCT_BYTES = 512 << 20
# Bytes of what does not fit there in any case: sums of one map's gradient, products of a convolution.
GROUP_BYTES = 256 << 20
# What the kernel dense_linear is made for: channels of a head, places of a piece, places of a warp, bytes of its table.
HEAD_DIM = 32
MOST_PLACES = 32
SLOTS = 256
TABLE_BYTES = 32 << 10

# Queries per pixel from which on sharing a window is cheaper: by the operations and bytes of both ways; not measured.
SHARING_PAYS = 2.5


NAME = 'cuda'


def unavailable(device: torch.device | None = None) -> str | None:
    return no_device() or device_reason(device) or not_built(NAME, gpus()) or _trial_reason(device)


def reason(call: Call) -> str | None:
    cause, v = unsupported(call), call.v
    if cause is None and v is not None and (v.device.type != 'cuda' or v.dtype not in DTYPES):
        cause = f'it takes float32, float16 and bfloat16 on a CUDA device, not {v.dtype} on {v.device.type}'
    return cause or unavailable(None if v is None else v.device)


def tuning(device: torch.device) -> Tuning:
    return Tuning.make(device, SHARING_PAYS)


@constant_result
def _trial_reason(device: torch.device | None) -> str | None:
    return trial_reason(device, _wrong_trials)


def _wrong_trials(device: torch.device) -> list[str]:
    """Which functions are wrong about one query of one pixel: a plain kernel, and those with tensor cores."""
    with torch.autocast('cuda', enabled=False), torch.no_grad():
        ones = torch.ones(1, 1, 1, HEAD_DIM, device=device, dtype=torch.bfloat16)
        table = torch.zeros(1, 1, 1, 1, device=device)
        place = torch.zeros(1, 1, device=device, dtype=torch.int64)
        axis = (torch.zeros(1, dtype=torch.int64), place.expand(1, 2), ones[0, 0, :, :2].float() / 2, table[0])
        found = {
            'attention': attention(ones[0], ones, table, table, place, place),  # one position has all the weight
            'dense_linear': dense_linear(
                ones, ones, ones, pack(ones[0, 0] / HEAD_DIM, 1, 1), table[0, 0, 0], axis, axis
            ),
        }
        return [name for name, out in found.items() if out.item() != 1]


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
    step = _chunk(v, width)
    z = v.new_empty(min(step, total), width)
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
        _add_product(grad_weight, upstream.t(), z)
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
        _add_product(grad_matrix, z[images].flatten(0, 2).t(), products)
    grad_weight = grad_matrix.view(-1, 3, 3, len(weight)).permute(3, 0, 1, 2).to(weight.dtype).contiguous()
    return grad_z, grad_weight, grad.sum((0, 1, 2), dtype=torch.float32).to(weight.dtype)


def pack(weight: Tensor, heads: int, grid: int) -> Tensor:
    """The first layer (O, G * G * C) as :func:`dense_linear` reads it, in autocast's type if that is on: by lanes where
    its kernel takes it, see :func:`_by_lanes`, else (H, G * G, C / H, O).
    """
    if torch.is_autocast_enabled('cuda'):
        weight = weight.to(torch.get_autocast_dtype('cuda'))
    packed = pack_by_heads(weight, heads, grid)
    fits = packed.shape[2] == HEAD_DIM and 8 * heads * grid**2 <= TABLE_BYTES
    return _by_lanes(packed) if fits and weight.dtype != torch.float32 else packed


def dense_linear(q: Tensor, k: Tensor, v: Tensor, packed: Tensor, bias: Tensor, rows: Axis, cols: Axis) -> Tensor:
    q, k, v, packed = _alike(q, q, k, v, packed)
    out = q.new_empty(len(q), len(rows[0]), len(cols[0]), len(bias))
    if out.numel() > 0:
        fill = _fill_in_registers if packed.dim() == 5 else _fill_by_products
        fill(out, (q, k, v), packed, bias, rows, cols)
    return out


def _fill_in_registers(
    out: Tensor, maps: tuple[Tensor, Tensor, Tensor], weight: Tensor, bias: Tensor, rows: Axis, cols: Axis
) -> None:
    """The products of a pixel's window never leave the registers of the warp that makes them.

    Args:
        weight: from :func:`_by_lanes`.
    """
    q, k, v = maps
    y, x = make_lines(rows, cols, MOST_PLACES)
    slots = next(n for n in (8, 16, MOST_PLACES) if n >= y.most * x.most)
    grid, eights, group = rows[3].shape[1], weight.shape[1] // 8, SLOTS // slots
    width, height = tile_size(y, x, max(group, DENSE_BYTES // (8 * eights * slots * q.element_size())), True)
    attention = q.new_empty(-(-width * height // group), eights, SLOTS, 8)
    axes = *y.arguments(), *x.arguments(), y.most, x.most
    padded, bias = _padded(v, grid), bias.float().contiguous()
    for b in range(len(q)):
        run('dense_linear', q[b], k[b], padded[b], weight, bias, *axes, slots, height, width, attention, out[b])


def _padded(v: Tensor, grid: int) -> Tensor:
    """With the zeros around it that windows reach into."""
    return F.pad(v, (0, 0, grid // 2, grid // 2, grid // 2, grid // 2))


def _by_lanes(packed: Tensor) -> Tensor:
    """The first layer's weights in the order in which a warp's lanes take them, see ``csrc/matrix.cuh``: per 16 outputs
    and position two products of 16 channels, per lane the rows g and g + 8 of four channels that it takes anyway.
    (H, G * G, 32, O) -> (O / 16, H * G * G, 2, 32, 8), both padded with zeros.
    """
    weight = packed.flatten(0, 1).transpose(1, 2)  # (H * G * G, O, 32)
    weight = F.pad(weight, (0, 0, 0, -weight.shape[1] % 16, 0, -weight.shape[0] % 8))
    # outputs: 16s, g + 0 or 8, g; channels: t, product, half of its k, place
    weight = weight.view(len(weight), -1, 2, 8, 4, 2, 2, 2).permute(1, 0, 5, 3, 4, 6, 2, 7)
    return weight.reshape(weight.shape[0], weight.shape[1], 2, 32, 8)


def _fill_by_products(
    out: Tensor, maps: tuple[Tensor, Tensor, Tensor], packed: Tensor, bias: Tensor, rows: Axis, cols: Axis
) -> None:
    """The products of a tile of pixels are made by the library, and weighted by it."""
    q, k, v = maps
    heads, positions, dim, channels = packed.shape
    # Numbers that a query takes (weights, result, the same in its place), and that its pixel takes (values, products).
    per_query, per_pixel = heads * positions + 2 * channels, heads * positions * (dim + channels)
    y, x = make_lines(rows, cols, DENSE_BYTES // q.element_size() // per_query)
    places = y.most * x.most
    width, height = tile_size(y, x, PRODUCT_BYTES // q.element_size() // (per_pixel + places * per_query), False)
    grid = rows[3].shape[1]
    padded = _padded(v, grid)
    piece_y, place_y = y.queries()
    piece_x, place_x = x.queries()
    place = place_y.unsqueeze(1) * x.most + place_x
    for b, down, across in tiles(len(q), y, height, x, width):
        count = len(down) * len(across)
        attention = q.new_empty(count, places, heads * positions)
        run('dense_attention', q[b], k[b], *y.arguments(down), *x.arguments(across), y.most, x.most, attention)
        value = _windows(
            padded[b], int(y.pixels[down.start]), len(down), int(x.pixels[across.start]), len(across), grid, heads
        )
        shared = torch.bmm(value, packed.flatten(0, 1))  # (H * G * G, pieces, O)
        first = torch.baddbmm(bias.to(q.dtype), attention, shared.transpose(0, 1))  # (pieces, places, O)
        part = y.part(down), x.part(across)
        piece = (piece_y[part[0]] - down.start).unsqueeze(1) * len(across) + piece_x[part[1]] - across.start
        out[b, part[0], part[1]] = first.flatten(0, 1)[piece * places + place[part]]


def _windows(padded: Tensor, y: int, height: int, x: int, width: int, grid: int, heads: int) -> Tensor:
    """The local grids of height x width pixels from (y, x) on, head by head: (H * G * G, pixels, C / H)."""
    dim = padded.shape[2] // heads
    line, pixel, _ = padded.stride()
    size = (heads, grid, grid, height, width, dim)
    stride = (dim, line, pixel, line, pixel, 1)
    offset = padded.storage_offset() + y * line + x * pixel
    return padded.as_strided(size, stride, offset).reshape(heads * grid * grid, -1, dim)


def _alike(like: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous, all of one type: the kernels do not mix them."""
    return tuple(t.to(like.dtype).contiguous() for t in tensors)


def _chunk(like: Tensor, width: int) -> int:
    """Queries whose attention-weighted values, ``width`` numbers each, are made together."""
    return max(128, SCATTERED_BYTES // (width * like.element_size()) // 128 * 128)


def _parts(batch: int, queries: int, step: int) -> Iterator[tuple[slice, slice, bool]]:
    """Chunks for the backward pass: (images, places of their sorted queries, whether they are these images' first).

    Several whole images where they fit, else an image in equal parts.
    """
    together = max(1, step // max(1, queries))
    for b in range(0, batch, together):
        images = slice(b, min(b + together, batch))
        start, total = b * queries, (images.stop - b) * queries
        count = max(1, -(-total // step))  # without queries too: the gradient of their images is 0, not nothing
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
    step = max(1, GROUP_BYTES // (4 * maps.shape[1:].numel()))
    return (slice(b, min(b + step, len(maps))) for b in range(0, len(maps), step))


def _sums(target: Tensor) -> Tensor:
    """Where a map's gradient is summed up in single precision: in place, if that is its type."""
    return target if target.dtype == torch.float32 else torch.empty_like(target, dtype=torch.float32)


def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums += a b, in single precision to the end: a product in half precision would be rounded before it is added."""
    if a.is_cuda and a.dtype != torch.float32:
        sums += torch.mm(a, b, out_dtype=torch.float32)
    else:
        sums.addmm_(a.float(), b.float())


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
