"""A small cascade, trained with the command in a folder of its own."""

import copy
import subprocess
import sys

import numpy as np
import torch
import yaml
from PIL import Image

OPTIONS = {
    'name': 'tiny',
    'model_type': 'CumulativeSRModel',
    'num_gpu': 0,
    'manual_seed': 3,
    'datasets': {
        'train': {
            'name': 'train',
            'type': 'RandomScaleDataset',
            'dataroot_gt': 'images',
            'io_backend': {'type': 'disk'},
            'lq_size': 8,
            'num_queries': 16,
            'num_worker_per_gpu': 1,
            'batch_size_per_gpu': 2,
        },
        'val_x2': {
            'name': 'x2',
            'type': 'ScaledPairDataset',
            'dataroot_gt': 'images',
            'scale': 2,
            'protocol': 'benchmark',
        },
        'val_x6': {'name': 'x6.5', 'type': 'ScaledPairDataset', 'dataroot_gt': 'images', 'scale': [6.5, 3]},
    },
    'network_g': {
        'type': 'CLIT',
        'encoder': {'type': 'EDSR', 'num_feat': 4, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]},
        'num_branches': 3,
        'dim': 4,
        'num_heads': 2,
        'grid_size': 3,
        'hidden_dims': [8],
    },
    'path': {'pretrain_network_g': None, 'resume_state': None},
    'train': {
        'ema_decay': 0.9,
        'optim_g': {'type': 'Adam', 'betas': [0.9, 0.99]},
        'stages': [
            {'branches': 1, 'iters': 4, 'lr': 0.01, 'milestones': [2], 'scales': [[[1, 4]]], 'warmup_iter': 2},
            {'branches': 2, 'iters': 4, 'lr': 0.004, 'milestones': [1, 3], 'scales': [[[1, 4]], [[1, 4], [1, 4]]]},
            {'branches': 3, 'iters': 4, 'lr': 0.002, 'milestones': [], 'scales': [[[1, 2], [1, 2], [1, 2]]]}
            | {'freeze': True, 'init': 'copy', 'pixel_opt': {'type': 'MSELoss'}, 'min_size': 52},
        ],
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
    },
    'val': {
        'val_freq': 6,
        'save_img': True,
        'metrics': {
            'psnr': {'type': 'calculate_psnr_float'},
            'host_psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True},
        },
    },
    'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
}


def changed(**changes):
    options = copy.deepcopy(OPTIONS)
    for path, value in changes.items():
        *parents, key = path.split('__')
        block = options
        for parent in parents:
            block = block[parent]
        block[key] = value
    return options


def prepare(folder, options=OPTIONS, count=3):
    (folder / 'images').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (7, 8, 3), dtype=np.uint8))
        image.resize((60 + i, 52), Image.Resampling.BICUBIC).save(folder / 'images' / f'{i}.png')
    (folder / 'options.yml').write_text(yaml.safe_dump(options, sort_keys=False))
    return folder


def run(folder, *arguments, program=('-m', 'clit_basicsr')):
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def train(folder, *flags):
    result = run(folder, 'train', '-opt', 'options.yml', *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def weights(folder):
    return torch.load(folder / 'experiments' / 'tiny' / 'models' / 'net_g_latest.pth')
