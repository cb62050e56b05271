"""The values in a config of MMagic that the host takes as they come: what would end in a traceback, or be ignored."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.option_types import check_keys, check_number, check_type
from clit_basicsr.cli.check_options import check_tile
from clit_basicsr.data.scaled_pair_dataset import parse_scale
from clit_basicsr.hosts.mmagic.implicit_sr import check_train_options

LOG_LEVELS = ('CRITICAL', 'ERROR', 'WARNING', 'INFO', 'DEBUG')
CUMULATIVE = 'CumulativeTrainLoop'


def check_values(cfg: Any, training: bool) -> None:
    """Raises UserError upon the first value that cannot be used, with its key."""
    check_general(cfg)
    if cfg.model.get('type') == 'ImplicitSR':
        check_test_options(cfg.model.get('test_cfg') or {})
        check_train_options(cfg.model.get('train_cfg') or {})
    if training:
        check_loop(cfg.train_cfg)
        check_hooks(cfg)
        if cfg.train_cfg.get('type') == CUMULATIVE:
            check_wrapper(cfg.optim_wrapper)


def check_general(cfg: Any) -> None:
    randomness = cfg.get('randomness') or {}
    check_keys(randomness, 'randomness', [key for key in parameters(Runner.set_randomness) if key != 'self'])
    if randomness.get('seed') is not None:
        check_number(randomness['seed'], 'randomness:seed', 0, 2**32, whole=True)
    level = cfg.get('log_level')
    if level is not None and level not in LOG_LEVELS and not isinstance(level, int):
        raise UserError(f'log_level must be one of {", ".join(LOG_LEVELS)}, got {level!r}')


def check_test_options(options: dict) -> None:
    """``model.test_cfg`` of ImplicitSR; the model itself knows the names."""
    where = 'model:test_cfg'
    check_tile(options.get('tile'), f'{where}:tile')
    if options.get('scale') is not None:
        try:
            parse_scale(options['scale'])
        except UserError as error:
            raise UserError(f'{where}:{error}') from error
    check_type(options.get('self_ensemble', False), f'{where}:self_ensemble', bool | Literal['rotations'])


def check_loop(loop: dict) -> None:
    for key in ('val_interval', 'val_begin', 'nonfinite_limit'):
        if key in loop:
            check_number(loop[key], f'train_cfg:{key}', 1, whole=True)


def check_loader(loader: dict, where: str) -> None:
    """Sizes of a data loader, which torch would refuse with a traceback."""
    if loader.get('batch_size') is not None:
        check_number(loader['batch_size'], f'{where}:batch_size', 1, whole=True)
    check_number(loader.get('num_workers', 0), f'{where}:num_workers', 0, whole=True)
    if loader.get('persistent_workers') and not loader.get('num_workers'):
        raise UserError(f'{where}:persistent_workers needs num_workers above 0')


def check_hooks(cfg: Any) -> None:
    """Intervals, and what ``CheckpointHook`` hands on to the Runner, which refuses it at the first checkpoint."""
    hooks = cfg.get('default_hooks') or {}
    for name in ('checkpoint', 'logger'):
        hook = hooks.get(name)
        if isinstance(hook, dict) and 'interval' in hook and hook['interval'] != -1:
            check_number(hook['interval'], f'default_hooks:{name}:interval', 1, whole=True)
    hook = hooks.get('checkpoint', {'type': 'CheckpointHook'})  # mmengine's default, by epochs
    if not isinstance(hook, dict) or hook.get('type') != 'CheckpointHook':
        return
    known = [*parameters(CheckpointHook), *parameters(Runner.save_checkpoint), 'type', 'priority', '_scope_']
    check_keys(hook, 'default_hooks:checkpoint', [key for key in known if key not in ('self', 'kwargs')])
    if cfg.train_cfg.get('type') == CUMULATIVE and hook.get('by_epoch', True):
        raise UserError(
            'default_hooks:checkpoint:by_epoch must be False: the training is one epoch, so the only checkpoint would '
            'be that of its end'
        )


def check_wrapper(wrapper: dict) -> None:
    """Refuses learning rates, which are those of the stages alone."""
    if 'lr' in (wrapper.get('optimizer') or {}):
        raise UserError('optim_wrapper:optimizer:lr: each of train_cfg:stages has its own lr; leave this one out')
    if any(key.endswith('lr_mult') for key in keys_within(wrapper.get('paramwise_cfg'))):
        raise UserError('optim_wrapper:paramwise_cfg: each of train_cfg:stages has one lr for all; leave lr_mult out')
    if wrapper.get('type') == 'AmpOptimWrapper' and not torch.cuda.is_available():
        raise UserError('AmpOptimWrapper (--amp) needs a GPU: on the CPU, half precision would only take time')


def keys_within(block: Any) -> list[str]:
    """The keys of a block and of those in it."""
    if not isinstance(block, dict):
        return []
    return [str(key) for key in block] + [key for value in block.values() for key in keys_within(value)]


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)
