"""What can be rejected in an option file before anything is created on disk.

The host's parts are checked as far as it would otherwise stop with a traceback, or make a folder out of a misspelt key;
the parts that are ours (a model, network or dataset of this package) are checked key by key.
"""

from __future__ import annotations

import copy
from os import path as osp
from pathlib import Path
from typing import Any, NamedTuple

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest
from clit_basicsr.base.option_types import check_block, check_keys, check_type, joined, options_of
from clit_basicsr.data.schedule import TrainingPlan
from clit_basicsr.hosts.basicsr.plugin import is_ours
from clit_basicsr.report.missing_sets import what_is_wrong

STRUCTURE = {'name': str, 'model_type': str, 'datasets': dict, 'path': dict}
PATH_KEYS = ('resume_state', 'ignore_resume_networks')
PATH_PREFIXES = ('pretrain_network', 'param_key', 'strict_load')
FOLDERS = ('experiments_root', 'results_root', 'models', 'training_states', 'log', 'visualization')  # filled in

# The blocks of an option file around a model of ours; what the model cannot use it refuses itself, with the reason.
OUR_BLOCKS: dict[str, dict[str, Any]] = {
    'train': {
        'total_iter': float,
        'warmup_iter': int,
        'ema_decay': float,
        'optim_g': dict,
        'scheduler': dict,
        'pixel_opt': dict,
        'perceptual_opt': dict | None,
        'gan_opt': dict | None,
        'ldl_opt': dict | None,
        'stages': list,
        'start_stage': int,
        'precision': str | None,
    },
    'val': {
        'val_freq': float,
        'save_img': bool,
        'suffix': str | None,
        'pbar': bool,
        'metrics': dict | None,
        'self_ensemble': bool,
        'tile': dict | None,
        'precision': str | None,
    },
    'logger': {'print_freq': float, 'save_checkpoint_freq': float, 'use_tb_logger': bool, 'wandb': dict | None},
}


class Checked(NamedTuple):
    """What a check has built, so that it is not built again.

    Attributes:
        datasets: options and data set; the options as they were.
        networks: by the name of their block, on the meta device, of a shape but without values.
    """

    datasets: list[tuple[dict, Any]]
    networks: dict[str, Any]

    def dataset(self, opt: dict) -> Any:
        """The data set that was built from the same options; None if there is none."""
        return next((dataset for options, dataset in self.datasets if options == opt), None)


def dataset_class(dataset: dict) -> type:
    from basicsr.utils.registry import DATASET_REGISTRY

    return find(DATASET_REGISTRY, dataset['type'], f'datasets: {dataset.get("name")}: type')


def find(registry: Any, name: str, where: str) -> Any:
    """The class or function of that name; UserError with the nearest name if there is none."""
    known = registry.keys()
    for candidate in (name, f'{name}_basicsr'):  # the host tries both
        if candidate in known:
            return registry.get(candidate)
    raise UserError(f'{where}: {name!r} is not known; the nearest is {nearest(name, known)!r}')


def check_structure(opt: dict) -> None:
    """The blocks that the host reads before anything else can be checked."""
    for key, kind in STRUCTURE.items():
        if opt.get(key) is None:
            raise UserError(f'{key} is missing')
        check_type(opt[key], key, kind)
    if opt.get('num_gpu') != 'auto':
        check_type(opt.get('num_gpu'), 'num_gpu', int)
    for key, block in opt.items():
        if key.startswith('network_'):
            check_type(block, key, dict)
    phases = ('train', 'val') if opt['is_train'] else ('val', 'test')
    for phase, dataset in opt['datasets'].items():
        check_type(dataset, f'datasets:{phase}', dict)
        if phase.split('_')[0] not in phases:
            raise UserError(f'datasets:{phase}: here the names are {" or ".join(phases)}, with _anything after it')
        for key in ('name', 'type'):
            if not isinstance(dataset.get(key), str):
                raise UserError(f'datasets:{phase}:{key} is missing')
    if opt['is_train']:
        check_structure_of_training(opt)
    else:
        opt['val'] = {'save_img': False, 'suffix': None} | (opt.get('val') or {})


