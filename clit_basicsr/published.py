"""Weights in the layout of the published repositories, as networks of this package."""

import re

import torch
from torch import Tensor, nn

from clit_basicsr.archs import CLIT
from clit_basicsr.errors import UserError

# (pattern of a published key, our key); the first that matches counts, None drops the key.
_EDSR_KEYS = (
    (r'encoder\.(sub|add)_mean\..*', None),  # the published encoders build these layers and never use them
    (r'encoder\.head\.0\.(\w+)', r'encoder.conv_first.\1'),
    (r'encoder\.body\.(\d+)\.body\.0\.(\w+)', r'encoder.body.\1.conv1.\2'),
    (r'encoder\.body\.(\d+)\.body\.2\.(\w+)', r'encoder.body.\1.conv2.\2'),
    (r'encoder\.body\.\d+\.(\w+)', r'encoder.conv_after_body.\1'),
)
CLIT_KEYS = (
    *_EDSR_KEYS,
    (r'conv_ch\.(\w+)', r'conv_in.\1'),
    (r'conv_([qkv])s\.(\d+)\.(\w+)', r'branches.\2.conv_\1.\3'),
    (r'pb_encoder\.proj\.(\w+)', r'position_encoder.proj.\1'),
    (r'imnets\.(\d+)\.layers\.(\d+)\.(\w+)', r'branches.\1.decoder.\2.\3'),
)


def load(kind: str, state_dict: dict[str, Tensor], **meta) -> nn.Module:
    """Builds a network of ours around weights in the published layout.

    Args:
        kind: 'clit' (https://github.com/jaroslaw1007/CLIT).
        state_dict: the published ``sd``, key -> tensor.
        meta: hyper-parameters that the weights do not show: ``head`` (heads), ``r`` (radius of the local grid),
            ``posenc_scale`` and ``posenc_dims``. Widths, depths and ablations follow from the weights' shapes.

    Returns:
        nn.Module: in evaluation mode, on the CPU. Its images are in [0, 1]; the published network's are (x - 0.5) /
        0.5.

    Raises:
        UserError: the kind is unknown, or a key of the weights has no place in the network.
    """
    if kind != 'clit':
        raise UserError(f"published weights of kind {kind!r} cannot be loaded; known: 'clit'.")
    weights = renamed(state_dict, CLIT_KEYS)
    net = CLIT(**_clit_options(weights, meta))
    if len(net.branches) > 1:
        weights['trained_branches'] = torch.tensor(len(net.branches))
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f'the weights do not fit the network that they describe: {error}') from error
    return net.eval()


def renamed(state_dict: dict[str, Tensor], table) -> dict[str, Tensor]:
    """The same tensors under our keys. Raises UserError for a key that the table does not know."""
    out = {}
    for key, value in state_dict.items():
        for pattern, ours in table:
            if re.fullmatch(pattern, key):
                if ours is not None:
                    out[re.sub(pattern, ours, key)] = value
                break
        else:
            raise UserError(f'the weights hold {key!r}, which has no place in a network of this kind.')
    return out


def _clit_options(weights: dict[str, Tensor], meta: dict) -> dict:
    def count(pattern: str) -> int:
        return len({m.group(1) for key in weights if (m := re.match(pattern, key))})

    if (meta.get('posenc_scale', 10), meta.get('posenc_dims', 64)) != (10, 64):
        raise UserError('only posenc_scale 10 and posenc_dims 64, the published values, can be loaded.')
    has_attention = 'branches.0.conv_q.weight' in weights
    dim = weights['conv_in.weight'].shape[0]
    hidden = [v.shape[0] for k, v in weights.items() if re.fullmatch(r'branches\.0\.decoder\.\d+\.weight', k)][:-1]
    grid_size = 2 * meta.get('r', 3) + 1
    in_dim = weights['branches.0.decoder.0.weight'].shape[1]
    return {
        'encoder': {
            'type': 'EDSR',
            'num_feat': weights['encoder.conv_first.weight'].shape[0],
            'num_block': count(r'encoder\.body\.(\d+)\.'),
            'img_range': 2,
            'rgb_mean': [0.5, 0.5, 0.5],
        },
        'num_branches': count(r'branches\.(\d+)\.'),
        'dim': dim,
        'num_heads': meta.get('head', 8),
        'grid_size': grid_size,
        'hidden_dims': hidden,
        'position_encoding': 'published' if 'position_encoder.proj.weight' in weights else None,
        'local_attention': has_attention,
        'cell': in_dim % dim == 2,
    }
