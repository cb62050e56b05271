"""The parts of an option file that go to classes of the host and of torch: what they would answer with a traceback.

Classes that are cheap to make and touch no file are made here once, as the host will make them.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import re
from typing import Any

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest
from clit_basicsr.base.option_types import check_block, check_keys, check_number, check_type, options_of

# What constructors raise of values that they do not take.
REFUSALS = (TypeError, ValueError, AssertionError, ZeroDivisionError)
SCHEDULERS = {
    'MultiStepLR': 'MultiStepRestartLR',
    'MultiStepRestartLR': 'MultiStepRestartLR',
    'CosineAnnealingRestartLR': 'CosineAnnealingRestartLR',
}
# Losses that are made of numbers alone; others load weights.
PLAIN_LOSSES = ('L1Loss', 'MSELoss', 'CharbonnierLoss')
MAX_SEED = 2**32 - 1_000_000  # numpy's limit, less the ranks that are added to it


def find(registry: Any, name: Any, where: str) -> Any:
    """The class or function of that name; UserError with the nearest name if there is none."""
    check_type(name, where, str)
    known = registry.keys()
    for candidate in (name, f'{name}_basicsr'):  # the host tries both
        if candidate in known:
            return registry.get(candidate)
    raise UserError(f'{where}: {name!r} is not known; the nearest is {nearest(name, known)!r}')


def type_of(block: Any, where: str) -> str:
    """The option ``type`` of a block."""
    check_type(block, where, dict)
    if block.get('type') is None:
        raise UserError(f'{where}:type is missing')
    check_type(block['type'], f'{where}:type', str)
    return block['type']


def check_host_blocks(opt: dict) -> None:
    """Optimizers, scheduler, losses, metrics and logger. Raises UserError, with the key."""
    if opt['is_train']:
        train = opt['train']
        stages = bool(train.get('stages'))
        for key, block in train.items():
            if key.startswith('optim_'):
                check_optimizer(block, f'train:{key}', stages)
            elif key.endswith('_opt') and block is not None:
                check_loss(block, f'train:{key}')
        for index, stage in enumerate(train.get('stages') or []):
            if stage.get('pixel_opt') is not None:
                check_loss(stage['pixel_opt'], f'train:stages:{index}:pixel_opt')
        if not stages:
            check_scheduler(train)
        check_logger(opt['logger'], opt['name'])
    check_metrics((opt.get('val') or {}).get('metrics'))


def check_optimizer(block: Any, where: str, stages: bool) -> None:
    import torch

    from clit_basicsr.hosts.basicsr.models import find_optimizer

    kind = type_of(block, where)
    options = {key: value for key, value in block.items() if key != 'type'}
    if stages and 'lr' in options:
        raise UserError(f'{where}:lr: each of train:stages has its own lr; leave this one out')
    if not stages:
        if options.get('lr') is None:
            raise UserError(f'{where}:lr is missing')
        check_type(options['lr'], f'{where}:lr', float)
        if options['lr'] <= 0:
            raise UserError(f'{where}:lr must be above 0, got {options["lr"]!r}')
    try:
        cls = find_optimizer(kind, options)
        cls([torch.zeros(1, requires_grad=True)], **{'lr': 0.1, **options})
    except REFUSALS as error:
        raise UserError(f'{where}: {error}') from error


def check_scheduler(train: dict) -> None:
    import torch
    from basicsr.models import lr_scheduler

    where = 'train:scheduler'
    kind = type_of(train.get('scheduler'), where) if train.get('scheduler') is not None else None
    if kind is None:
        raise UserError(f'{where} is missing: a block such as {{type: MultiStepLR, milestones: [250000], gamma: 0.5}}')
    if kind not in SCHEDULERS:
        raise UserError(f'{where}:type: {kind!r} is not known; the nearest is {nearest(kind, SCHEDULERS)!r}')
    cls = getattr(lr_scheduler, SCHEDULERS[kind])
    options = {key: value for key, value in train['scheduler'].items() if key != 'type'}
    known, required = options_of(cls)
    lists = dict.fromkeys(('milestones', 'periods', 'restarts', 'restart_weights'), list)
    known = {key: lists.get(key, float) for key in known if key not in ('optimizer', 'last_epoch')}
    check_block(options, where, known, [key for key in required if key != 'optimizer'])
    for key in lists.keys() & options.keys():
        for value in options[key]:
            check_number(value, f'{where}:{key}', 0)
    if options.get('periods') is not None and sum(options['periods']) < train['total_iter']:
        raise UserError(
            f'{where}:periods: they end at iteration {sum(options["periods"])}, before train:total_iter, '
            f'{train["total_iter"]}'
        )
    try:
        cls(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), **options)
    except REFUSALS as error:
        raise UserError(f'{where}: {error}') from error


def check_loss(block: Any, where: str) -> None:
    from basicsr.utils.registry import LOSS_REGISTRY

    kind = type_of(block, where)
    cls = find(LOSS_REGISTRY, kind, f'{where}:type')
    options = {key: value for key, value in block.items() if key != 'type'}
    known, required = options_of(cls)
    check_block(options, where, known, required)
    if options.get('reduction', 'mean') not in ('mean', 'sum'):
        raise UserError(f'{where}:reduction must be mean or sum, got {options["reduction"]!r}')
    if kind in PLAIN_LOSSES:
        try:
            cls(**options)
        except REFUSALS as error:
            raise UserError(f'{where}: {error}') from error


def check_metrics(metrics: Any) -> None:
    from basicsr.utils.registry import METRIC_REGISTRY

    if metrics is None:
        return
    check_type(metrics, 'val:metrics', dict)
    for name, block in metrics.items():
        where = f'val:metrics:{name}'
        metric = find(METRIC_REGISTRY, type_of(block, where), f'{where}:type')
        parameters = inspect.signature(metric).parameters
        if 'img' not in parameters:
            raise UserError(f'{where}:type: {block["type"]} does not measure pictures; use calculate_psnr_float')
        of_each_set = ('protocol', 'scale') if getattr(metric, 'takes_float_tensors', False) else ()
        given = ('img', 'img2', 'kwargs', *of_each_set)
        known = [key for key in parameters if key not in given]
        check_keys(block, where, ['type', 'better', *known])
        for key in known:
            if parameters[key].default is inspect.Parameter.empty and block.get(key) is None:
                raise UserError(f'{where}:{key} is missing')
        if 'crop_border' in block:
            check_number(block['crop_border'], f'{where}:crop_border', 0, whole=True)
        choices: dict[str, tuple] = {
            'better': ('higher', 'lower'),
            'input_order': ('HWC', 'CHW'),
            'test_y_channel': (True, False),
        }
        for key, values in choices.items():
            if key in block and block[key] not in values:
                words = ' or '.join(str(value).lower() if isinstance(value, bool) else value for value in values)
                raise UserError(f'{where}:{key} must be {words}, got {block[key]!r}')


def check_logger(block: dict, name: str) -> None:
    check_type(block['use_tb_logger'], 'logger:use_tb_logger', bool)
    wandb = block.get('wandb')
    if wandb is not None:
        check_type(wandb, 'logger:wandb', dict)
        check_keys(wandb, 'logger:wandb', ('project', 'resume_id'))
    if 'debug' in name:  # the host then uses neither
        return
    needed = {'tensorboard': 'logger:use_tb_logger'} if block['use_tb_logger'] else {}
    if wandb and wandb.get('project'):
        if not block['use_tb_logger']:
            raise UserError('logger:wandb needs logger:use_tb_logger: true')
        needed['wandb'] = 'logger:wandb'
    for module, key in needed.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f'{key}: the package {module} is not installed; pip install {module}, or leave it out')


def check_seed(seed: Any) -> None:
    if seed is not None:
        check_type(seed, 'manual_seed', int)
        check_number(seed, 'manual_seed', 0, MAX_SEED)


def check_pair(sample: dict, dataset: dict, where: str) -> None:
    """Raises UserError unless GT and LQ of a training sample have sizes of that scale, which must divide gt_size."""
    if dataset['phase'] != 'train' or not all(hasattr(sample.get(key), 'shape') for key in ('lq', 'gt')):
        return
    lq, gt = (tuple(sample[key].shape[-2:]) for key in ('lq', 'gt'))
    scale, gt_size = dataset.get('scale'), dataset.get('gt_size')
    # Not seen in the sample where its crop lies at two borders of the image.
    if isinstance(scale, int | float) and isinstance(gt_size, int | float) and scale and gt_size % scale:
        raise UserError(f'{where}:gt_size: {gt_size} is not divisible by the scale, {scale}')
    if isinstance(scale, int | float) and gt != tuple(side * scale for side in lq):
        raise UserError(
            f'{where}: GT patches of {gt[0]}x{gt[1]} and LQ patches of {lq[0]}x{lq[1]} pixels are not of scale '
            f'{scale}; gt_size must be a multiple of scale'
        )


def check_parts_of_host_model(model: type, opt: dict) -> None:
    """Networks and optimizers that a model of the host looks up, as its source says: the host gives a KeyError."""
    for cls in model.__mro__:
        if not cls.__module__.startswith('basicsr.'):
            continue
        source = inspect.getsource(cls)
        for key in re.findall(r"opt\['(network_\w+)'\]", source):
            if opt.get(key) is None:
                raise UserError(f'{key} is missing; {model.__name__} needs it')
        for key in re.findall(r"train_opt\['(optim_\w+)'\]", source) if opt['is_train'] else ():
            if opt['train'].get(key) is None:
                raise UserError(f'train:{key} is missing; {model.__name__} needs it')


def check_host_dataset(cls: type, dataset: dict, where: str) -> None:
    """Makes a data set of the host, and its first sample where that costs no more than reading an image.

    Raises:
        UserError: an option is missing, or the data set refuses one.
    """
    needs_files = (*REFUSALS, OSError, IndexError, AttributeError)
    try:
        made: Any = cls(copy.deepcopy(dataset))
        if not len(made):
            raise UserError(f'{where}: there are no images')
        if (dataset.get('io_backend') or {}).get('type') != 'lmdb':  # which may be open once in a process
            check_pair(made[0], dataset, where)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f'{where}:{error.args[0]} is missing; {cls.__name__} of BasicSR needs it') from error
    except needs_files as error:
        text = ' '.join(str(error).split())[:200] or type(error).__name__
        raise UserError(f'{where}: {cls.__name__} of BasicSR cannot use these options: {text}') from error
