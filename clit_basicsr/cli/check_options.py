"""What can be rejected in an option file before anything is created on disk.

The host's parts are checked as far as it would otherwise stop with a traceback, or make a folder out of a misspelt key;
the parts that are ours (a model, network or dataset of this package) are checked key by key.
"""

from __future__ import annotations

from os import path as osp
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.file_kinds import SUFFIXES
from clit_basicsr.base.messages import nearest
from clit_basicsr.base.option_types import check_block, check_keys, check_number, check_type, joined
from clit_basicsr.base.precisions import check_speed, check_training_speed
from clit_basicsr.cli.check_host_blocks import (
    check_host_blocks,
    check_host_dataset,
    check_parts_of_host_model,
    check_seed,
    find,
    type_of,
)
from clit_basicsr.cli.check_names import check_name, check_sets, check_top_keys
from clit_basicsr.cli.check_networks import check_network, drop_options_of_other_decoders
from clit_basicsr.data.schedule import TrainingPlan
from clit_basicsr.hosts.basicsr.plugin import is_ours
from clit_basicsr.pictures.networks import find_checkpoint
from clit_basicsr.report.missing_sets import what_is_wrong

STRUCTURE = {'name': str, 'model_type': str, 'datasets': dict, 'path': dict}
PATH_KEYS = ('resume_state', 'ignore_resume_networks', 'untrained_network_g')
PATH_PREFIXES = ('pretrain_network', 'param_key', 'strict_load')
FILLED_IN = ('is_train', 'auto_resume', 'dist', 'missing_sets', 'warnings')
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
        'nonfinite_limit': int,
        'variation_weight': float | None,
        'grad_clip': float | None,
    },
    'val': {
        'val_freq': float,
        'save_img': bool,
        'suffix': str | None,
        'pbar': bool,
        'metrics': dict | None,
        'self_ensemble': bool | Literal['rotations'],
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


def check_structure(opt: dict) -> None:
    """The blocks that the host reads before anything else can be checked."""
    for key, kind in STRUCTURE.items():
        if opt.get(key) is None:
            raise UserError(f'{key} is missing')
        check_type(opt[key], key, kind)
    check_name(opt['name'], 'name')
    if opt.get('num_gpu') != 'auto':
        check_type(opt.get('num_gpu'), 'num_gpu', int)
        check_number(opt['num_gpu'], 'num_gpu', 0)
    check_seed(opt.get('manual_seed'))
    for key in FOLDERS:
        if key in opt['path']:
            raise UserError(f'path:{key} cannot be chosen: it follows from name; leave it out')
    if not opt['is_train'] and not opt['datasets']:
        raise UserError('datasets is empty; name at least one test set')
    if opt.get('network_g') is None:
        raise UserError('network_g is missing')
    optional: dict[str, Any] = {'dist_params': dict, 'find_unused_parameters': bool, 'val': dict}
    for key, kind in optional.items():
        if opt.get(key) is not None:
            check_type(opt[key], key, kind)
    for key, block in opt.items():
        if key.startswith('network_'):
            check_type(block, key, dict)
    phases = ('train', 'val') if opt['is_train'] else ('val', 'test')
    for phase, dataset in list(opt['datasets'].items()):
        if phase.split('_')[0] not in phases:
            hint = '; it is an option file of a training' if phase == 'train' else ''
            raise UserError(
                f'datasets:{phase}: here the names are {" or ".join(phases)}, with _anything after it{hint}'
            )
        if dataset is None:  # as --force_yml leaves a set out
            del opt['datasets'][phase]
            continue
        check_type(dataset, f'datasets:{phase}', dict)
        for key in ('name', 'type'):
            if dataset.get(key) is None:
                raise UserError(f'datasets:{phase}:{key} is missing')
            check_type(dataset[key], f'datasets:{phase}:{key}', str)
    check_sets(opt)
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
            check_number(opt[block].get(key), f'{block}:{key}', 1, whole=True)  # !!float 5e3 is the host's style
    opt['logger'].setdefault('use_tb_logger', False)
    if opt.get('val') is not None:
        opt['val'].setdefault('save_img', False)
    train = opt['train']
    if not train.get('stages'):
        check_number(train.get('total_iter'), 'train:total_iter', 1, whole=True)
    for key, least, below, whole in (
        ('ema_decay', 0, 1, False),
        ('warmup_iter', -1, float('inf'), True),
        ('nonfinite_limit', 1, float('inf'), True),
        ('variation_weight', 0, float('inf'), False),
        ('grad_clip', 0, float('inf'), False),
    ):
        if train.get(key) is not None:
            check_number(train[key], f'train:{key}', least, below, whole)
    if train.get('optim_g') is None:
        raise UserError('train:optim_g is missing')


def check_options(opt: dict, checked: Checked | None = None) -> None:
    """All that follows once output folders and phases are filled in.

    Args:
        checked: Takes what is built.

    Raises:
        UserError: It names the key, as `--force_yml` would write it, and the nearest valid one.
    """
    from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

    from clit_basicsr.cli.check_weights import check_weights

    checked = Checked([], {}) if checked is None else checked
    model = find(MODEL_REGISTRY, opt['model_type'], 'model_type')
    check_top_keys({key: None for key in opt if key not in FILLED_IN}, is_ours(model))
    for key, block in list(opt.items()):
        if key.startswith('network_'):
            network = find(ARCH_REGISTRY, type_of(block, key), f'{key}:type')
            drop_options_of_other_decoders(opt, key, network)
            checked.networks[key] = check_network(block, key, network)
    for phase, dataset in opt['datasets'].items():
        check_dataset(dataset, f'datasets:{phase}', checked)
    check_stages(opt)
    if hasattr(model, 'check_options'):
        model.check_options(opt)
    check_host_blocks(opt)
    check_paper_row(opt.get('paper_row'))
    resuming = check_paths(opt, is_ours(model))
    check_weights(opt, checked.networks.get('network_g'), resuming)
    if not is_ours(model):
        check_parts_of_host_model(model, opt)
        check_fits_host_model(opt)
        return
    for name, options in OUR_BLOCKS.items():
        check_block(opt.get(name) or {}, name, options)
    check_validation(opt.get('val') or {})
    check_precisions(opt)
    if checked.networks.get('network_g') is not None:
        model.check_network(opt, checked.networks['network_g'])
    if opt['is_train'] and not is_ours(dataset_class(opt['datasets']['train'])):
        raise UserError(
            f'datasets:train:type: {opt["datasets"]["train"]["type"]} gives whole pictures, but {model.__name__} '
            'trains on pixels drawn from them; take RandomScaleDataset'
        )


def check_precisions(opt: dict) -> None:
    """Raises UserError for half precision in a run on the CPU where it does not pay."""
    device = 'cuda' if opt['num_gpu'] else 'cpu'
    if opt['is_train']:
        check_training_speed((opt.get('train') or {}).get('precision'), device, 'train:precision')
    check_speed((opt.get('val') or {}).get('precision'), device, 'val:precision')


def check_fits_host_model(opt: dict) -> None:
    """A model of the host trains on whole pictures, and gives its metrics rounded ones."""
    from basicsr.utils.registry import METRIC_REGISTRY

    for name, block in ((opt.get('val') or {}).get('metrics') or {}).items():
        if getattr(METRIC_REGISTRY.get(block['type']), 'takes_float_tensors', False):
            raise UserError(
                f'val:metrics:{name}:type: {block["type"]} measures float images, which {opt["model_type"]} does not '
                'provide; use calculate_psnr or calculate_ssim, or model_type: ImplicitSRModel'
            )
    for key in ('upscale', 'scale'):
        own = opt['network_g'].get(key)
        if own is not None and opt.get('scale') is not None and own != opt['scale']:
            raise UserError(f'scale: {opt["scale"]}, but network_g:{key} is {own}; they must be the same')
    train = opt['datasets'].get('train')
    if train and getattr(dataset_class(train), 'takes_batch_numbers', False):
        raise UserError(
            f'datasets:train:type: {train["type"]} gives single pixels, but {opt["model_type"]} trains on whole '
            'pictures; use model_type: ImplicitSRModel, or a data set of BasicSR'
        )


def check_validation(val: dict) -> None:
    check_tile(val.get('tile'), 'val:tile')
    if val.get('suffix') is not None:
        check_name(val['suffix'], 'val:suffix')


def check_tile(tile: Any, where: str) -> None:
    if tile is not None:
        if not isinstance(tile, dict):
            raise UserError(f'{where} must be a block of tile_size and tile_pad, got {tile!r}')
        check_keys(tile, where, ('tile_size', 'tile_pad'))
        check_number(tile.get('tile_size'), f'{where}:tile_size', 1, whole=True)
        check_number(tile.get('tile_pad', 32), f'{where}:tile_pad', 0, whole=True)


def check_dataset(dataset: dict, where: str, checked: Checked) -> None:
    cls = dataset_class(dataset)
    if is_ours(cls):
        check_block(dataset, where, cls.OPTIONS)  # type: ignore[attr-defined]
        for key in ('dataroot_gt', 'scale'):
            if key in cls.OPTIONS and dataset.get(key) is None:  # type: ignore[attr-defined]
                raise UserError(f'{where}:{key} is missing')
    if dataset['phase'] == 'train':
        check_loader(dataset, where)
    backend = dataset.get('io_backend')
    if backend is not None:
        check_type(backend, f'{where}:io_backend', dict)
        if is_ours(cls):
            check_keys(backend, f'{where}:io_backend', ('type',))
        type_of(backend, f'{where}:io_backend')
    lmdb = (backend or {}).get('type') == 'lmdb'
    for key in ('dataroot_gt', 'dataroot_lq'):
        root = dataset.get(key)
        if root is None:
            continue
        check_type(root, f'{where}:{key}', str)
        if not osp.isdir(root):
            raise UserError(f'{where}:{key}: {what_is_wrong(root)}')
        for file in ('data.mdb', 'meta_info.txt') if lmdb else ():
            if not osp.isfile(osp.join(root, file)):
                raise UserError(
                    f'{where}:{key}: {root} has no {file}, so it is not an LMDB of BasicSR or of basicsr prepare; '
                    f'make one (basicsr prepare {root} -o NAME.lmdb), or set io_backend: {{type: disk}}'
                )
    listed = dataset.get('meta_info_file')
    if isinstance(listed, str) and not osp.isfile(listed):
        raise UserError(f'{where}:meta_info_file: {listed} does not exist')
    if is_ours(cls):
        try:
            checked.datasets.append((dict(dataset), cls(dataset)))  # finds the images, reads none
        except UserError as error:
            raise UserError(f'{where}: {error}') from error
    else:
        check_host_dataset(cls, dataset, where)


def check_loader(dataset: dict, where: str) -> None:
    for key, least, most in (('batch_size_per_gpu', 1, 4096), ('num_worker_per_gpu', 0, 256)):
        if key not in dataset:
            raise UserError(f'{where}:{key} is missing')
        check_type(dataset[key], joined(where, key), int)
        check_number(dataset[key], joined(where, key), least, most + 1)
    check_type(dataset.get('dataset_enlarge_ratio', 1), f'{where}:dataset_enlarge_ratio', float)
    if dataset.get('dataset_enlarge_ratio', 1) <= 0:
        raise UserError(f'{where}:dataset_enlarge_ratio must be above 0, got {dataset["dataset_enlarge_ratio"]}')
    if dataset.get('persistent_workers') and not dataset['num_worker_per_gpu']:
        raise UserError(f'{where}:persistent_workers: true needs num_worker_per_gpu of at least 1')
    if dataset.get('prefetch_mode') not in (None, 'cpu', 'cuda'):
        raise UserError(f'{where}:prefetch_mode must be ~, cpu or cuda, got {dataset["prefetch_mode"]!r}')
    if dataset.get('prefetch_mode') == 'cuda' and dataset.get('pin_memory') is not True:
        raise UserError(f'{where}:prefetch_mode: cuda needs pin_memory: true')


def check_paper_row(row: Any) -> None:
    from clit_basicsr.report.paper_tables import paper_psnr

    if row is None:
        return
    check_type(row, 'paper_row', str)
    if row not in paper_psnr():
        raise UserError(f"paper_row: the paper's tables have no {row!r}; the nearest is {nearest(row, paper_psnr())!r}")


def check_stages(opt: dict) -> None:
    train = opt.get('train') or {}
    if not train.get('stages'):
        return
    try:
        total = TrainingPlan.parse(train).total_iter
    except UserError as error:
        raise UserError(f'train:stages: {error}') from error
    for key in ('scheduler', 'warmup_iter'):
        if train.get(key) is not None:
            raise UserError(f'train:{key}: each of train:stages has its own; leave this one out')
    if train.get('total_iter') not in (None, total):
        raise UserError(
            f'train:total_iter: {train["total_iter"]}, but the stages have {total} iterations; leave it out'
        )


def check_paths(opt: dict, ours: bool) -> bool:
    """Unknown keys, which the host would make folders of, and checkpoints that are not there.

    Returns:
        Whether a training is resumed.
    """
    networks = [key.removeprefix('network_') for key in opt if key.startswith('network_')]
    known = [*PATH_KEYS, *(f'{prefix}_{name}' for prefix in PATH_PREFIXES for name in networks)]
    lenient = [key for key in opt['path'] if not ours and key.startswith(PATH_PREFIXES)]
    check_keys(
        {key: None for key in opt['path'] if key not in FOLDERS}, 'path', [*known, 'pretrain_network_encoder', *lenient]
    )
    resuming = opt['auto_resume'] and any(Path(opt['path'].get('training_states', '')).glob('*.state'))
    for key, value in opt['path'].items():
        if key.startswith('strict_load') or key == 'untrained_network_g':
            check_type(value, f'path:{key}', bool)
        if key == 'ignore_resume_networks':
            check_type(value, f'path:{key}', list | None)
        if key.startswith(('param_key', 'pretrain_network', 'resume_state')):
            check_type(value, f'path:{key}', str | None)
        named = key.startswith('pretrain_network') or (key == 'resume_state' and not opt['auto_resume'])
        if named and value is not None and not resuming and not osp.isfile(value):
            opt['path'][key] = trained_here(key, value)
    return resuming or bool(opt['is_train'] and opt['path'].get('resume_state'))


def trained_here(key: str, name: str) -> str:
    """The checkpoint of an experiment that ``path:pretrain_network_g`` names. Raises UserError if there is none."""
    what = f'{name} is a folder, not a file' if osp.isdir(name) else f'{name} does not exist'
    if key == 'pretrain_network_g' and not name.endswith(SUFFIXES):
        try:
            return find_checkpoint(name)
        except UserError as error:
            what = str(error).removeprefix('model: ')
    raise UserError(f'path:{key}: {what}')
