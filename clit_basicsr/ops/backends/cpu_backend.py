"""The backend ``cpu``: kernels in C++ (``csrc/``), in single and double precision.

See :class:`clit_basicsr.ops.backends.contract.Kernels` for what each function does.
"""

import torch
from torch import Tensor

from clit_basicsr.ops.backends.contract import Call, Tuning, not_built, unsupported
from clit_basicsr.ops.backends.torch_conv import Taps, taps_matrix

__all__ = [
    'NAME',
    'attend_linear',
    'attend_linear_backward',
    'attention',
    'attention_backward',
    'dense_linear',
    'dense_linear_runs',
    'pack',
    'reason',
    'tuning',
    'unavailable',
    'upsampled_conv',
    'upsampled_conv_backward',
]

# Queries per pixel from which on sharing a window is cheaper than treating every query alone.
SHARING_PAYS = 1.1

NAME = 'cpu'


def unavailable(device: torch.device | None = None) -> str | None:
    return not_built(NAME)


def reason(call: Call) -> str | None:
    cause, v = unsupported(call), call.v
    if cause is None and v is not None and (v.device.type != 'cpu' or not _takes(v.dtype)):
        cause = f'it takes float32 and float64 on the CPU, not {v.dtype} on {v.device.type}'
    return cause or unavailable()


def _takes(dtype: torch.dtype) -> bool:
    """Single and double precision; under autocast the operators convert half precision themselves."""
    if dtype in (torch.bfloat16, torch.float16):
        return torch.is_autocast_enabled('cpu')
    return dtype in (torch.float32, torch.float64)


def tuning(device: torch.device) -> Tuning:
    return Tuning.make(device, SHARING_PAYS)._replace(shares_runs=True)


def attention(query: Tensor, k: Tensor, bias_y: Tensor, bias_x: Tensor, y: Tensor, x: Tensor) -> Tensor:
    grid, heads = bias_y.shape[2:]
    out = query.new_empty(*query.shape[:2], heads, grid * grid)
    torch.ops.clit_cpu.attention(*_contiguous(query, k, bias_y, bias_x, y, x), out)
    return out


