"""Names of the same trunk's weights in other repositories, and what the weights tell of the trunk."""

import math
import re

from torch import Tensor

from clit_basicsr.base.errors import UserError

# Pairs (their key, our key). A name in braces stands for one part of the key and is the same on both sides; a number
# that only their key has (the place of a layer behind a list of blocks) has to be told when renaming back.
Layout = tuple[tuple[str, str], ...]
_PARTS = {'i': r'\d+', 'j': r'\d+', 'n': r'\d+', 'm': r'\d+', 'q': '[qkv]', 'p': r'\w+', 'rest': '.+'}

# https://github.com/sanghyun-son/EDSR-PyTorch, and whoever took its networks: LIIF, LTE, CLIT.
EDSR_PYTORCH: Layout = (
    ('head.0.{p}', 'conv_first.{p}'),
    ('body.{i}.body.0.{p}', 'body.{i}.conv1.{p}'),
    ('body.{i}.body.2.{p}', 'body.{i}.conv2.{p}'),
    ('body.{n}.{p}', 'conv_after_body.{p}'),
)
# https://github.com/yulunzhang/RCAN
RCAN_PYTORCH: Layout = (
    ('head.0.{p}', 'conv_first.{p}'),
    ('body.{i}.body.{j}.body.0.{p}', 'body.{i}.residual_group.{j}.rcab.0.{p}'),
    ('body.{i}.body.{j}.body.2.{p}', 'body.{i}.residual_group.{j}.rcab.2.{p}'),
    ('body.{i}.body.{j}.body.3.conv_du.0.{p}', 'body.{i}.residual_group.{j}.rcab.3.attention.1.{p}'),
    ('body.{i}.body.{j}.body.3.conv_du.2.{p}', 'body.{i}.residual_group.{j}.rcab.3.attention.3.{p}'),
    ('body.{i}.body.{n}.{p}', 'body.{i}.conv.{p}'),
    ('body.{m}.{p}', 'conv_after_body.{p}'),
)

# MMagic's RDNNet, and https://github.com/yjn870/RDN-pytorch
RDN_MMAGIC: Layout = (
    ('sfe{i}.{p}', 'SFENet{i}.{p}'),
    ('rdbs.{i}.layers.{j}.conv.{p}', 'RDBs.{i}.convs.{j}.conv.0.{p}'),
    ('rdbs.{i}.lff.{p}', 'RDBs.{i}.LFF.{p}'),
    ('gff.{i}.{p}', 'GFF.{i}.{p}'),
)
# https://github.com/xinntao/ESRGAN
RRDB_ESRGAN: Layout = (
    ('conv_first.{p}', 'conv_first.{p}'),
    ('RRDB_trunk.{i}.RDB{j}.conv{n}.{p}', 'body.{i}.rdb{j}.conv{n}.{p}'),
    ('trunk_conv.{p}', 'conv_body.{p}'),
)
# MMagic's MSRResNet
MSRRESNET_MMAGIC: Layout = (('conv_first.{p}', 'conv_first.{p}'), ('trunk_net.{rest}', 'body.{rest}'))
SAME: Layout = (('{rest}', '{rest}'),)


