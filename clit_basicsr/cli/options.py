"""From the command line to the dictionary that the host's pipelines work on, instead of the host's parse_options."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import random
import sys
from collections.abc import Callable
from os import path as osp
from typing import Any

import clit_basicsr  # noqa: F401  before the host is imported
from clit_basicsr import weights
from clit_basicsr.base import console
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.ranks import on_first_rank
from clit_basicsr.cli.check_names import check_place_of_file
from clit_basicsr.cli.check_options import Checked, check_options, check_structure, dataset_class
from clit_basicsr.cli.orphans import end_with_launcher
from clit_basicsr.hosts.basicsr import experiment
from clit_basicsr.hosts.basicsr.plugin import complete_options
from clit_basicsr.hosts.basicsr.stopping import OrderlyStop
from clit_basicsr.pictures.networks import find_checkpoint
from clit_basicsr.report import missing_sets


def run_pipeline(name: str, opt: dict, args: argparse.Namespace, watch: Callable[[Any], None] | None = None) -> dict:
    """Runs the host's `train_pipeline` or `test_pipeline` in the working directory.

    Everything that can be rejected is rejected before the host takes control, and so before any file is made.

    Args:
        opt: The option file with `--force_yml` applied; changed in place.
        watch: Called with the model that the host has built, before it is used.

    Returns:
        dict: The options as the host has had them.
    """
    host: Any = importlib.import_module(f'basicsr.{name}')
    checked = Checked([], {})

    def parse_options(root_path: str, is_train: bool) -> tuple[dict, argparse.Namespace]:
        return complete(opt, args, root_path, is_train, checked), args

    def build_model(opt: dict) -> Any:
        model = hosts_build(opt)
        stop.watch(model)
        if watch is not None:
            watch(model)
        return model

    def build_dataset(opt: dict) -> Any:
        return checked.dataset(opt) or hosts_dataset(opt)

    def get_root_logger(*args: Any, **kwargs: Any) -> logging.Logger:
        logger = hosts_logger(*args, **kwargs)
        for handler in logger.handlers:
            if console.is_quiet() and type(handler) is logging.StreamHandler:
                handler.setLevel(logging.WARNING)  # the log file has everything
        return logger

    names = ('parse_options', 'build_model', 'build_dataset', 'get_root_logger')
    _, hosts_build, hosts_dataset, hosts_logger = hosts = [getattr(host, name) for name in names]
    for name_in_host, ours in zip(names, (parse_options, build_model, build_dataset, get_root_logger), strict=True):
        setattr(host, name_in_host, ours)
    stop = OrderlyStop()
    try:
        with stop if name == 'train' else contextlib.nullcontext():
            getattr(host, f'{name}_pipeline')(os.getcwd())
    except KeyboardInterrupt as interrupted:  # without a message where the host or torch has raised it
        raise KeyboardInterrupt(*interrupted.args or [stop.last_saved() if name == 'train' else '']) from None
    finally:
        for name_in_host, original in zip(names, hosts, strict=True):
            setattr(host, name_in_host, original)
    return opt


def complete(
    opt: dict, args: argparse.Namespace, root_path: str, is_train: bool, checked: Checked | None = None
) -> dict:
    """Checks the options and fills in what the host's parse_options fills in, and what is ours.

    Args:
        opt: The option file with `--force_yml` applied; changed in place.
        root_path: Where experiments/ or results/ are made.
        checked: Takes what the check has built.

    Raises:
        UserError: see `check_options`.
    """
    opt['is_train'], opt['auto_resume'], opt['dist'] = is_train, args.auto_resume, args.launcher != 'none'
    opt['path'] = {} if opt.get('path') is None else opt['path']
    check_structure(opt)
    if args.debug and not opt['name'].startswith('debug'):
        opt['name'] = 'debug_' + opt['name']
    set_num_gpu(opt)
    expand_paths(opt)
    if not is_train:
        skip_missing_sets(opt)
    set_output_folders(opt, root_path)
    if is_train:
        check_place_of_file(opt, osp.abspath(args.opt), opt['auto_resume'])
    check_options(opt, checked)
    start_processes(opt, args.launcher)
    on_first_rank(lambda: experiment.take(opt))
    if is_train:
        complete_options(opt)
    return opt


def set_num_gpu(opt: dict) -> None:
    import torch

    gpus = torch.cuda.device_count()
    if opt['num_gpu'] == 'auto':
        opt['num_gpu'] = gpus
    if opt['num_gpu'] > 0 and not gpus:
        raise UserError(f'num_gpu: {opt["num_gpu"]}, but torch finds no GPU; set num_gpu: 0 or auto')
    if opt['num_gpu'] > gpus and not opt['dist']:
        raise UserError(f'num_gpu: {opt["num_gpu"]}, but torch finds {gpus}; set num_gpu: auto or fewer')
    if opt['dist'] and gpus and not opt['num_gpu']:
        raise UserError('num_gpu: 0 with a launcher on a machine with GPUs: hide them with CUDA_VISIBLE_DEVICES=')


def expand_paths(opt: dict) -> None:
    for phase, dataset in opt['datasets'].items():
        dataset['phase'] = phase.split('_')[0]
        options = getattr(dataset_class(dataset), 'OPTIONS', None)
        if 'scale' in opt and options is None:  # the host's, as the host does
            dataset['scale'] = opt['scale']
        elif 'scale' in opt and 'scale' in options:
            dataset.setdefault('scale', opt['scale'])
        for key in ('dataroot_gt', 'dataroot_lq'):
            if isinstance(dataset.get(key), str):
                dataset[key] = osp.expanduser(dataset[key])
    for key, value in opt['path'].items():
        if isinstance(value, str) and ('resume_state' in key or 'pretrain_network' in key):
            opt['path'][key] = osp.expanduser(value)
    network = opt['path'].get('pretrain_network_g')
    if isinstance(network, str) and not osp.exists(network) and network in weights.names():
        opt['path']['pretrain_network_g'] = find_checkpoint(network)  # an experiment of that name comes first


def skip_missing_sets(opt: dict) -> None:
    missing = missing_sets.leave_out_missing_sets(opt)
    for line in missing_sets.describe(missing):
        print(f'basicsr: {line}', file=sys.stderr, flush=True)
    if missing:
        opt['missing_sets'] = missing


def set_output_folders(opt: dict, root_path: str) -> None:
    if not opt['is_train']:
        results = osp.join(root_path, 'results', opt['name'])
        opt['path'].update(results_root=results, log=results, visualization=osp.join(results, 'visualization'))
        return
    experiment = osp.join(root_path, 'experiments', opt['name'])
    opt['path'].update(
        experiments_root=experiment,
        models=osp.join(experiment, 'models'),
        training_states=osp.join(experiment, 'training_states'),
        log=experiment,
        visualization=osp.join(experiment, 'visualization'),
    )
    if 'debug' in opt['name']:
        if opt.get('val'):
            opt['val']['val_freq'] = 8
        opt['logger'].update(print_freq=1, save_checkpoint_freq=8)


def start_processes(opt: dict, launcher: str) -> None:
    """Joins the other processes of a distributed run, and seeds: every rank knows the same `manual_seed`."""
    import torch
    from basicsr.utils import set_random_seed
    from basicsr.utils.dist_util import get_dist_info, init_dist

    if opt['dist']:
        end_with_launcher()
        init_dist(launcher, **(opt.get('dist_params') or {}) if launcher == 'slurm' else {})
    else:
        if not console.is_quiet():
            print('Disable distributed.', file=sys.stderr, flush=True)
    opt['rank'], opt['world_size'] = get_dist_info()
    if opt.get('manual_seed') is None:
        seed = [random.randint(1, 10000)]
        if opt['dist']:  # the ranks share the order of images, which is drawn from it
            torch.distributed.broadcast_object_list(seed)
        opt['manual_seed'], opt['seed_drawn'] = seed[0], True
    set_random_seed(opt['manual_seed'] + opt['rank'])
