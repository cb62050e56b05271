"""In which precision a network computes: an option of training, of validation and of ``upscale``."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.precisions import check_precision
from clit_basicsr.ops.geometry.coords import WITHOUT_DOUBLE

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


@contextmanager
def in_precision(name: str | None, device: torch.device) -> Iterator[None]:
    """Computes in this precision within a ``with`` block. Parameters and what is summed up stay in single precision.

    Args:
        name: 'fp32': single precision throughout; 'tf32': products in TF32 where the GPU has it; 'bf16', 'fp16':
            torch's autocast; None: as torch is set, which by itself takes TF32 for convolutions alone.
        device: where the network is.

    Raises:
        UserError: the precision is not known.
    """
    check_precision(name, 'precision')
    if name is None:
        yield
        return
    cublas, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cublas.allow_tf32, cudnn.allow_tf32
    try:
        cublas.allow_tf32 = cudnn.allow_tf32 = name != 'fp32'
        with torch.autocast(device.type, DTYPES.get(name), enabled=name in DTYPES):
            yield
    finally:
        cublas.allow_tf32, cudnn.allow_tf32 = before


def own_precision(net: nn.Module) -> AbstractContextManager:
    """Autocast to the type of a network's parameters where that is half precision (``net.half()``, ``net.bfloat16()``):
    positions, which half precision is too coarse for, stay in single precision. Otherwise nothing.
    """
    like = next(net.parameters(), None)
    if like is None or like.dtype not in DTYPES.values():
        return nullcontext()
    return torch.autocast(like.device.type, like.dtype)


class SingleFrequencies(nn.Module):
    """Mixed into what has a buffer ``freqs``: ``net.half()`` would round frequencies, the upper ones by whole waves."""

    freqs: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        before = self.freqs
        super()._apply(fn, *args, **kwargs)
        if self.freqs.dtype in DTYPES.values():
            self.freqs = before.to(self.freqs.device)
        return self


def check_double(net: nn.Module, device: torch.device) -> None:
    """Raises UserError for a network (``needs_double``) that computes in a precision which the device lacks."""
    if device.type in WITHOUT_DOUBLE and getattr(net, 'needs_double', False):
        raise UserError(
            f'{type(net).__name__} computes in double precision too, which Apple GPUs lack; use the device cpu.'
        )


def at_least_single(t: Tensor) -> Tensor:
    """The tensor itself, or in single precision where it is in half precision."""
    return t.float() if t.dtype in DTYPES.values() else t


def convolution_layout(lq: Tensor) -> Tensor:
    """An image (B, 3, h, w) in the memory layout that suits the convolutions, which keep the layout they find.

    Channels last, as tensor cores and the local attention read: in half precision, and on processors, where inference
    takes up to 15 % less time. Not with gradients there: those of the weights of large images then take twice as long.
    """
    on_cpu = lq.device.type == 'cpu' and not torch.is_grad_enabled()
    suits = on_cpu or torch.is_autocast_enabled(lq.device.type)
    # A copy: torch regards a batch of one, permuted from (h, w, 3), as channels last whatever its first stride is, and
    # convolutions then choose another algorithm.
    return lq.clone(memory_format=torch.channels_last) if suits else lq
