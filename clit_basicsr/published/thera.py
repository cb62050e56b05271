"""The published weights of Thera: a tree of arrays in the names and memory layouts of flax.

``params/out_conv/kernel`` and its like; kernels of convolutions are (kh, kw, in, out), those of dense layers (in, out).
"""

import re

from torch import Tensor

from clit_basicsr.archs.encoders import layouts
from clit_basicsr.archs.encoders.layouts import Layout
from clit_basicsr.archs.encoders.trunk import DIV2K_MEAN
from clit_basicsr.archs.thera_arch import COMPONENTS
from clit_basicsr.archs.thera_tails import PLUS_WIDTHS
from clit_basicsr.base.errors import UserError

BACKBONES = ('EDSR', 'RDN')
NORMALIZATION = {'img_range': 1.99996, 'rgb_mean': list(DIV2K_MEAN)}
_BLOCK = 'refine.RSTB_{i}.BasicLayer_0.SwinTransformerBlock_{j}.'
_OURS = 'tail.groups.{i}.residual_group.blocks.{j}.'
# As in archs/encoders/layouts.py, after the conversion of tensors to torch.
LAYOUT: Layout = (
    ('k', 'kappa'),
    ('components', 'components'),
    ('out_conv.{p}', 'hyper.{p}'),
    ('refine.layers_{i}.residual.layers_0.{p}', 'tail.layers.{i}.depthwise.{p}'),
    ('refine.layers_{i}.residual.layers_2.{p}', 'tail.layers.{i}.fc1.{p}'),
    ('refine.layers_{i}.residual.layers_4.{p}', 'tail.layers.{i}.fc2.{p}'),
    ('refine.layers_{i}.residual.layers_1.{p}', 'tail.layers.{i}.norm.{p}'),
    ('refine.layers_{i}.LayerNorm_0.{p}', 'tail.layers.{i}.layer_norm.{p}'),
    ('refine.layers_{i}.Conv_0.{p}', 'tail.layers.{i}.fc.{p}'),
    ('refine.Conv_0.{p}', 'tail.conv_first.{p}'),
    ('refine.Conv_1.{p}', 'tail.conv_after_body.{p}'),
    ('refine.Conv_2.{p}', 'tail.conv_last.{p}'),
    ('refine.LayerNorm_0.{p}', 'tail.norm.{p}'),
    ('refine.PatchEmbed_0.LayerNorm_0.{p}', 'tail.norm_first.{p}'),
    ('refine.RSTB_{i}.Conv_0.{p}', 'tail.groups.{i}.conv.{p}'),
    (_BLOCK + 'LayerNorm_0.{p}', _OURS + 'norm1.{p}'),
    (_BLOCK + 'LayerNorm_1.{p}', _OURS + 'norm2.{p}'),
    (_BLOCK + 'Mlp_0.Dense_0.{p}', _OURS + 'mlp.fc1.{p}'),
    (_BLOCK + 'Mlp_0.Dense_1.{p}', _OURS + 'mlp.fc2.{p}'),
    (_BLOCK + 'WindowAttention_0.{rest}', _OURS + 'attn.{rest}'),
)
# Encoders, in the names that the other published networks have: theirs, ours.
_ENCODERS: Layout = (
    ('head.layers_0.{p}', 'head.0.{p}'),
    ('body.layers_{i}.body.layers_{j}.{p}', 'body.{i}.body.{j}.{p}'),
    ('body.layers_{i}.{p}', 'body.{i}.{p}'),
    ('Conv_0.{p}', 'SFENet1.{p}'),
    ('Conv_1.{p}', 'SFENet2.{p}'),
    ('RDB_{i}.RDB_Conv_{j}.Conv_0.{p}', 'RDBs.{i}.convs.{j}.conv.0.{p}'),
    ('RDB_{i}.Conv_0.{p}', 'RDBs.{i}.LFF.{p}'),
    ('Conv_2.{p}', 'GFF.0.{p}'),
    ('Conv_3.{p}', 'GFF.1.{p}'),
)
_MASKS = re.compile(r'tail\..*\.(attn_mask|relative_position_index)')
# 1 x 1 convolutions that are linear layers of ours.
_LINEAR = re.compile(r'refine\.layers_\d+\.(residual\.layers_[24]|Conv_0)\.weight')
# Dense layers of theirs, and of norms the weight is called scale.
_NORM = re.compile(r'(LayerNorm_\d|residual\.layers_1)\.weight$')


