"""What can be rejected in a config of MMagic before anything is created on disk: one line with the nearest name.

The blocks that are ours (a network, model, data set or loop of this package) are checked key by key; of the host's, the
names of the classes, and the keys of classes that take no others.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from mmagic import registry
from torch.utils.data import DataLoader

from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest
from clit_basicsr.base.option_types import check_block, check_keys, joined, options_of
from clit_basicsr.cli.check_mmagic_values import check_loader, check_values
from clit_basicsr.cli.check_networks import check_network
from clit_basicsr.data.schedule import TrainingPlan
from clit_basicsr.hosts.basicsr.plugin import is_ours
from clit_basicsr.hosts.mmagic.datasets import own_options
from clit_basicsr.hosts.mmagic.resume import in_names_of_mmagic
from clit_basicsr.models.implicit_sr_model import ImplicitSRModel
from clit_basicsr.report import missing_sets

PHASES = ('train', 'val', 'test')
# Top-level blocks of mmengine's Runner; a name close to one of them is taken for a slip.
RUNNER_KEYS = (
    *(f'{phase}_{part}' for phase in PHASES for part in ('dataloader', 'cfg')),
    *('model', 'val_evaluator', 'test_evaluator', 'optim_wrapper', 'param_scheduler', 'default_hooks', 'custom_hooks'),
    *('work_dir', 'load_from', 'resume', 'randomness', 'visualizer', 'env_cfg', 'log_processor', 'log_level'),
    *('default_scope', 'experiment_name', 'data_preprocessor', 'auto_scale_lr', 'launcher', 'model_wrapper_cfg'),
)
LIKELY_A_TYPO = 0.88
LOADER_KEYS = (
    *inspect.signature(DataLoader).parameters,
    *('num_batch_per_epoch', 'disable_subprocess_warning'),  # of mmengine
)
# What mmengine takes out of a block, or fills in, where it builds an object.
GIVEN = (
    *('runner', 'dataloader', 'evaluator', 'dataset', 'seed', 'model', 'module', 'params', 'type', '_scope_'),
    *('constructor', 'paramwise_cfg', 'priority'),
)


def check_config(cfg: Any, training: bool) -> None:
    """Raises UserError, with the key as ``--cfg-options`` would have it but with colons, upon the first mistake.

    Args:
        cfg: mmengine's Config.
        training: whether it is trained; else it is tested, and test sets that are not on this machine are taken out of
            it, and named.
    """
    if not training:
        skip_missing_sets(cfg)
    for key in cfg:
        near = nearest(key, RUNNER_KEYS, LIKELY_A_TYPO)
        if near and key not in RUNNER_KEYS:
            raise UserError(f'{key} is not a block of a config; the nearest one is {near}')
    if not isinstance(cfg.get('model'), dict):
        raise UserError('model is missing')
    for name in PHASES:
        check_phase(cfg, name, needed=name == ('train' if training else 'test'))
    check_object(cfg.model, 'model', registry.MODELS)
    net = check_generator(cfg.model)
    if isinstance(cfg.model.get('pixel_loss'), dict):
        check_object(cfg.model.pixel_loss, 'model:pixel_loss', registry.MODELS)
    for where, block, known in blocks(cfg, training):
        check_object(block, where, known)
    if training:
        check_plan(cfg)
    check_values(cfg, training)
    if net is not None and cfg.model.get('type') == 'ImplicitSR':
        check_use(cfg.model, net)


def skip_missing_sets(cfg: Any) -> None:
    """Takes those of several test sets whose folder is not there, and their evaluators, out of a config."""
    loaders, evaluators = cfg.get('test_dataloader'), cfg.get('test_evaluator')
    if not isinstance(loaders, list) or not isinstance(evaluators, list) or len(loaders) != len(evaluators):
        return
    sets = {number: loader.get('dataset') for number, loader in enumerate(loaders)}
    opt = {'datasets': {number: {'name': f'set {number}', **block} for number, block in sets.items() if block}}
    for line in missing_sets.describe(missing_sets.leave_out_missing_sets(opt)):
        print(f'basicsr: {line}', file=sys.stderr, flush=True)
    kept = [number for number, block in sets.items() if not block or number in opt['datasets']]
    cfg.test_dataloader, cfg.test_evaluator = [loaders[one] for one in kept], [evaluators[one] for one in kept]


def check_phase(cfg: Any, name: str, needed: bool) -> None:
    """Raises UserError unless what a phase needs is all there, or nothing of it where it is not needed."""
    keys = [f'{name}_dataloader', f'{name}_cfg', 'optim_wrapper' if name == 'train' else f'{name}_evaluator']
    given = [key for key in keys if cfg.get(key) is not None]
    missing = [key for key in keys if key not in given]
    if missing and (given or needed):
        raise UserError(f'{missing[0]} is missing' + (f' (there is {" and ".join(given)})' if given else ''))


def blocks(cfg: Any, training: bool) -> Iterator[tuple[str, Any, Any]]:
    """Place, block and registry of what the Runner builds around the model. Raises UserError for a loader's option."""
    for phase in ('train', 'val') if training else ('test',):
        for place, loader in listed(f'{phase}_dataloader', cfg.get(f'{phase}_dataloader')):
            check_keys(loader, place, LOADER_KEYS)
            check_loader(loader, place)
            yield f'{place}:dataset', loader.get('dataset'), registry.DATASETS
            if loader.get('sampler') is not None:
                yield f'{place}:sampler', loader['sampler'], registry.DATA_SAMPLERS
        loop = cfg.get(f'{phase}_cfg') or {}
        if 'type' in loop:
            yield f'{phase}_cfg', loop, registry.LOOPS
        for place, evaluator in listed(f'{phase}_evaluator', cfg.get(f'{phase}_evaluator')):
            if 'metrics' in evaluator:
                yield place, evaluator, registry.EVALUATORS
                for metric in listed(f'{place}:metrics', evaluator['metrics']):
                    yield *metric, registry.METRICS
            else:
                yield place, evaluator, registry.METRICS
    if training and cfg.get('optim_wrapper') is not None:
        wrapper = cfg.optim_wrapper
        yield 'optim_wrapper', {'type': 'OptimWrapper', **wrapper}, registry.OPTIM_WRAPPERS
        if isinstance(wrapper.get('optimizer'), dict):
            yield 'optim_wrapper:optimizer', wrapper['optimizer'], registry.OPTIMIZERS
    hooks = [*(cfg.get('default_hooks') or {}).items(), *enumerate(cfg.get('custom_hooks') or [])]
    for name, hook in hooks:
        if isinstance(hook, dict):
            place = 'custom_hooks' if isinstance(name, int) else 'default_hooks'
            yield f'{place}:{name}', hook, registry.HOOKS
    if isinstance(cfg.get('visualizer'), dict):
        yield 'visualizer', cfg.visualizer, registry.VISUALIZERS


