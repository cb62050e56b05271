"""The names of the precisions in which a network computes. Without torch: the command line names them too."""

from clit_basicsr.base.errors import UserError

HALF = ('bf16', 'fp16')
PRECISIONS = ('fp32', 'tf32', *HALF)


def check_precision(name: str | None, where: str) -> None:
    """Raises UserError, naming the option ``where``, for an unknown precision."""
    if name is not None and name not in PRECISIONS:
        raise UserError(f'{where} must be one of {", ".join(PRECISIONS)}, got {name!r}.')


def check_speed(name: str | None, device: str, where: str) -> None:
    """Raises UserError for half precision on the CPU, where it is slower than single precision.

    Its kernels compute in single precision, so that everything is converted back and forth. The context manager
    :func:`clit_basicsr.archs.precision.in_precision` computes all the same.

    Args:
        device: 'cpu' or 'cuda'.
        where: the option, as the user writes it.
    """
    if name in HALF and device == 'cpu':
        raise UserError(
            f'{where}: {name} is for GPUs; on the CPU the kernels compute in single precision, which is faster; '
            'use fp32 or leave the option out.'
        )


def check_training_speed(name: str | None, device: str, where: str) -> None:
    """The same for training, where convolutions take half of the time: bf16 pays on processors that multiply in it.

    Args:
        device: 'cpu' or 'cuda'.
        where: the option, as the user writes it.

    Raises:
        UserError: this processor has no such instructions, or the type is another one.
    """
    if name == 'bf16' and device == 'cpu':
        from torch.cpu import _is_amx_tile_supported, _is_avx512_bf16_supported

        if _is_avx512_bf16_supported() or _is_amx_tile_supported():
            return
        raise UserError(
            f'{where}: bf16 is for GPUs and for processors with AVX512-BF16 or AMX, which this one lacks; '
            'use fp32 or leave the option out.'
        )
    check_speed(name, device, where)