def attention_backward(
    grad: Tensor, out: Tensor, query: Tensor, k: Tensor, y: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads, grid = out.shape[2], round(out.shape[3] ** 0.5)
    grad_query, grad_k = query.new_empty(query.shape), k.new_zeros(k.shape)
    grad_y, grad_x = (query.new_empty(*query.shape[:2], grid, heads) for _ in range(2))
    arguments = _contiguous(grad, out, query, k, y, x)
    torch.ops.clit_cpu.attention_backward(*arguments, grad_query, grad_k, grad_y, grad_x)
    return grad_query, grad_k, grad_y, grad_x


def pack(weight: Tensor, heads: int, grid: int) -> Tensor:
    """The first layer (O, G * G * C) as :func:`dense_linear` reads it: (H, O / panel, G * G, C / H, panel)."""
    panels = _panels(weight, grid)  # (G * G, O / panel, C, panel)
    return panels.unflatten(2, (heads, -1)).permute(2, 1, 0, 3, 4).contiguous()


def _panels(weight: Tensor, grid: int) -> Tensor:
    """(O, G * G * C) -> (G * G, O / panel, C, panel): the outputs in panels, filled up with zeros."""
    panel = torch.ops.clit_cpu.panel(weight.dtype == torch.float64)
    missing = -len(weight) % panel
    padded = torch.nn.functional.pad(weight, (0, 0, 0, missing)) if missing else weight
    return padded.unflatten(1, (grid * grid, -1)).unflatten(0, (-1, panel)).permute(2, 0, 3, 1)


def attend_linear(attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor) -> Tensor:
    grid = round(attention.shape[3] ** 0.5)
    out = attention.new_empty(*attention.shape[:2], len(weight))
    torch.ops.clit_cpu.attend_linear(*_contiguous(attention, v, _panels(weight, grid), y, x), grid, out)
    return out


def attend_linear_backward(
    grad: Tensor, attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grid = round(attention.shape[3] ** 0.5)
    grad_attention, grad_v = attention.new_empty(attention.shape), v.new_zeros(v.shape)
    grad_weight = weight.new_empty(weight.shape)
    packed, together = _head_panels(weight, grid, attention.shape[2])
    arguments = _contiguous(grad, attention, v, packed)
    results = grad_attention, grad_v, grad_weight
    torch.ops.clit_cpu.attend_linear_backward(*arguments, together, *_contiguous(y, x), grid, *results)
    return results


def _head_panels(weight: Tensor, grid: int, heads: int) -> tuple[Tensor, int]:
    """(O, G * G * C) -> (blocks of heads, G * G, panels, O, panel), and how many heads a block has: those that fill one
    panel of channels, at least one.
    """
    panel = torch.ops.clit_cpu.panel(weight.dtype == torch.float64)
    by_head = weight.unflatten(1, (grid * grid, heads, -1))  # (O, G * G, H, C / H)
    dim = by_head.shape[3]
    together = max(1, panel // dim)
    blocks = (
        torch.nn.functional.pad(by_head, (0, 0, 0, -heads % together)).flatten(2).unflatten(2, (-1, together * dim))
    )
    padded = torch.nn.functional.pad(blocks, (0, -together * dim % panel))
    return padded.unflatten(3, (-1, panel)).permute(2, 1, 3, 0, 4).contiguous(), together


def dense_linear(
    q: Tensor, k: Tensor, v: Tensor, packed: Tensor, bias: Tensor, rows: tuple[Tensor, ...], cols: tuple[Tensor, ...]
) -> Tensor:
    out = q.new_empty(len(q), len(rows[0]), len(cols[0]), len(bias))
    torch.ops.clit_cpu.dense_linear(*_contiguous(q, k, v, packed, bias, *rows, *cols), out)
    return out


def dense_linear_runs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: Tensor,
    bias: Tensor,
    rows: tuple[Tensor, ...],
    cols: tuple[Tensor, ...],
    runs: tuple[Tensor, Tensor],
) -> Tensor:
    out = q.new_empty(len(q), len(rows[0]), len(cols[0]), len(bias))
    torch.ops.clit_cpu.dense_linear_runs(*_contiguous(q, k, v, packed, bias, *rows, runs[0], *cols, runs[1]), out)
    return out


def upsampled_conv(z: Tensor, weight: Tensor, bias: Tensor, rows: Taps, cols: Taps) -> Tensor:
    out = z.new_empty(len(z), len(rows[0]), len(cols[0]), len(bias))
    matrix, taps = taps_matrix(weight), _contiguous(*rows, *cols)
    for image, own in zip(z, out, strict=True):
        products = torch.mm(image.flatten(0, 1), matrix).view(*image.shape[:2], 3, 3, len(bias))
        torch.ops.clit_cpu.interpolate_products(products, bias.contiguous(), *taps, own)
    return out


def upsampled_conv_backward(
    grad: Tensor, z: Tensor, weight: Tensor, rows: Taps, cols: Taps
) -> tuple[Tensor, Tensor, Tensor]:
    channels, inputs = weight.shape[:2]
    matrix, taps = taps_matrix(weight), _contiguous(*rows, *cols)
    grad_z = torch.empty_like(z, memory_format=torch.contiguous_format)
    grad_matrix, grad_bias, own_bias = torch.zeros_like(matrix), grad.new_zeros(channels), grad.new_empty(channels)
    products = grad.new_empty(*z.shape[1:3], 3, 3, channels)
    parts = min(z.shape[1], torch.get_num_threads())  # of the rows; the result does not depend on their number
    for image, own, own_z in zip(grad.contiguous(), z, grad_z, strict=True):
        torch.ops.clit_cpu.interpolate_products_backward(image, *taps, parts, products.zero_(), own_bias)
        table = products.view(-1, 9 * channels)
        torch.mm(table, matrix.t(), out=own_z.view(-1, inputs))
        grad_matrix.addmm_(own.reshape(-1, inputs).t(), table)
        grad_bias += own_bias
    return grad_z, grad_matrix.view(inputs, 3, 3, channels).permute(3, 0, 1, 2).contiguous(), grad_bias


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.contiguous() for t in tensors)