def check_structure_of_training(opt: dict) -> None:
    if 'train' not in opt['datasets']:
        raise UserError(f'datasets:train is missing (there are {", ".join(opt["datasets"])})')
    needed = {'train': (), 'logger': ('print_freq', 'save_checkpoint_freq')}
    if opt.get('val') is not None:
        needed['val'] = ('val_freq',)
    for block, keys in needed.items():
        check_type(opt.get(block), block, dict)
        for key in keys:
            check_type(opt[block].get(key), f'{block}:{key}', float)  # !!float 5e3 is the host's style
            if opt[block][key] < 1:
                raise UserError(f'{block}:{key} must be at least 1, got {opt[block][key]}')
    opt['logger'].setdefault('use_tb_logger', False)
    if opt.get('val') is not None:
        opt['val'].setdefault('save_img', False)
    if not opt['train'].get('stages'):
        check_type(opt['train'].get('total_iter'), 'train:total_iter', float)


def check_options(opt: dict, checked: Checked | None = None) -> None:
    """All that follows once output folders and phases are filled in.

    Args:
        checked: Takes what is built.

    Raises:
        UserError: It names the key, as `--force_yml` would write it, and the nearest valid one.
    """
    from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

    checked = Checked([], {}) if checked is None else checked
    model = find(MODEL_REGISTRY, opt['model_type'], 'model_type')
    for key, block in opt.items():
        if key.startswith('network_'):
            network = find(ARCH_REGISTRY, str(block.get('type')), f'{key}:type')
            checked.networks[key] = check_network(block, key, network)
    for phase, dataset in opt['datasets'].items():
        check_dataset(dataset, f'datasets:{phase}', checked)
    check_losses_and_metrics(opt)
    check_paper_row(opt.get('paper_row'))
    check_stages(opt)
    check_paths(opt, is_ours(model))
    if is_ours(model):
        for name, options in OUR_BLOCKS.items():
            check_block(opt.get(name) or {}, name, options)
        if hasattr(model, 'check_options'):
            model.check_options(opt)
        if checked.networks.get('network_g') is not None:
            model.check_network(opt, checked.networks['network_g'])


def check_network(block: dict, where: str, cls: type) -> Any:
    """Returns the network, built on the meta device; None for the host's."""
    if not is_ours(cls):
        return None
    options, required = options_of(cls)
    values = {key: value for key, value in block.items() if key != 'type'}
    check_block(values, where, options, required)
    if values.get('encoder') is not None:
        check_encoder(values['encoder'], joined(where, 'encoder'))
    try:  # what depends on several options only the network can check
        return build_without_values(cls, values)
    except (UserError, TypeError) as error:
        raise UserError(f'{where}: {error}') from error


def build_without_values(cls: type, options: dict) -> Any:
    """A network on the meta device; on the CPU if it reads values while it is built, as SwinIR does."""
    import torch

    try:
        with torch.device('meta'):
            return cls(**copy.deepcopy(options))
    except (RuntimeError, NotImplementedError):
        return cls(**copy.deepcopy(options))


def check_encoder(block: dict, where: str) -> None:
    """Keys as `build_encoder` takes them, types as the host's network has them."""
    from clit_basicsr.archs.encoders import COMMON_OPTIONS, ENCODERS, encoder_options

    kind = block.get('type')
    if kind not in ENCODERS:
        raise UserError(f'{where}:type: {kind!r} is not a known encoder; the nearest is {nearest(kind, ENCODERS)!r}')
    hints = options_of(ENCODERS[kind].host)[0] | options_of(ENCODERS[kind])[0] | COMMON_OPTIONS
    check_block(block, where, {'type': str} | {key: hints.get(key, Any) for key in encoder_options(kind)})


def check_dataset(dataset: dict, where: str, checked: Checked) -> None:
    cls = dataset_class(dataset)
    if is_ours(cls):
        check_block(dataset, where, cls.OPTIONS)  # type: ignore[attr-defined]
        for key in ('dataroot_gt', 'scale'):
            if key in cls.OPTIONS and dataset.get(key) is None:  # type: ignore[attr-defined]
                raise UserError(f'{where}:{key} is missing')
    if dataset['phase'] == 'train':
        check_loader(dataset, where)
    lmdb = (dataset.get('io_backend') or {}).get('type') == 'lmdb'
    for key in ('dataroot_gt', 'dataroot_lq'):
        root = dataset.get(key)
        if not isinstance(root, str):
            continue
        if not osp.isdir(root):
            raise UserError(f'{where}:{key}: {what_is_wrong(root)}')
        for file in ('data.mdb', 'meta_info.txt') if lmdb else ():
            if not osp.isfile(osp.join(root, file)):
                raise UserError(f'{where}:{key}: {root} has no {file}; is it an LMDB made by BasicSR?')
    listed = dataset.get('meta_info_file')
    if isinstance(listed, str) and not osp.isfile(listed):
        raise UserError(f'{where}:meta_info_file: {listed} does not exist')
    if is_ours(cls):
        try:
            checked.datasets.append((dict(dataset), cls(dataset)))  # finds the images, reads none
        except UserError as error:
            raise UserError(f'{where}: {error}') from error


