"""What tiles cost where ``tile_pad`` is smaller than the encoder's receptive field: tiled against untiled pictures.

    python scripts/benchmarks/tile_seams.py [FILE ...]    FILE: networks that this package trained

Without files: LIT on three small encoders with random weights, drawn with torch's own spread so that every residual
block counts (the host starts them at a tenth of it). A photograph of 192 x 192 pixels, enlarged twice, tiles of 64
pixels. Differences are in 8-bit grey levels, over the whole picture; the line above a table gives the rms of what the
network adds to the bilinear picture, with which they grow. On a CPU with one thread (max / rms):

    tile_pad                        8                16                32                48        64
    EDSR-baseline    0.0014 / 6.1e-05  1.5e-05 / 1.1e-06  1.5e-05 / 5.6e-07            0 / 0     0 / 0
    RCAN, 2 x 4      0.00035 / 1.6e-05 6.1e-05 / 9.6e-06  4.6e-05 / 8.7e-06  3e-05 / 7e-06  3e-05 / 5.5e-06
    SwinIR, 2 x 4    0.0037 / 0.00017  9.1e-05 / 5.4e-06    3e-05 / 7.6e-07            0 / 0     0 / 0
    CLIT, trained    0.067 / 0.0012    6.1e-05 / 2.6e-06            0 / 0              0 / 0     0 / 0

1.5e-05 is one rounding step of float32 at white. The last row is the network of the quick start (EDSR with 32 features
and 4 blocks, which reaches 10 pixels) after its training: its seams are 50 times those of EDSR-baseline with random
weights, which reaches 34, so the first three rows are no bound for trained networks. RCAN's channel attention averages
over a tile instead of the image: something stays at any tile_pad.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data
from torch import Tensor, nn

from clit_basicsr.archs import LIT
from clit_basicsr.archs.checkpoint import load_checkpoint

SIZE, TILE, SCALE = 192, 64, 2
PADS = (8, 16, 32, 48, 64)
HEAD = {'dim': 64, 'num_heads': 4, 'grid_size': 7, 'hidden_dims': [64, 64]}
SWINIR = {'img_size': 48, 'embed_dim': 48, 'depths': [4, 4], 'num_heads': [4, 4], 'window_size': 8, 'mlp_ratio': 2}
ENCODERS = {
    'EDSR-baseline': {'type': 'EDSR', 'num_feat': 64, 'num_block': 16},
    'RCAN, 2 groups of 4 blocks': {'type': 'RCAN', 'num_feat': 32, 'num_group': 2, 'num_block': 4},
    'SwinIR, 2 groups of 4 layers': {'type': 'SwinIR', **SWINIR},
}


def photograph() -> Tensor:
    """The astronaut, (1, 3, SIZE, SIZE) in [0, 1]."""
    image = Image.fromarray(data.astronaut()).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0) / 255


def random_network(encoder: dict) -> nn.Module:
    """LIT with random weights, its input normalised to -1 ... 1."""
    torch.manual_seed(0)
    net = LIT({**encoder, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}, **HEAD).eval()
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()
    return net


def table(name: str, net: nn.Module, lq: Tensor) -> None:
    """Prints one network's differences."""
    whole = net.upscale(lq, scale=SCALE)
    added = whole - F.interpolate(lq, scale_factor=SCALE, mode='bilinear')
    print(f'{name}: adds {255 * added.square().mean().sqrt():.2f} rms\n  tile_pad       max       rms')
    for pad in PADS:
        if pad < net.reach:
            print(f'{pad:10}  below the {net.reach} that the decoder needs')
            continue
        seams = 255 * (net.upscale(lq, scale=SCALE, tile={'tile_size': TILE, 'tile_pad': pad}) - whole)
        print(f'{pad:10}  {seams.abs().max():8.2g}  {seams.square().mean().sqrt():8.2g}', flush=True)


if __name__ == '__main__':
    picture = photograph()
    if sys.argv[1:]:
        for file in sys.argv[1:]:
            table(file, load_checkpoint(file).eval(), picture)
    else:
        for title, options in ENCODERS.items():
            table(title, random_network(options), picture)