def listed(where: str, block: Any) -> list[tuple[str, dict]]:
    """The blocks of a list, or the only one, each with its place."""
    several = isinstance(block, list | tuple)
    each = list(block) if several else [] if block is None else [block]
    return [
        (f'{where}:{number}' if several else where, one) for number, one in enumerate(each) if isinstance(one, dict)
    ]


def check_object(block: Any, where: str, known: Any) -> None:
    """Raises UserError unless a block names a class of the registry and only options that it has."""
    if not isinstance(block, dict):
        raise UserError(
            f'{where} is missing' if block is None else f'{where} must be a block of options, got {block!r}'
        )
    if block.get('type') is None:
        raise UserError(f'{where}:type is missing')
    cls = find(known, block['type'], f'{where}:type')
    if not inspect.isclass(cls):
        return
    if hasattr(cls, 'OPTIONS') and is_ours(cls):
        values = {key: value for key, value in block.items() if key not in ('type', '_scope_')}
        check_block(values, where, own_options(cls))
        for key in ('dataroot_gt', 'scale'):
            if key in cls.OPTIONS and values.get(key) is None:
                raise UserError(f'{joined(where, key)} is missing')
        return
    parameters = inspect.signature(cls).parameters
    if any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters.values()):
        return
    check_keys({key: None for key in block if key not in GIVEN}, where, [key for key in parameters if key not in GIVEN])


def find(known: Any, name: Any, where: str) -> Any:
    """The class of that name in a registry or those above it, or of that dotted path; UserError with the nearest."""
    if not isinstance(name, str):
        return name
    try:
        found = known.get(name)
    except (RuntimeError, ImportError):  # what mmengine raises of a name without dots
        found = None
    if found is None:
        names = [*known.module_dict, *known.parent.module_dict]
        raise UserError(f'{where}: {name!r} is not known; the nearest is {nearest(name, names)!r}')
    return found


def check_generator(model: Any) -> ImplicitNet | None:
    """The network of a model: ours by its options' names, types and sizes. Returns ours, built on the meta device."""
    block = model.get('generator')
    if not isinstance(block, dict):
        return None
    cls = find(registry.MODELS, block.get('type'), 'model:generator:type')
    if inspect.isclass(cls) and issubclass(cls, ImplicitNet):
        return check_network(unwrapped(block), 'model:generator', cls)
    return None


def check_use(model: Any, net: ImplicitNet) -> None:
    """What only the network, on whatever device, can say of ``train_cfg`` and ``test_cfg``, both checked."""
    train, test = (model.get(key) or {} for key in ('train_cfg', 'test_cfg'))
    options = {'network_g': model.generator, 'train': train, 'val': {'tile': test.get('tile')}}
    try:
        ImplicitSRModel.check_network(options, net)
    except UserError as error:
        raise UserError(in_names_of_mmagic(str(error))) from error


def check_plan(cfg: Any) -> None:
    """The stages of a cumulative training."""
    loop = cfg.train_cfg
    if 'stages' not in options_of(find(registry.LOOPS, loop.get('type', 'IterBasedTrainLoop'), 'train_cfg:type'))[0]:
        return
    if loop.get('stages') is None:
        raise UserError('train_cfg:stages is missing')
    try:
        TrainingPlan.parse(unwrapped(loop))
    except UserError as error:
        raise UserError(f'train_cfg:stages: {error}') from error
    for number, stage in enumerate(loop.stages):
        if stage.get('pixel_opt') is not None:
            check_object(stage.pixel_opt, f'train_cfg:stages:{number}:pixel_opt', registry.MODELS)


def unwrapped(value: Any) -> Any:
    """mmengine's blocks as plain dicts and lists."""
    if isinstance(value, dict):
        return {key: unwrapped(item) for key, item in value.items() if key != '_scope_'}
    return [unwrapped(item) for item in value] if isinstance(value, list | tuple) else value
