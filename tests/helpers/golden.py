"""The golden files: weights, inputs, outputs and gradients of the published code."""

import json
from pathlib import Path

import numpy as np
import torch

from clit_basicsr import published

GOLDEN = Path(__file__).parents[1] / 'golden'
FILES = sorted(path.stem for path in GOLDEN.glob('clit_*.npz'))
PEERS = sorted(path.stem for kind in ('lit', 'liif', 'lte', 'metasr') for path in GOLDEN.glob(f'{kind}*.npz'))


def relative_difference(a, b):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return ((a - b).abs().max() / b.abs().max()).item()


def read(name):
    """Metadata, published weights and the other arrays of a file. Published images are (x - 0.5) / 0.5."""
    # What is exact in bfloat16 is kept as its bits.
    data = {key: value for key, value in np.load(GOLDEN / f'{name}.npz').items() if value.dtype.kind != 'U'}
    meta = json.loads(bytes(data.pop('meta')))
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in data.items()}
    for key in [key for key in tensors if key.startswith('bf16/')]:
        tensors[key[5:]] = tensors.pop(key).view(torch.bfloat16).float()
    return meta, {key[3:]: value for key, value in tensors.items() if key.startswith('sd/')}, tensors


def load(name):
    """Our network with the weights of a golden file, and the file's content."""
    meta, weights, data = read(name)
    return published.load(meta.pop('kind'), weights, **meta), data