def from_flax(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as torch has them: axes in torch's order; encoders under their names in LIIF and its kin.

    Args:
        weights: 'params/...' -> tensor.
    """
    out = {}
    for path, value in weights.items():
        key = path.removeprefix('params/').replace('/', '.')
        if key.endswith('.kernel'):
            if value.dim() not in (2, 4):
                raise UserError(f'the weights hold {path}, which has {value.dim()} axes; a kernel has 2 or 4.')
            value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.t()
        key = re.sub(r'\.(kernel|scale)$', '.weight', key)
        if _LINEAR.fullmatch(key):
            value = value.flatten(1)
        out[key] = value.contiguous()
    encoder = {key.removeprefix('encoder.'): value for key, value in out.items() if key.startswith('encoder.')}
    renamed, unknown = layouts.rename(encoder, _ENCODERS)
    if unknown:
        raise UserError(f'the weights hold encoder {next(iter(unknown))!r}, which no published Thera has.')
    head = {key: value for key, value in out.items() if not key.startswith('encoder.')}
    return {f'encoder.{key}': value for key, value in renamed.items()} | head


def to_flax(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`from_flax`."""
    encoder = {key.removeprefix('encoder.'): value for key, value in weights.items() if key.startswith('encoder.')}
    encoder = layouts.rename_back(encoder, _ENCODERS)
    head = {key: value for key, value in weights.items() if not key.startswith('encoder.')}
    out = {}
    for key, value in ({f'encoder.{key}': value for key, value in encoder.items()} | head).items():
        if key.endswith('.weight'):
            name = 'scale' if _NORM.search(key) else 'kernel'
            value = value[..., None, None] if _LINEAR.fullmatch(key) else value
            if name == 'kernel':
                value = value.permute(2, 3, 1, 0) if value.dim() == 4 else value.t()
            key = f'{key.removesuffix("weight")}{name}'
        out['params/' + key.replace('.', '/')] = value.contiguous()
    return out


def without_masks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ours without what SwinIR's blocks keep beside them."""
    return {key: value for key, value in weights.items() if not _MASKS.fullmatch(key)}


def describe(weights: dict[str, Tensor], meta: dict) -> dict:
    """Options of Thera, with ``type``, from the weights in our names."""
    if weights['components'].dim() != 2:
        raise UserError('the weights hold params/components, which has not two axes.')
    variant, count = 'air', weights['components'].shape[1]
    tail: dict = {}
    if 'tail.conv_first.weight' in weights:
        table = 'tail.groups.{}.residual_group.blocks.0.attn.relative_position_bias_table'
        groups = range(layouts.count(weights, r'tail\.groups\.(\d+)\.'))
        variant, tail = 'pro', {'embed_dim': weights['tail.conv_first.weight'].shape[0]}
        tail['depths'] = [
            layouts.count(weights, rf'tail\.groups\.{i}\.residual_group\.blocks\.(\d+)\.') for i in groups
        ]
        tail['num_heads'] = [weights[table.format(i)].shape[1] for i in groups]
        tail = {} if tail == {'embed_dim': 180, 'depths': [7, 6], 'num_heads': [6, 6]} else tail
    elif any(key.startswith('tail.layers.') for key in weights):
        places = range(layouts.count(weights, r'tail\.layers\.(\d+)\.'))
        keys = [f'tail.layers.{i}.depthwise.weight' for i in places]
        variant, widths = 'plus', [weights[key].shape[0] for key in keys if key in weights]
        tail = {} if widths == list(PLUS_WIDTHS) else {'widths': widths}
    options: dict = {'type': 'Thera', 'variant': variant}
    options |= {} if count == COMPONENTS[variant] else {'num_components': count}
    return options | ({'tail': tail} if tail else {})


def remarks(options: dict, encoder_spec: dict) -> list[str]:
    """What the published code, whose file says no more than backbone and size, would build otherwise."""
    variant, backbone = options['variant'], encoder_spec['name']
    lines = []
    if options.get('num_components') not in (None, COMPONENTS[variant]):
        lines.append(f'the published Thera {variant} has num_components: {COMPONENTS[variant]}')
    if options.get('tail'):
        lines.append(f'the published Thera {variant} has no other tail than its own; this one has {options["tail"]}')
    sizes = (
        {'n_feats': 64, 'n_resblocks': 16, 'res_scale': 1}
        if backbone == 'edsr-baseline'
        else {'G0': 64, 'RDNconfig': 'B'}
    )
    if any(encoder_spec['args'][key] != value for key, value in sizes.items()):
        lines.append(
            'the published Thera has EDSR of 64 channels, 16 blocks and res_scale 1, or RDN of 64 channels and 16 '
            'blocks, as encoder'
        )
    return lines


def published_args(options: dict, encoder_spec: dict) -> dict:
    """What the published file says beside the weights."""
    return {'backbone': encoder_spec['name'], 'size': options['variant']}