def rename(weights: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same tensors under our keys, and those that the layout does not know, under theirs."""
    table = [(_pattern(theirs), ours) for theirs, ours in layout]
    renamed, unknown = {}, {}
    for key, value in weights.items():
        for pattern, ours in table:
            if match := pattern.fullmatch(key):
                renamed[ours.format(**match.groupdict())] = value
                break
        else:
            unknown[key] = value
    return renamed, unknown


def rename_back(weights: dict[str, Tensor], layout: Layout, **places: int) -> dict[str, Tensor]:
    """The inverse of :func:`rename`; ``places`` are the numbers that only their keys have.

    Raises:
        UserError: a key has no place in the layout.
    """
    table = [(_pattern(ours), theirs) for theirs, ours in layout]
    renamed = {}
    for key, value in weights.items():
        for pattern, theirs in table:
            if match := pattern.fullmatch(key):
                renamed[theirs.format(**{**places, **match.groupdict()})] = value
                break
        else:
            raise UserError(f'{key!r} has no place in the published layout.')
    return renamed


def prefixed(layout: Layout, prefix: str) -> Layout:
    """The layout of a part whose keys begin with the prefix."""
    return tuple((prefix + theirs, prefix + ours) for theirs, ours in layout)


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r'\{(\w+)\}', template)
    named = (f'(?P<{part}>{_PARTS[part]})' if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return re.compile(''.join(named))


def count(weights: dict[str, Tensor], pattern: str) -> int:
    """How many different values the pattern's group takes over the keys."""
    return len({match.group(1) for key in weights if (match := re.match(pattern, key))})


def describe(weights: dict[str, Tensor]) -> dict:
    """Type and options of a trunk, from its weights under our keys: whatever their shapes show.

    Raises:
        UserError: the weights are not those of a trunk that is known here.
    """
    if 'SFENet1.weight' in weights:
        return {
            'type': 'RDN',
            'num_feat': weights['SFENet1.weight'].shape[0],
            'num_block': count(weights, r'RDBs\.(\d+)\.'),
            'num_layer': count(weights, r'RDBs\.0\.convs\.(\d+)\.'),
            'num_grow_ch': weights['RDBs.0.convs.0.conv.0.weight'].shape[0],
        }
    if 'patch_embed.norm.weight' in weights or 'layers.0.residual_group.blocks.0.norm1.weight' in weights:
        return _describe_swinir(weights)
    if 'body.0.residual_group.0.rcab.0.weight' in weights:
        squeezed = weights['body.0.residual_group.0.rcab.3.attention.1.weight']
        return {
            'type': 'RCAN',
            'num_feat': squeezed.shape[1],
            'num_group': count(weights, r'body\.(\d+)\.residual_group\.'),
            'num_block': count(weights, r'body\.0\.residual_group\.(\d+)\.'),
            'squeeze_factor': squeezed.shape[1] // squeezed.shape[0],
        }
    if 'body.0.conv1.weight' in weights and 'conv_after_body.weight' in weights:
        return {
            'type': 'EDSR',
            'num_feat': weights['conv_first.weight'].shape[0],
            'num_block': count(weights, r'body\.(\d+)\.'),
        }
    raise UserError('the weights hold no encoder that is known here (EDSR, RCAN, RDN, SwinIR).')


def _describe_swinir(weights: dict[str, Tensor]) -> dict:
    layers = count(weights, r'layers\.(\d+)\.')
    first = 'layers.0.residual_group.blocks.0'
    dim = weights['conv_first.weight'].shape[0]
    window_size = (math.isqrt(weights[f'{first}.attn.relative_position_bias_table'].shape[0]) + 1) // 2
    depths = [count(weights, rf'layers\.{i}\.residual_group\.blocks\.(\d+)\.') for i in range(layers)]
    heads = [
        weights[f'layers.{i}.residual_group.blocks.0.attn.relative_position_bias_table'].shape[1] for i in range(layers)
    ]
    options = {
        'type': 'SwinIR',
        'embed_dim': dim,
        'depths': depths,
        'num_heads': heads,
        'window_size': window_size,
        'mlp_ratio': weights[f'{first}.mlp.fc1.weight'].shape[0] / dim,
        'qkv_bias': f'{first}.attn.qkv.bias' in weights,
        'patch_norm': 'patch_embed.norm.weight' in weights,
        'resi_connection': '1conv' if 'conv_after_body.weight' in weights else '3conv',
        'conv_before_upsample': 'conv_before_upsample.0.weight' in weights,
    }
    mask = weights.get('layers.0.residual_group.blocks.1.attn_mask')
    if mask is not None:
        options['img_size'] = math.isqrt(mask.shape[0]) * window_size
    return options
