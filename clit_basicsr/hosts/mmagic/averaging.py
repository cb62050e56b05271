"""The moving average of weights as BasicSR computes it, for MMagic's EMAHook."""

from __future__ import annotations

import torch
from mmagic.registry import MODELS
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn


@MODELS.register_module()
class BasicSREMA(BaseAveragedModel):
    """``custom_hooks=[dict(type='EMAHook', ema_type='BasicSREMA', decay=0.999)]`` is ``train: {ema_decay: 0.999}``.

    mmengine's own average copies the weights at the first update, and rounds otherwise.

    Args:
        model: to be averaged.
        decay: of the average per iteration, in [0, 1).
        device: where the average is kept. Default: with the model.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, device: torch.device | None = None) -> None:
        super().__init__(model, device=device)
        self.decay = decay

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        averaged_param.mul_(self.decay).add_(source_param, alpha=1 - self.decay)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """An iteration; the first one too is averaged with the weights that the copy was made of.

        What a stage freezes is no longer averaged, as in ``CumulativeSRModel``.
        """
        source = dict(model.named_parameters())
        for name, averaged in self.avg_parameters.items():
            if source[name].requires_grad:
                self.avg_func(averaged.data, source[name].data.to(averaged.device), int(self.steps))
        for averaged, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            averaged.data.copy_(buffer.data)
        self.steps += 1
