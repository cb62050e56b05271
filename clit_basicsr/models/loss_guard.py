"""A loss that is not finite: the step is skipped, and a training in which it persists is ended."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clit_basicsr.base.errors import UserError

DEFAULT_LIMIT = 3
NAMED_FILES = 4


class LossGuard:
    """Counts iterations in a row whose loss is NaN or infinite.

    On the CPU such an iteration does not change the weights. On a GPU the loss of every iteration would have to be
    waited for; there it is looked at when it is logged, and by then the weights are spoiled, so the first one ends the
    training.

    Args:
        limit: iterations in a row that end the training.
        models: folder of the run's checkpoints, for the message.
        distributed: whether several processes train together; they then agree.
    """

    def __init__(self, limit: int, models: str, distributed: bool = False) -> None:
        self.limit, self.models, self.distributed = limit, models, distributed
        self.count = 0

    def accepts(self, loss: Tensor, iteration: int, files: Sequence[str]) -> bool:
        """Whether the weights may be changed by this loss; True on a GPU.

        Args:
            files: of the batch's images, for the message.

        Raises:
            UserError: the limit is reached.
        """
        if loss.device.type != 'cpu':
            return True
        flag = loss.detach().isfinite().all().int()
        if self.distributed:
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        finite = bool(flag)
        self.count = 0 if finite else self.count + 1
        if self.count >= self.limit:
            raise UserError(self._message(iteration, f'{self.count} iterations in a row', files))
        return finite

    def check_logged(self, loss: float, iteration: int, files: Sequence[str]) -> None:
        """For GPUs: ends the training at a logged loss that is not finite.

        Raises:
            UserError: it is not.
        """
        if not torch.tensor(loss).isfinite():
            raise UserError(self._message(iteration, 'this iteration or an earlier one', files))

    def _message(self, iteration: int, when: str, files: Sequence[str]) -> str:
        shown = ', '.join(files[:NAMED_FILES]) + (', ...' if len(files) > NAMED_FILES else '')
        return (
            f'iteration {iteration:,}: the loss is not finite (NaN or infinite) in {when}, the last with the images '
            f'{shown}; {last_checkpoint(self.models)}. Lower the learning rate, or look at these images.'
        )


def last_checkpoint(models: str) -> str:
    """What to say of the newest numbered checkpoint in a folder."""
    names = re.compile(r'(?:net_\w+|iter)_(\d+)\.pth')  # of BasicSR, of MMagic
    saved = {int(match[1]): path for path in Path(models).glob('*.pth') if (match := names.fullmatch(path.name))}
    return f'the last good checkpoint is {saved[max(saved)]}' if saved else 'no checkpoint has been saved'
