"""Which device computes."""

from typing import TYPE_CHECKING

from clit_basicsr.base.errors import UserError

if TYPE_CHECKING:
    import torch

HELP = 'cpu, cuda, cuda:1 ..., mps (untested); default: an NVIDIA GPU if there is one'


def choose_device(name: str | None = None) -> 'torch.device':
    """The device of that name, or the best one here: an NVIDIA GPU or the CPU.

    An Apple GPU (mps) is used only if it is named: this package has never run on one.

    Raises:
        UserError: the device does not exist here.
    """
    import torch

    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        if not isinstance(name, str | torch.device):
            raise RuntimeError
        device = torch.device(name)
        if device.type not in ('cpu', 'cuda', 'mps'):
            raise RuntimeError
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {name!r} cannot be used here; choose cpu, cuda, cuda:N or mps.') from error
    return device
