"""A small LIT for the tests of the picture commands, and its expected results."""

import hashlib
import json
import os

import numpy as np
import torch

from clit_basicsr.archs import build_network, save_checkpoint
from clit_basicsr.pictures import files
from clit_basicsr.pictures.files import Picture

OPTIONS = {
    'type': 'LIT',
    'encoder': {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]},
    'dim': 16,
    'num_heads': 2,
    'grid_size': 3,
    'hidden_dims': [16],
}
REACH = 4 + 5  # the encoder's four convolutions, and the decoder's reach


def build(options=OPTIONS):
    torch.manual_seed(0)
    return build_network(options).eval()


def make_experiment():
    """Creates ``experiments/tiny`` in the working directory, with a trained network."""
    os.makedirs('experiments/tiny/models')
    content = {'params': build().state_dict(), 'network_g': OPTIONS}
    save_checkpoint('experiments/tiny/models/net_g_latest.pth', content)


CARD = {
    'description': 'a network for tests',
    'license': 'CC0-1.0',
    'data': [{'name': 'none', 'origin': 'random numbers', 'license': 'CC0-1.0'}],
    'recipe': 'torch.manual_seed(0)',
    'hours': 0,
    'limits': 'knows nothing',
}


def make_box(folder):
    """Puts the network into a folder that takes the place of the package's box; in single precision, so unchanged."""
    path = folder / 'clit-light.safetensors'
    save_checkpoint(path, {'params': build().state_dict(), 'network_g': OPTIONS})
    digest, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    card = {**CARD, 'figures': [], 'sha256': digest, 'bytes': size, 'parameters': 1}
    path.with_suffix('.json').write_text(json.dumps(card))


def save(path, pixels, icc=None):
    files.write(str(path), Picture(pixels, icc))


def answer(net, pixels, **target):
    """The network's result for the whole picture, in floating point: (H, W, 3), not clamped."""
    lq = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1).unsqueeze(0)
    return net.upscale(lq.expand(1, 3, -1, -1), **target)[0].permute(1, 2, 0).numpy()


def levels(image, dtype=np.uint8):
    """[0, 1] -> the range of a picture of that type, not rounded."""
    return image.clip(0, 1).astype(np.float64) * np.iinfo(dtype).max
