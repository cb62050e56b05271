"""Multi-layer perceptrons without gradients on the CPU: one kernel runs a block of rows through all layers in the
cache. Elsewhere plain torch computes the same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.library import register_fake

from clit_basicsr.ops import backends
from clit_basicsr.ops.backends import cpu_backend
from clit_basicsr.ops.backends.contract import Call
from clit_basicsr.ops.registration import check, operator

# As the kernel numbers them.
ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.GELU: 2}


def runs_compiled(x: Tensor) -> bool:
    """Whether the kernel serves decoders over such features: on the CPU, in single or double precision, without
    gradients and autocast, where backend 'cpu' is selected.
    """
    if x.device.type != 'cpu' or torch.is_grad_enabled() or torch.is_autocast_enabled('cpu'):
        return False
    return backends.serves(cpu_backend.NAME, Call(x))


class Layers(NamedTuple):
    """A perceptron as the kernel reads it. Packed for one call and forgotten: training changes weights in place.

    Attributes:
        packed: of each layer the bias, filled up with zeros to whole panels, and the weight (O / panel, K, panel).
        widths: of the rows of ``x`` and of each layer's output.
        activation: see :data:`ACTIVATIONS`.
        residual: every hidden layer but the first adds its input; the rows of ``x`` are appended to every layer's
            input.
    """

    packed: Tensor
    widths: list[int]
    activation: int = ACTIVATIONS[nn.ReLU]
    residual: bool = False

    def __call__(
        self, x: Tensor, base: Tensor | None = None, index: Tensor | None = None, activate_first: bool = False
    ) -> Tensor:
        """Rows (..., K) -> (..., O).

        Args:
            base, index: what the first layer's products are added to: rows (M, O1), and which one for each row of
                ``x`` (...).
            activate_first: whether ``x`` passes through the activation before the first layer.
        """
        rows, at = x.flatten(0, -2), None if index is None else index.flatten()
        out = mlp(rows, self.packed, self.widths, base, at, self.activation, activate_first, self.residual)
        return out.unflatten(0, x.shape[:-1])

    def texture(self, maps: Tensor, index: Tensor, dx: Tensor, phase: Tensor) -> Tensor:
        """The perceptron over the textures of LTE: amplitude * [cos, sin](pi (y dx_y + x dx_x + phase)).

        Args:
            maps: (M, 4 n), rows of 2 n amplitudes, of the cosines and of the sines, and n frequencies of y and of x.
            index: (B, Q), the row for each query.
            dx: (B, Q, 2).
            phase: (B, Q or 1, n).

        Returns:
            Tensor: (B, Q, O).
        """
        arguments = (t.flatten(0, 1) for t in (index, dx, phase))
        return texture_mlp(maps, *arguments, self.packed, self.widths, self.activation).unflatten(0, index.shape)


def pack(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], activation: int = 1, residual: bool = False
) -> Layers:
    """Linear layers of weights (O, K) and biases (O,) or None, the activation between them."""
    given = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    widths = [weights[0].shape[1], *(len(w) for w in weights)]
    return Layers(pack_layers(list(weights), given), widths, activation, residual)


def compiled(layers: nn.Sequential, like: Tensor) -> Callable[[Tensor], Tensor]:
    """The fastest function that computes ``layers``, rows (..., K) -> (..., O): the kernel or ``layers`` themselves.

    Args:
        layers: linear layers with one kind of activation between them; the first may be the activation.
        like: features of the type and on the device of the rows.
    """
    if not runs_compiled(like):
        return layers
    packed = pack_sequential(layers)
    first = not isinstance(layers[0], nn.Linear)
    return lambda rows: packed(rows, activate_first=first)


def pack_sequential(layers: nn.Sequential) -> Layers:
    """:func:`pack` of the linear layers in a sequence, with the activation between them."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    kinds = {type(layer) for layer in layers} - {nn.Linear}
    activation = ACTIVATIONS[kinds.pop()] if kinds else 0
    return pack([layer.weight for layer in linear], [layer.bias for layer in linear], activation)