def check_loader(dataset: dict, where: str) -> None:
    for key, least in (('batch_size_per_gpu', 1), ('num_worker_per_gpu', 0)):
        if key not in dataset:
            raise UserError(f'{where}:{key} is missing')
        check_type(dataset[key], joined(where, key), int)
        if dataset[key] < least:
            raise UserError(f'{where}:{key} must be at least {least}, got {dataset[key]}')
    check_type(dataset.get('dataset_enlarge_ratio', 1), f'{where}:dataset_enlarge_ratio', float)
    if dataset.get('dataset_enlarge_ratio', 1) <= 0:
        raise UserError(f'{where}:dataset_enlarge_ratio must be above 0, got {dataset["dataset_enlarge_ratio"]}')
    if dataset.get('persistent_workers') and not dataset['num_worker_per_gpu']:
        raise UserError(f'{where}:persistent_workers: true needs num_worker_per_gpu of at least 1')
    if dataset.get('prefetch_mode') not in (None, 'cpu', 'cuda'):
        raise UserError(f'{where}:prefetch_mode must be ~, cpu or cuda, got {dataset["prefetch_mode"]!r}')
    if dataset.get('prefetch_mode') == 'cuda' and dataset.get('pin_memory') is not True:
        raise UserError(f'{where}:prefetch_mode: cuda needs pin_memory: true')


def check_losses_and_metrics(opt: dict) -> None:
    from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY

    for key, block in (opt.get('train') or {}).items():
        if key.endswith('_opt') and isinstance(block, dict) and 'type' in block:
            find(LOSS_REGISTRY, block['type'], f'train:{key}:type')
    for name, block in ((opt.get('val') or {}).get('metrics') or {}).items():
        check_type(block, f'val:metrics:{name}', dict)
        find(METRIC_REGISTRY, str(block.get('type')), f'val:metrics:{name}:type')


def check_paper_row(row: Any) -> None:
    from clit_basicsr.report.paper_tables import paper_psnr

    if row is not None and row not in paper_psnr():
        raise UserError(f"paper_row: the paper's tables have no {row!r}; the nearest is {nearest(row, paper_psnr())!r}")


def check_stages(opt: dict) -> None:
    train = opt.get('train') or {}
    if not train.get('stages'):
        return
    try:
        total = TrainingPlan.parse(train).total_iter
    except UserError as error:
        raise UserError(f'train:stages: {error}') from error
    if train.get('total_iter') not in (None, total):
        raise UserError(
            f'train:total_iter: {train["total_iter"]}, but the stages have {total} iterations; leave it out'
        )


def check_paths(opt: dict, ours: bool) -> None:
    """Unknown keys, which the host would make folders of, and checkpoints that are not there."""
    networks = [key.removeprefix('network_') for key in opt if key.startswith('network_')]
    known = [*PATH_KEYS, *(f'{prefix}_{name}' for prefix in PATH_PREFIXES for name in networks)]
    lenient = [key for key in opt['path'] if not ours and key.startswith(PATH_PREFIXES)]
    check_keys(
        {key: None for key in opt['path'] if key not in FOLDERS}, 'path', [*known, 'pretrain_network_encoder', *lenient]
    )
    resuming = opt['auto_resume'] and any(Path(opt['path'].get('training_states', '')).glob('*.state'))
    for key, value in opt['path'].items():
        named = key.startswith('pretrain_network') or (key == 'resume_state' and not opt['auto_resume'])
        if named and isinstance(value, str) and not resuming and not osp.isfile(value):
            raise UserError(f'path:{key}: {value} does not exist')
