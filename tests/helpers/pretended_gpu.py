"""Tensors that claim to be on a GPU: operations that would fail there because of mixed devices fail here too.

:class:`OnGpu` wraps a CPU tensor. Within :func:`pretended_gpu` torch creates such tensors where a CUDA
device is requested, rejects operations that mix both kinds, and records where the CPU would wait for the GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from clit_basicsr.ops import operators
from clit_basicsr.ops.registration import functions

# Our operators; their implementations run as they would on a GPU.
OURS = {op: functions[op] for op in vars(operators).values() if isinstance(op, torch._ops.OpOverload)}
aten = torch.ops.aten
# Operations whose result, or its size, the CPU must know.
WAITING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.item.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.repeat_interleave.self_Tensor,
}


class OnGpu(Tensor):
    inner: Tensor

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f'OnGpu({self.inner})'

    device = property(lambda self: torch.device('cuda', 0))
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in OURS:
            with Mode.active:  # torch disabled it for the call that led here
                return OURS[func](*args, **kwargs)
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        others = [t for t in tensors if not isinstance(t, OnGpu)]
        # Zeros for inputs without a gradient, which torch itself creates, here on the CPU.
        zeros = func is aten.cat.default and not any(t.any() for t in others)
        if func is not aten.copy_.default and not zeros and any(t.dim() > 0 for t in others):
            raise RuntimeError(f'{func}: tensors on two devices; on the CPU are {[tuple(t.shape) for t in others]}')
        masked = func is aten.index.Tensor and any(t.dtype == torch.bool for t in tensors[1:])
        if func in WAITING or masked or (func is aten.copy_.default and others):
            Mode.active.waits.append(str(func))
        inner_args, inner_kwargs = tree_map_only(OnGpu, lambda t: t.inner, (args, kwargs))
        if func is aten.mm.dtype:  # CUDA alone has it
            func, inner_args = aten.mm.default, [t.to(inner_args[2]) for t in inner_args[:2]]
        # A wrapper would hide from torch that its tensor is lazily conjugated.
        out = tree_map_only(Tensor, lambda t: OnGpu(t.resolve_conj()), func(*inner_args, **inner_kwargs))
        return return_and_correct_aliasing(func, args, kwargs, out)


class Mode(TorchFunctionMode):
    """Does what torch's bindings would do with a CUDA device before they notice that none exists."""

    active: 'Mode | None' = None

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.copies = 0  # from the CPU to the GPU, with or without waiting

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, '__name__', '')
        if name in ('to', 'cpu', 'cuda') and isinstance(args[0], Tensor):
            return self.moved(args[0], name, list(args[1:]), kwargs)
        if name == 'type_as':
            return self.moved(args[0], 'to', [args[1]], {})
        if name == 'new_tensor' and isinstance(args[0], OnGpu):
            self.waits.append(name)
            return OnGpu(torch.tensor(args[1], dtype=kwargs.get('dtype', args[0].dtype)))
        if name in ('tolist', 'numpy') and isinstance(args[0], OnGpu):
            self.waits.append(name)
            return func(args[0].inner, *args[1:], **kwargs)
        if name == 'embedding_bag' and isinstance(args[0], OnGpu):  # it would create offsets itself, outside the mode
            kwargs['offsets'] = OnGpu(torch.arange(0, args[0].numel(), args[0].shape[1]))
            args, kwargs['per_sample_weights'] = (args[0].flatten(), *args[1:]), kwargs['per_sample_weights'].flatten()
        if kwargs.get('device') is not None and torch.device(kwargs['device']).type == 'cuda':
            if name in ('tensor', 'as_tensor'):
                self.waits.append(name)
            kwargs['device'] = 'cpu'
            return tree_map_only(Tensor, OnGpu, func(*args, **kwargs))
        return func(*args, **kwargs)

    def moved(self, tensor, name, rest, kwargs):
        """``Tensor.to`` in all its forms."""
        non_blocking = kwargs.pop('non_blocking', False)
        device, dtype = kwargs.pop('device', None), kwargs.pop('dtype', None)
        for value in rest:
            if isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, (str, torch.device)):
                device = value
        device = name if name != 'to' else device or tensor.device
        kind = torch.device(device).type
        if kind == 'cuda' and not isinstance(tensor, OnGpu):
            self.copies += 1
            if not non_blocking:
                self.waits.append('to a GPU')
            tensor = OnGpu(tensor.detach().clone())
        elif kind == 'cpu' and isinstance(tensor, OnGpu):
            self.waits.append('to the CPU')
            tensor = tensor.inner.detach().clone()
        return tensor if dtype is None else torch.Tensor.to(tensor, dtype=dtype)


def backward(loss: Tensor) -> None:
    """``loss.backward()`` for both kinds of tensors, within the mode: torch's own disables it."""
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


@contextmanager
def pretended_gpu() -> Iterator[Mode]:
    with Mode() as mode:
        Mode.active = mode
        try:
            yield mode
        finally:
            Mode.active = None


def to_gpu(net: nn.Module) -> nn.Module:
    """The network with its parameters and buffers moved to the pretended GPU."""
    for module in net.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnGpu(parameter.detach().clone()))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = OnGpu(buffer.clone())
    return net
