"""The names of the precisions in which a network computes. Without torch: the command line names them too."""

from clit_basicsr.base.errors import UserError

HALF = ('bf16', 'fp16')
PRECISIONS = ('fp32', 'tf32', *HALF)


def check_precision(name: str | None, where: str) -> None:
    """Raises UserError, naming the option ``where``, for an unknown precision."""
    if name is not None and name not in PRECISIONS:
        raise UserError(f'{where} must be one of {", ".join(PRECISIONS)}, got {name!r}.')
