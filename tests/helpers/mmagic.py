"""The small cascade of ``helpers.training`` as a config of MMagic, and what tests with MMagic share."""

import importlib.util
import json
from pathlib import Path

import pytest

REASON = 'MMagic is not installed (scripts/setup.sh --mmagic)'
needs_mmagic = pytest.mark.skipif(importlib.util.find_spec('mmengine') is None, reason=REASON)


def config(options):
    """The config that asks MMagic for the same training as an option file asks BasicSR for."""
    train = options['datasets']['train']
    left_out = ('batch_size_per_gpu', 'num_worker_per_gpu', 'dataset_enlarge_ratio')
    network = options['network_g']
    sets = [dataset for phase, dataset in options['datasets'].items() if phase.startswith('val')]
    frequency = options['logger']['save_checkpoint_freq']
    found = {
        'default_scope': 'mmagic',
        'work_dir': 'work',
        'randomness': {'seed': options['manual_seed']},
        'model': {'type': 'ImplicitSR', 'generator': {**network, 'type': f'{network["type"]}Net'}},
        'train_dataloader': {
            'batch_size': train['batch_size_per_gpu'],
            'num_workers': train['num_worker_per_gpu'],
            'dataset': {key: value for key, value in train.items() if key not in left_out},
        },
        'train_cfg': {
            'type': 'CumulativeTrainLoop',
            'stages': options['train']['stages'],
            'start_stage': options['train'].get('start_stage', 1),
            'val_interval': options['val']['val_freq'],
        },
        'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': options['train']['optim_g']},
        'val_dataloader': [loader(dataset) for dataset in sets],
        'val_evaluator': [
            {'type': 'Evaluator', 'metrics': [{'type': 'PSNRFloat', 'prefix': dataset['name']}]} for dataset in sets
        ],
        'val_cfg': {'type': 'MultiValLoop'},
        'default_hooks': {
            'checkpoint': {'type': 'CheckpointHook', 'interval': frequency, 'by_epoch': False},
            'logger': {'type': 'LoggerHook', 'interval': 1, 'log_metric_by_epoch': False},
        },
        'log_processor': {'type': 'LogProcessor', 'window_size': 1, 'by_epoch': False},
        'visualizer': {
            'type': 'ConcatImageVisualizer',
            'vis_backends': [{'type': 'VisBackend'}],
            'fn_key': 'vis_name',
            'img_keys': ['pred_img'],
            'bgr2rgb': True,
        },
        'custom_hooks': [{'type': 'BasicVisualizationHook', 'interval': 1}],
    }
    if options['train'].get('ema_decay'):
        average = {'type': 'EMAHook', 'ema_type': 'BasicSREMA', 'decay': options['train']['ema_decay']}
        found['custom_hooks'].append(average)
    return found


def loader(dataset):
    return {
        'batch_size': 1,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': dataset,
    }


def as_test(content):
    """A config for a test on the validation sets of a training."""
    training = ('train_dataloader', 'train_cfg', 'optim_wrapper')
    left = {key.replace('val_', 'test_'): value for key, value in content.items() if key not in training}
    return {**left, 'test_cfg': {'type': 'MultiTestLoop'}, 'work_dir': 'tested'}


def merged(content, changes):
    """A config with changes in its blocks, at any depth."""
    both = {key: merged(content[key], value) for key, value in changes.items() if isinstance(content.get(key), dict)}
    return {**content, **changes, **both} if isinstance(changes, dict) else changes


def liif_of_mmagic():
    """MMagic's own config of LIIF, and --cfg-options that make it small, with the images of `prepare`."""
    import mmagic

    file = Path(mmagic.__file__).parent / '.mim/configs/liif/liif-edsr-norm_c64b16_1xb16-1000k_div2k.py'
    train, validation = 'train_dataloader.dataset', 'val_dataloader.dataset'
    changes = {
        f'{train}.data_root': '.',
        f'{train}.data_prefix.gt': 'images',
        f'{train}.ann_file': '',
        f'{train}.pipeline.1.patch_size': 8,
        f'{train}.pipeline.5.sample_quantity': 16,
        'train_dataloader.num_workers': 0,
        'train_dataloader.batch_size': 2,
        'model.generator.encoder.mid_channels': 8,
        'model.generator.encoder.num_blocks': 1,
        'model.generator.imnet.in_dim': 8,
        'train_cfg.max_iters': 3,
        f'{validation}.data_root': '.',
        f'{validation}.data_prefix.gt': 'images',
        f'{validation}.data_prefix.img': 'images',
    }
    return [str(file), '--cfg-options', *(f'{key}={value}' for key, value in changes.items())]


def write(folder, content, name='config.json'):
    (folder / name).write_text(json.dumps(content))


def logged(folder):
    """The figures of every validation or test in a run's logs: {name: value} each, in full precision."""
    found = []
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.startswith('{')]
        found += [line for line in lines if any('/PSNR' in key for key in line)]
    return found
