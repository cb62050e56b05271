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
            'take fp32 or leave the option out.'
        )
