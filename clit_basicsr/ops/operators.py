"""The kernels as operators of torch.library: schema, fake kernel, gradient and autocast, the same for every backend.

Every operator takes the name of the backend that computes it, so one registration is enough for all of them; what
each does stands in :class:`clit_basicsr.ops.backends.contract.Kernels`. torch.compile keeps the operators as they are.
"""

import torch
from torch import Tensor
from torch.library import register_autocast, register_fake

from clit_basicsr.ops import backends
from clit_basicsr.ops.registration import Gradient, check, library, operator, register_gradient


@operator
def attention(query: Tensor, k: Tensor, bias_y: Tensor, bias_x: Tensor, y: Tensor, x: Tensor, backend: str) -> Tensor:
    """See :meth:`clit_basicsr.ops.backends.contract.Kernels.attention`."""
    return backends.kernels(backend).attention(query, k, bias_y, bias_x, y, x)


@register_fake(attention)
def _(query, k, bias_y, bias_x, y, x, backend):
    _check_scattered(query, k, y, x)
    grid, heads = bias_y.shape[2:]
    return query.new_empty(*query.shape[:2], heads, grid * grid)


@operator
def attention_backward(
    grad: Tensor, out: Tensor, query: Tensor, k: Tensor, y: Tensor, x: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return backends.kernels(backend).attention_backward(grad.contiguous(), out, query, k, y, x)


@register_fake(attention_backward)
def _(grad, out, query, k, y, x, backend):
    heads, grid = out.shape[2], _root(out.shape[3])
    table = query.new_empty(*query.shape[:2], grid, heads)
    return query.new_empty(query.shape), k.new_empty(k.shape), table, torch.empty_like(table)


def _attention_context(ctx, inputs, output):
    query, k, _, _, y, x, ctx.backend = inputs
    ctx.save_for_backward(output, query, k, y, x)


def _attention_gradient(ctx, grad):
    out, query, k, y, x = ctx.saved_tensors
    return *attention_backward(grad, out, query, k, y, x, ctx.backend), None, None, None


register_gradient(attention, Gradient(_attention_gradient, _attention_context))


@operator
def attend_linear(attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor, backend: str) -> Tensor:
    """See :meth:`clit_basicsr.ops.backends.contract.Kernels.attend_linear`."""
    return backends.kernels(backend).attend_linear(attention, v, weight, y, x)


@register_fake(attend_linear)
def _(attention, v, weight, y, x, backend):
    _check_scattered(attention, v, y, x)
    return attention.new_empty(*attention.shape[:2], weight.shape[0])


@operator
def attend_linear_backward(
    grad: Tensor, attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return backends.kernels(backend).attend_linear_backward(grad.contiguous(), attention, v, weight, y, x)


@register_fake(attend_linear_backward)
def _(grad, attention, v, weight, y, x, backend):
    return attention.new_empty(attention.shape), v.new_empty(v.shape), weight.new_empty(weight.shape)


def _attend_linear_context(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _attend_linear_gradient(ctx, grad):
    return *attend_linear_backward(grad, *ctx.saved_tensors, ctx.backend), None, None, None


register_gradient(attend_linear, Gradient(_attend_linear_gradient, _attend_linear_context))


@operator
def upsampled_conv(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_index: Tensor,
    row_weight: Tensor,
    col_index: Tensor,
    col_weight: Tensor,
    backend: str,
) -> Tensor:
    """See :meth:`clit_basicsr.ops.backends.contract.Kernels.upsampled_conv`."""
    return backends.kernels(backend).upsampled_conv(z, weight, bias, (row_index, row_weight), (col_index, col_weight))


@register_fake(upsampled_conv)
def _(z, weight, bias, row_index, row_weight, col_index, col_weight, backend):
    check(z.dim() == 4 and z.shape[3] == weight.shape[1], lambda: f'{z.shape=} {weight.shape=}')
    return z.new_empty(z.shape[0], row_index.shape[0], col_index.shape[0], weight.shape[0])


@operator
def upsampled_conv_backward(
    grad: Tensor,
    z: Tensor,
    weight: Tensor,
    row_index: Tensor,
    row_weight: Tensor,
    col_index: Tensor,
    col_weight: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return backends.kernels(backend).upsampled_conv_backward(
        grad.contiguous(), z, weight, (row_index, row_weight), (col_index, col_weight)
    )


@register_fake(upsampled_conv_backward)
def _(grad, z, weight, row_index, row_weight, col_index, col_weight, backend):
    return z.new_empty(z.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _upsampled_conv_context(ctx, inputs, output):
    z, weight, _, *taps, ctx.backend = inputs
    ctx.save_for_backward(z, weight, *taps)


def _upsampled_conv_gradient(ctx, grad):
    return *upsampled_conv_backward(grad, *ctx.saved_tensors, ctx.backend), None, None, None, None, None


register_gradient(upsampled_conv, Gradient(_upsampled_conv_gradient, _upsampled_conv_context))


@operator
def dense_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: Tensor,
    bias: Tensor,
    rows: list[Tensor],
    cols: list[Tensor],
    backend: str,
) -> Tensor:
    """See :meth:`clit_basicsr.ops.backends.contract.Kernels.dense_linear`; rows and cols are the fields of an Axis."""
    return backends.kernels(backend).dense_linear(q, k, v, packed, bias, tuple(rows), tuple(cols))


@register_fake(dense_linear)
def _(q, k, v, packed, bias, rows, cols, backend):
    check(q.shape == k.shape == v.shape, lambda: f'{q.shape=} {k.shape=} {v.shape=}')
    return q.new_empty(q.shape[0], rows[0].shape[0], cols[0].shape[0], bias.shape[0])


@operator
def dense_linear_runs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: Tensor,
    bias: Tensor,
    rows: list[Tensor],
    cols: list[Tensor],
    runs: list[Tensor],
    backend: str,
) -> Tensor:
    """See :meth:`clit_basicsr.ops.backends.contract.Kernels.dense_linear_runs`."""
    row_run, col_run = runs
    return backends.kernels(backend).dense_linear_runs(
        q, k, v, packed, bias, tuple(rows), tuple(cols), (row_run, col_run)
    )


@register_fake(dense_linear_runs)
def _(q, k, v, packed, bias, rows, cols, runs, backend):
    check(
        q.shape == k.shape == v.shape and v.shape[1:3] == (runs[0].shape[0], runs[1].shape[0]),
        lambda: f'{q.shape=} {k.shape=} {v.shape=} {[run.shape for run in runs]}',
    )
    return q.new_empty(q.shape[0], rows[0].shape[0], cols[0].shape[0], bias.shape[0])


def _check_scattered(queries: Tensor, maps: Tensor, y: Tensor, x: Tensor) -> None:
    check(
        queries.shape[:2] == y.shape == x.shape and maps.shape[0] == queries.shape[0],
        lambda: f'{queries.shape=} {maps.shape=} {y.shape=} {x.shape=}',
    )


def _root(n: int) -> int:
    return next(g for g in range(1, 100) if g * g == n)


# Under autocast the kernels compute in single precision: on the CPU nothing else is faster, and attention weights need
# it. The CUDA kernels calculate so in any case and take autocast's type, except for what the list names.
_SINGLE = {'bias_y', 'bias_x', 'bias', 'row_weight', 'col_weight', 'rows', 'cols'}


def _autocast_cuda(op):
    names = [argument.name for argument in op._schema.arguments]

    def cast(value, dtype):
        if isinstance(value, list):
            return [cast(one, dtype) for one in value]
        eligible = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if eligible else value

    def kernel(*args):
        dtype = torch.get_autocast_dtype('cuda') if args[-1] == 'cuda' else torch.float32
        with torch.autocast('cuda', enabled=False):
            return op(*(cast(a, torch.float32 if n in _SINGLE else dtype) for n, a in zip(names, args, strict=True)))

    return kernel


for _op in (attention, attend_linear, upsampled_conv, dense_linear, dense_linear_runs):
    register_autocast(_op, 'cpu', torch.float32)
    library.impl(_op, _autocast_cuda(_op), 'AutocastCUDA')
for _op in (attention_backward, attend_linear_backward, upsampled_conv_backward):
    register_autocast(_op, 'cpu', torch.float32)  # `backward` within autocast: on the CPU it runs in the same thread
