"""Whether a training may be resumed from a checkpoint of MMagic: the rules of ``basicsr train``, in MMagic's names."""

from __future__ import annotations

from mmengine.dist import get_world_size

from clit_basicsr.base.errors import UserError
from clit_basicsr.hosts.basicsr.changes import check_changes, kept_options

OPTIONS = 'training_options'  # in a checkpoint
# What messages of BasicSR call it -> what it is here.
NAMES = {
    'datasets:train:batch_size_per_gpu': 'train_dataloader:batch_size',
    'datasets:train': 'train_dataloader:dataset',
    'train:stages': 'train_cfg:stages',
    'train:start_stage': 'train_cfg:start_stage',
    'train:variation_weight': 'model:train_cfg:variation_weight',
    'train:pixel_opt': 'model:pixel_loss',
    'train:ema': 'custom_hooks:EMAHook',
    'val:tile': 'model:test_cfg:tile',
    'train:optim_g': 'optim_wrapper:optimizer',
    'network_g': 'model:generator',
    'world_size': 'the number of processes',
    'under another name, or without --auto_resume': 'with another --work-dir',
    'training state': 'checkpoint',
}


def training_options(dataloader: dict, train: dict, network_g: dict, optimizer: list[dict]) -> dict:
    """What a checkpoint keeps of a training, laid out as an option file of BasicSR.

    Args:
        dataloader: ``train_dataloader`` of the config.
        train: ``{stages, start_stage}`` of its ``train_cfg``, and what else shapes the weights: ``pixel_opt`` (the
            loss), ``variation_weight`` and ``ema``, the averages' options.
        network_g: type and options of the network.
        optimizer: the options of each of its groups, without learning rates.
    """
    data = {**dataloader['dataset'], 'batch_size_per_gpu': dataloader['batch_size']}
    groups = [{key: value for key, value in group.items() if 'lr' not in key} for group in optimizer]
    return kept_options(
        {
            'world_size': get_world_size(),
            'datasets': {'train': data},
            'network_g': network_g,
            'train': {**train, 'optim_g': groups},
        }
    )


def check_resumable(checkpoint: dict) -> None:
    """Raises UserError unless a checkpoint has what mmengine's Runner reads of it to resume."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict) or not {'epoch', 'iter'} <= meta.keys() or 'message_hub' not in checkpoint:
        raise UserError(
            'the checkpoint to resume from is not one that MMagic saved in a training; to begin with its weights, give '
            'it as load_from, without resume'
        )


def check_same_training(checkpoint: dict, now: dict) -> list[str]:
    """A line for every option that differs from those that a checkpoint was saved with.

    Args:
        now: from :func:`training_options`.

    Raises:
        UserError: the optimizer's state is missing; network, batch, processes or a finished stage differ.
    """
    if 'optimizer' not in checkpoint:
        raise UserError(
            'the checkpoint to resume from has no state of the optimizer (save_optimizer=False?); resume from another, '
            'or begin with its weights: load_from, without resume'
        )
    if not checkpoint.get(OPTIONS):  # of earlier versions
        return []
    try:
        lines = check_changes(checkpoint[OPTIONS], now, checkpoint['meta']['iter'])
    except UserError as error:
        raise UserError(in_names_of_mmagic(str(error))) from error
    return [in_names_of_mmagic(line) for line in lines]


def in_names_of_mmagic(text: str) -> str:
    for name, here in NAMES.items():
        text = text.replace(name, here)
    return text
