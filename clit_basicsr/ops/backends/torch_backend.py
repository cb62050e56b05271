"""The backend ``torch``: kernels in plain torch, on any device, by the rewrites that keep memory small and share work.

See :class:`clit_basicsr.ops.backends.contract.Kernels` for what each function does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops.backends.contract import Call, Tuning, unsupported
from clit_basicsr.ops.backends.torch_conv import upsampled_conv, upsampled_conv_backward

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

# Queries per pass of the scattered kernels, and pixels per tile of the dense one: on the CPU their working sets stay in
# the cache; a GPU needs many together, or its time goes into the launches.
CHUNK, GPU_CHUNK = 128, 4096
TILE, GPU_TILE = 32, 1024

# Queries per pixel from which on sharing a window is cheaper than treating every query alone.
SHARING_PAYS = 1.5


NAME = 'torch'


def unavailable(device: torch.device | None = None) -> str | None:
    return None


def reason(call: Call) -> str | None:
    return unsupported(call)


def tuning(device: torch.device) -> Tuning:
    return Tuning.make(device, SHARING_PAYS)


def _chunks(y: Tensor):
    """(image, slice of its queries) of y (B, Q): chunks never cross images, and their order never changes."""
    batch, queries = y.shape
    step = CHUNK if y.device.type == 'cpu' else GPU_CHUNK
    for b in range(batch):
        for start in range(0, queries, step):
            yield b, slice(start, start + step)


def _padded(maps: Tensor, r: int) -> Tensor:
    return F.pad(maps, (0, 0, r, r, r, r))


def _window_index(y: Tensor, x: Tensor, grid: int, width: int) -> Tensor:
    """Rows of a padded, flattened map that the local grids around y, x (n,) cover: (n, G * G)."""
    offset = torch.arange(grid, device=y.device)
    rows, cols = y.unsqueeze(1) + offset, x.unsqueeze(1) + offset
    return (rows.unsqueeze(2) * (width + grid - 1) + cols.unsqueeze(1)).flatten(1)


def _head_mask(channels: int, heads: int, like: Tensor) -> Tensor:
    """(C, H): 1 where the head owns the channel. Turns a product per head into one matrix product."""
    return torch.eye(heads, device=like.device, dtype=like.dtype).repeat_interleave(channels // heads, dim=0)


def attention(query: Tensor, k: Tensor, bias_y: Tensor, bias_x: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Equation (6) with a separable bias."""
    grid, heads = bias_y.shape[2:]
    mask = _head_mask(k.shape[-1], heads, k) * (k.shape[-1] // heads) ** -0.5
    padded = _padded(k, grid // 2).flatten(1, 2)
    out = query.new_empty(*query.shape[:2], heads, grid * grid)
    for b, part in _chunks(y):
        key = F.embedding(_window_index(y[b, part], x[b, part], grid, k.shape[2]), padded[b])  # (n, G * G, C)
        logits = torch.bmm(key, query[b, part].unsqueeze(-1) * mask).unflatten(1, (grid, grid))  # (n, G, G, H)
        logits += bias_y[b, part].unsqueeze(2)
        logits += bias_x[b, part].unsqueeze(1)
        out[b, part] = logits.flatten(1, 2).transpose(1, 2).softmax(dim=-1)
    return out


def attention_backward(
    grad: Tensor, out: Tensor, query: Tensor, k: Tensor, y: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`attention` with respect to query, k, bias_y and bias_x from those of its result ``out``."""
    heads, grid = out.shape[2], int(out.shape[3] ** 0.5)
    height, width, channels = k.shape[1:]
    mask = _head_mask(channels, heads, k) * (channels // heads) ** -0.5
    r = grid // 2
    padded = _padded(k, r).flatten(1, 2)
    grad_padded = torch.zeros_like(padded)
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    grad_y = query.new_empty(*query.shape[:2], grid, heads)
    grad_x = torch.empty_like(grad_y)
    for b, part in _chunks(y):
        index = _window_index(y[b, part], x[b, part], grid, width)
        weighted = grad[b, part] * out[b, part]
        logits = weighted - out[b, part] * weighted.sum(-1, keepdim=True)  # (n, H, G * G)
        per_axis = logits.unflatten(-1, (grid, grid))
        grad_y[b, part] = per_axis.sum(-1).transpose(1, 2)
        grad_x[b, part] = per_axis.sum(-2).transpose(1, 2)
        grad_query[b, part] = (torch.bmm(logits, F.embedding(index, padded[b])) * mask.t()).sum(1)
        grad_key = torch.bmm(logits.transpose(1, 2), query[b, part].unsqueeze(1) * mask.t())  # (n, G * G, C)
        _add_rows(grad_padded[b], index, grad_key)
    grad_k = grad_padded.unflatten(1, (height + 2 * r, width + 2 * r))[:, r : r + height, r : r + width]
    return grad_query, grad_k.contiguous(), grad_y, grad_x


def attend_linear(attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Weights the values of each local grid and applies the decoder's first layer, without its bias: equation (7)."""
    heads, grid = attention.shape[2], int(attention.shape[3] ** 0.5)
    padded = _padded(v, grid // 2).flatten(1, 2)
    out = attention.new_empty(*attention.shape[:2], len(weight))
    for b, part in _chunks(y):
        value = F.embedding(_window_index(y[b, part], x[b, part], grid, v.shape[2]), padded[b])
        torch.mm(_weighted(attention[b, part], value, heads), weight.t(), out=out[b, part])
    return out


def _weighted(attention: Tensor, value: Tensor, heads: int) -> Tensor:
    """z of equation (7): attention (n, H, G * G), value (n, G * G, C) -> (n, G * G * C). Overwrites value."""
    value.unflatten(-1, (heads, -1)).mul_(attention.transpose(1, 2).unsqueeze(-1))
    return value.flatten(1)


def attend_linear_backward(
    grad: Tensor, attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`attend_linear` for attention, v and weight; the products are made again, chunk by chunk."""
    heads, grid = attention.shape[2], int(attention.shape[3] ** 0.5)
    height, width = v.shape[1:3]
    r = grid // 2
    padded = _padded(v, r).flatten(1, 2)
    grad_padded = torch.zeros_like(padded)
    grad_attention = torch.empty_like(attention, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros_like(weight)
    for b, part in _chunks(y):
        index = _window_index(y[b, part], x[b, part], grid, width)
        value = F.embedding(index, padded[b])  # (n, G * G, C)
        grad_z = torch.mm(grad[b, part], weight).view_as(value)
        grad_attention[b, part] = (grad_z * value).unflatten(-1, (heads, -1)).sum(-1).transpose(1, 2)
        grad_weight.addmm_(grad[b, part].t(), _weighted(attention[b, part], value, heads))
        _add_rows(grad_padded[b], index, _weighted(attention[b, part], grad_z, heads))
    grad_v = grad_padded.unflatten(1, (height + 2 * r, width + 2 * r))[:, r : r + height, r : r + width]
    return grad_attention, grad_v.contiguous(), grad_weight


def _add_rows(table: Tensor, index: Tensor, rows: Tensor) -> None:
    """table[index] += rows, in the order of the rows: the same sum every time."""
    rows = rows.reshape(-1, table.shape[-1])
    if table.is_cuda and torch.are_deterministic_algorithms_enabled():
        table.index_put_((index.flatten(),), rows, accumulate=True)
    else:
        table.index_add_(0, index.flatten(), rows)


def pack(weight: Tensor, heads: int, grid: int) -> Tensor:
    """The first layer (O, G * G * C) as :func:`dense_linear` reads it, here (H, G * G, C / H, O)."""
    return weight.t().unflatten(0, (grid * grid, heads, -1)).transpose(0, 1).contiguous()


def dense_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: Tensor,
    bias: Tensor,
    rows: tuple[Tensor, ...],
    cols: tuple[Tensor, ...],
) -> Tensor:
    """Equations (6) and (7) for a grid of queries: all queries with the same nearest pixel share one window."""
    grid = rows[3].shape[1]
    columns = _Columns(cols)
    k, v = _padded(k, grid // 2), _padded(v, grid // 2)
    out = q.new_empty(len(q), len(rows[0]), len(cols[0]), len(bias))
    pixels, counts = torch.unique_consecutive(rows[0], return_counts=True)
    for b in range(len(q)):
        stop = 0
        for y, count in zip(pixels.tolist(), counts.tolist(), strict=True):
            start, stop = stop, stop + count
            low, high = rows[1][start:stop].unbind(1)
            wy = rows[2][start:stop, :, None, None]
            query = wy[:, 0] * q[b, low] + wy[:, 1] * q[b, high]  # (R', w, C)
            for tile in columns.tiles():
                first = _tile_linear(
                    columns.sample(query, tile),
                    _window(k[b], y, columns.first + tile.start, tile.stop - tile.start, grid),
                    _window(v[b], y, columns.first + tile.start, tile.stop - tile.start, grid),
                    (rows[3][start:stop], columns.bias[tile]),
                    packed,
                    bias,
                )
                columns.place(first, tile, out[b, start:stop])
    return out


class _Columns:
    """The columns of a dense grid, grouped by their nearest pixel and filled up to the same number for each pixel."""

    def __init__(self, cols: tuple[Tensor, ...]) -> None:
        nearest, self.taps, self.weights, bias = cols
        device = self.taps.device
        self.tile = TILE if device.type == 'cpu' else GPU_TILE
        self.first = int(nearest[0])
        counts = torch.bincount(nearest - self.first)
        self.pixels, self.count = len(counts), int(counts.max())
        begin = counts.cumsum(0) - counts
        slot = torch.arange(self.count)
        # (pixels, count): the column in each place; places beyond a pixel's own repeat its last and are dropped.
        column = begin.unsqueeze(1) + torch.minimum(slot, (counts - 1).clamp(min=0).unsqueeze(1))
        self.column = column.clamp(max=len(nearest) - 1).to(device, non_blocking=True)
        self.bias = bias[self.column]  # (pixels, count, G, H)
        self.begin = [*begin.tolist(), len(nearest)]
        self.slot = (torch.arange(len(nearest)) - begin[nearest - self.first]).to(device, non_blocking=True)
        self.pixel = (nearest - self.first).to(device, non_blocking=True)

    def tiles(self):
        return (slice(start, min(start + self.tile, self.pixels)) for start in range(0, self.pixels, self.tile))

    def sample(self, query: Tensor, tile: slice) -> Tensor:
        """(R', w, C) -> (pixels, R', count, C)."""
        column = self.column[tile]
        low, high = self.taps[column].unbind(-1)  # (pixels, count)
        wx = self.weights[column].unsqueeze(-1)
        query = query.transpose(0, 1)  # (w, R', C)
        out = query[low] * wx[..., 0, :].unsqueeze(2) + query[high] * wx[..., 1, :].unsqueeze(2)
        return out.transpose(1, 2)

    def place(self, first: Tensor, tile: slice, out: Tensor) -> None:
        """(pixels, R' * count, O) -> the tile's columns of out (R', S, O)."""
        part = slice(self.begin[tile.start], self.begin[tile.stop])
        first = first.unflatten(1, (-1, self.count))
        out[:, part] = first[self.pixel[part] - tile.start, :, self.slot[part]].transpose(0, 1)


def _window(padded: Tensor, y: int, x: int, count: int, grid: int) -> Tensor:
    """The local grids of the pixels x ... x + count - 1 of row y, in an unpadded map's pixels: (G * G, count, C)."""
    band = padded[y : y + grid]
    size = (grid, grid, count, band.shape[-1])
    stride = (band.stride(0), band.stride(1), band.stride(1), 1)
    return band.as_strided(size, stride, band.storage_offset() + x * band.stride(1)).flatten(0, 1)


def _tile_linear(
    query: Tensor, key: Tensor, value: Tensor, bias: tuple[Tensor, Tensor], weight: Tensor, offset: Tensor
) -> Tensor:
    """One tile of :func:`dense_linear`.

    Args:
        query: (n, R', S', C).
        key, value: (G * G, n, C).
        bias: (R', G, H) and (n, S', G, H).
        weight: (H, G * G, C / H, O).
        offset: (O,), the first layer's bias.

    Returns:
        Tensor: (n, R' * S', O).
    """
    heads, positions, dim, channels = weight.shape
    grid = bias[0].shape[1]
    shape = (*query.shape[:3], grid, grid)
    query = query.flatten(1, 2) * dim**-0.5  # (n, m, C)
    out = offset.expand(*query.shape[:2], channels).contiguous()
    shared = out.new_empty(positions, len(query), channels)
    for h in range(heads):
        part = slice(h * dim, (h + 1) * dim)
        logits = torch.bmm(query[..., part], key[..., part].permute(1, 2, 0))  # (n, m, G * G)
        table = logits.view(*shape)
        table += bias[0][:, None, :, None, h]
        table += bias[1][:, None, :, None, :, h]
        torch.bmm(value[..., part], weight[h], out=shared)
        out.baddbmm_(logits.softmax(dim=-1), shared.transpose(0, 1))
    return out
