"""How the package enters BasicSR: its registries know our classes, and its options what our classes need.

BasicSR has no entry points: a plugin's modules must be imported before its pipelines look names up; a data set sees its
own block of the option file alone; and ``total_iter`` is read where our option files have stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from clit_basicsr.base.ranks import on_first_rank
from clit_basicsr.hosts.basicsr import experiment

# The folders with classes for the host's registries, and the suffixes of their files, as the host has them.
FOLDERS = (('archs', '_arch'), ('data', '_dataset'), ('models', '_model'), ('metrics', ''))


def register() -> None:
    """Imports the files whose classes stand in the host's registries. BasicSR must be imported."""
    for folder, suffix in FOLDERS:
        package = import_module(f'clit_basicsr.{folder}')
        for module in iter_modules(package.__path__):
            if module.name.endswith(suffix):
                import_module(f'{package.__name__}.{module.name}')


def is_ours(cls: Any) -> bool:
    return cls.__module__.split('.')[0] == 'clit_basicsr'


def complete_options(opt: dict) -> None:
    """Fills in what the host does not know: how long the stages are, and what our data set needs of the whole file.

    Args:
        opt: the options of a training, seeded and checked; changed in place.

    Raises:
        UserError: the stages are wrong.
    """
    from basicsr.utils.registry import DATASET_REGISTRY

    from clit_basicsr.data.schedule import TrainingPlan

    train = opt['train']
    stages, start_stage = train.get('stages'), train.get('start_stage', 1)
    if stages:
        train['total_iter'] = TrainingPlan.parse(train).total_iter
    dataset = opt['datasets'].get('train')
    if dataset and dataset.get('type') in DATASET_REGISTRY and is_ours(DATASET_REGISTRY.get(dataset['type'])):
        dataset.update(manual_seed=opt['manual_seed'], stages=stages, start_stage=start_stage)


def completing(parse_options: Callable) -> Callable:
    """The host's ``parse_options``, as its pipelines call it, with our options completed."""

    @functools.wraps(parse_options)
    def wrapper(root_path: str, is_train: bool = True) -> tuple[dict, Any]:
        opt, args = parse_options(root_path, is_train=is_train)
        opt['path'].pop('untrained_network_g', None)  # an option of the command's check; the host makes a folder of it
        on_first_rank(lambda: experiment.take(opt))
        if is_train:
            complete_options(opt)
        return opt, args

    return wrapper