@operator
def pack_layers(weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """:attr:`Layers.packed` from weights (O, K) and biases (O,)."""
    backends.kernels(cpu_backend.NAME)
    packed, at = weights[0].new_empty(_packed_size(weights)), 0
    for weight, bias in zip(weights, biases, strict=True):
        torch.ops.clit_cpu.pack_layer(weight.contiguous(), bias.contiguous(), at, packed)
        at += _packed_size([weight])
    return packed


@register_fake(pack_layers)
def _(weights, biases):
    backends.kernels(cpu_backend.NAME)
    return weights[0].new_empty(_packed_size(weights))


def _packed_size(weights: list[Tensor]) -> int:
    panel = torch.ops.clit_cpu.panel(weights[0].dtype == torch.float64)
    return sum(-(-w.shape[0] // panel) * panel * (w.shape[1] + 1) for w in weights)


@operator
def mlp(
    x: Tensor,
    packed: Tensor,
    widths: list[int],
    base: Tensor | None,
    index: Tensor | None,
    activation: int,
    activate_first: bool,
    residual: bool,
) -> Tensor:
    """See :class:`Layers`."""
    backends.kernels(cpu_backend.NAME)
    _check(x, packed, widths, base, index)
    out = x.new_empty(x.shape[0], widths[-1])
    base = x.new_empty(0, 0) if base is None else base
    index = torch.empty(0, dtype=torch.int64) if index is None else index
    _check_index(index, base)
    tensors = (t.contiguous() for t in (x, packed, torch.tensor(widths), base, index))
    torch.ops.clit_cpu.mlp(*tensors, activation, activate_first, residual, out)
    return out


@register_fake(mlp)
def _(x, packed, widths, base, index, activation, activate_first, residual):
    _check(x, packed, widths, base, index)
    return x.new_empty(x.shape[0], widths[-1])


@operator
def texture_mlp(
    maps: Tensor, index: Tensor, dx: Tensor, phase: Tensor, packed: Tensor, widths: list[int], activation: int
) -> Tensor:
    """See :meth:`Layers.texture`; index (N,), dx (N, 2), phase (a divisor of N, n)."""
    backends.kernels(cpu_backend.NAME)
    _check_texture(maps, index, dx, phase, packed, widths)
    _check_index(index, maps)
    out = maps.new_empty(index.shape[0], widths[-1])
    tensors = (t.contiguous() for t in (maps, index, dx, phase, packed, torch.tensor(widths)))
    torch.ops.clit_cpu.texture_mlp(*tensors, activation, out)
    return out


@register_fake(texture_mlp)
def _(maps, index, dx, phase, packed, widths, activation):
    _check_texture(maps, index, dx, phase, packed, widths)
    return maps.new_empty(index.shape[0], widths[-1])


def _check_texture(maps: Tensor, index: Tensor, dx: Tensor, phase: Tensor, packed: Tensor, widths: list[int]) -> None:
    check(
        maps.dtype == packed.dtype == dx.dtype == phase.dtype and maps.dtype in (torch.float32, torch.float64),
        lambda: f'{maps.dtype=} {packed.dtype=} {dx.dtype=} {phase.dtype=}',
    )
    check(
        maps.shape[1] == 2 * widths[0] == 4 * phase.shape[1] and index.shape == dx.shape[:1],
        lambda: f'{maps.shape=} {index.shape=} {dx.shape=} {phase.shape=} {widths=}',
    )


def _check_index(index: Tensor, rows: Tensor) -> None:
    """The kernel reads what it is given, whatever lies there."""
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(rows)):
        raise IndexError(f'rows {int(index.min())} ... {int(index.max())} of {len(rows)} are asked for')


def _check(x: Tensor, packed: Tensor, widths: list[int], base: Tensor | None, index: Tensor | None) -> None:
    check(
        x.dtype == packed.dtype and x.dtype in (torch.float32, torch.float64) and x.shape[1] == widths[0],
        lambda: f'{x.dtype=} {packed.dtype=} {x.shape=} {widths=}',
    )
    if base is not None:
        rows, products = cast(Tensor, index), base
        check(
            products.dtype == x.dtype and products.shape[1] == widths[1] and rows.shape == x.shape[:1],
            lambda: f'{products.dtype=} {products.shape=} {rows.shape=} {x.shape=} {widths=}',
        )
