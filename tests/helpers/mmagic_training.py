"""A training in three stages that both hosts carry out, and a rank of it that notes what it does."""

import json
import os

import torch

from clit_basicsr import cli
from clit_basicsr.models.loss_guard import LossGuard
from helpers.training import changed

ITERS = 20  # of each stage
SCALES = [[[[1, 4]]], [[[1, 4]], [[1, 4], [1, 4]]], [[[1, 2], [1, 2], [1, 2]], [[1, 3], [1, 2]]]]
STAGES = [
    {'branches': n, 'iters': ITERS, 'lr': lr, 'scales': scales, **more}
    for n, lr, scales, more in zip(
        (1, 2, 3),
        (0.01, 0.004, 0.002),
        SCALES,
        (
            {'milestones': [7, 15], 'warmup_iter': 5},
            {'milestones': [1, 3], 'freeze': ['encoder'], 'init': 'copy', 'pixel_opt': {'type': 'MSELoss'}},
            {'eta_min': 1e-5, 'warmup_iter': 2, 'min_size': 52, 'lq_size': 10},
        ),
        strict=True,
    )
]


def options(**changes):
    opt = changed(train__stages=STAGES, val__val_freq=25, logger__save_checkpoint_freq=10, **changes)
    opt['datasets']['val_x2']['scale'] = 3.4
    opt['datasets']['train']['dataset_enlarge_ratio'] = 100
    opt['val']['metrics'] = {'psnr': {'type': 'calculate_psnr_float'}}
    return opt


def command(folder, *arguments):
    """A rank that notes its losses and learning rates in steps-<rank>.json."""

    def work(rank):
        os.chdir(folder)
        torch.set_num_threads(1)
        losses, rates = [], []
        accepts, step = LossGuard.accepts, torch.optim.Adam.step
        LossGuard.accepts = lambda self, loss, *rest: (losses.append(loss.item()), accepts(self, loss, *rest))[1]
        torch.optim.Adam.step = lambda self, *rest: (
            rates.append([group['lr'] for group in self.param_groups]),
            step(self, *rest),
        )[1]
        code = cli.main(arguments)
        (folder / f'steps-{rank}.json').write_text(json.dumps([losses, rates]))
        return code

    return work
