"""Options of a network from published weights, and the published hyper-parameters from options."""

import math
import re
from collections.abc import Callable

from torch import Tensor

from clit_basicsr.archs.encoders import layouts
from clit_basicsr.archs.lit_branch import PUBLISHED_ENCODING
from clit_basicsr.base.errors import UserError
from clit_basicsr.published import thera

# Networks that the published code can build whatever their options, and their names there.
PLAIN_NAMES = {'SRNO': 'sronet', 'HIIF': 'hiif', 'Thera': 'thera'}


class Weights(dict[str, Tensor]):
    """Weights that hyper-parameters are read from; one that is missing is the file's mistake."""

    def __missing__(self, key: str) -> Tensor:
        raise UserError(f'the weights are not those of a whole network: {key} (in our names) is missing.')


def _hidden_dims(weights: dict[str, Tensor], decoder: str) -> list[int]:
    widths = {
        int(match.group(1)): value.shape[0]
        for key, value in weights.items()
        if (match := re.fullmatch(rf'{re.escape(decoder)}\.(\d+)\.weight', key))
    }
    return [widths[i] for i in sorted(widths)][:-1]


def _describe_branches(weights: dict[str, Tensor], meta: dict, channels: int) -> dict:
    """Options of LIT's branches, when a position of the grid has that many channels at the decoder."""
    in_dim = weights['branches.0.decoder.0.weight'].shape[1]
    has_bias = 'position_encoder.proj.weight' in weights
    has_attention = 'branches.0.conv_q.weight' in weights
    options = {
        'dim': weights['branches.0.conv_v.weight'].shape[0],
        'num_heads': weights['position_encoder.proj.weight'].shape[0] if has_bias else meta.get('head', 8),
        'hidden_dims': _hidden_dims(weights, 'branches.0.decoder'),
        'position_encoding': _position_encoding(weights, meta) if has_bias else None,
        'local_attention': has_attention,
        'cell': in_dim % channels == 2,
    }
    if has_attention:
        options['grid_size'] = math.isqrt(in_dim // channels)
    return options


def _position_encoding(weights: dict[str, Tensor], meta: dict) -> str | dict:
    """The option of that name; the number of dimensions is that of the weights."""
    scale = meta.get('posenc_scale', PUBLISHED_ENCODING['scale'])
    dims = weights['position_encoder.proj.weight'].shape[1]
    if meta.get('posenc_dims', dims) != dims:
        raise UserError(f'the positional bias has {dims} inputs, but enc_dims says {meta["posenc_dims"]}.')
    found = {'scale': scale, 'dims': dims}
    return 'published' if found == PUBLISHED_ENCODING else found


def _describe_clit(weights: dict[str, Tensor], meta: dict) -> dict:
    branches = _describe_branches(weights, meta, weights['conv_in.weight'].shape[0])
    return {'type': 'CLIT', 'num_branches': layouts.count(weights, r'branches\.(\d+)\.'), **branches}


def _describe_lit(weights: dict[str, Tensor], meta: dict) -> dict:
    frequency_dims = 2 * weights['branches.0.frequency_block.conv.weight'].shape[0]
    branches = _describe_branches(weights, meta, weights['branches.0.conv_v.weight'].shape[0] + frequency_dims)
    return {
        'type': 'LIT',
        **branches,
        'first_conv': False,
        'frequency_dims': frequency_dims,
        'frequency_scale': meta.get('pe_scale', 6),
        'local_ensemble': bool(meta.get('local_ensemble', False)),
    }


def _describe_liif(weights: dict[str, Tensor], meta: dict) -> dict:
    in_dim, channels = weights['decoder.0.weight'].shape[1], meta['channels']
    unfolded = in_dim > 9 * channels
    return {
        'type': 'LIIF',
        'hidden_dims': _hidden_dims(weights, 'decoder'),
        'local_ensemble': bool(meta.get('local_ensemble', True)),
        'feat_unfold': unfolded,
        'cell': in_dim - (9 if unfolded else 1) * channels == 4,
    }


def _describe_lte(weights: dict[str, Tensor], meta: dict) -> dict:
    return {'type': 'LTE', 'dim': weights['coef.weight'].shape[0], 'hidden_dims': _hidden_dims(weights, 'decoder')}


def _describe_metasr(weights: dict[str, Tensor], meta: dict) -> dict:
    return {'type': 'MetaSR', 'hidden_dims': _hidden_dims(weights, 'filter_net')}


def _describe_sronet(weights: dict[str, Tensor], meta: dict) -> dict:
    dim, heads = weights['conv00.weight'].shape[0], weights['conv0.k_norm.weight'].shape[0]
    return {'type': 'SRNO', 'dim': dim, 'num_heads': heads}


def _describe_hiif(weights: dict[str, Tensor], meta: dict) -> dict:
    dim, width = weights['freq.weight'].shape[0], weights['conv0.k_norm.weight'].shape[0]
    return {'type': 'HIIF', 'dim': dim, 'num_heads': dim // width}


# Kind of network -> the function that finds the options, with ``type``, from the weights under our names.
DESCRIBE: dict[str, Callable[[dict[str, Tensor], dict], dict]] = {
    'clit': _describe_clit,
    'lit': _describe_lit,
    'liif': _describe_liif,
    'lte': _describe_lte,
    'metasr': _describe_metasr,
    'sronet': _describe_sronet,
    'hiif': _describe_hiif,
    'thera': thera.describe,
}


def published_name(options: dict) -> str:
    """The kind that the published code calls a network of ours, by its options; UserError names one that it lacks."""
    kind = options['type']
    if kind in ('LIIF', 'LTE', 'MetaSR'):
        if kind == 'LTE' and not options['local_ensemble']:
            raise UserError('the published LTE always has its local ensemble; train with local_ensemble: true.')
        return kind.lower()
    if kind in PLAIN_NAMES:
        if options.get('hidden_dim', 256) != 256:
            raise UserError(f'the published {kind} has hidden_dim: 256; train with it.')
        return PLAIN_NAMES[kind]
    if kind not in ('CLIT', 'LIT'):
        known = ', '.join(('CLIT', 'LIT', 'LIIF', 'LTE', 'MetaSR', *PLAIN_NAMES))
        raise UserError(f'no published code exists for {kind}; it does for {known}.')
    fixed: dict[str, str | float] = {'aggregation': 'flatten', 'upsampling_padding': 'zeros'}
    if options.get('num_branches', 1) > 1:  # the weight of earlier branches means nothing to a single one
        fixed['residual_weight'] = 0.75
    wrong = [
        (f'{key}: {options[key]}', f'{key}: {value}')
        for key, value in fixed.items()
        if options.get(key, value) not in (value, None)
    ]
    if options['position_encoding'] == 'paper':
        wrong.append(('position_encoding: paper', 'position_encoding: published'))
    with_frequencies = bool(options.get('frequency_dims'))
    if with_frequencies and (options['grid_size'] != 7 or options['first_conv']):
        wrong.append(('frequency block with first_conv or another grid_size', 'first_conv: false, grid_size: 7'))
    if not with_frequencies and (options.get('local_ensemble') or not options.get('first_conv', True)):
        remedy = 'local_ensemble: false, first_conv: true'
        wrong.append(('local_ensemble or missing first_conv without the frequency block', remedy))
    if wrong:
        found, needed = (', '.join(texts) for texts in zip(*wrong, strict=True))
        raise UserError(f'the published code has no {found}; a network to be published is trained with {needed}.')
    return 'lit' if with_frequencies else 'clit'


def remarks(name: str, options: dict, encoder_spec: dict) -> list[str]:
    """What a published checkpoint does not hold, so that it is not quite this network: a line each."""
    if name == 'thera':
        return thera.remarks(options, encoder_spec)
    known: dict[str, dict] = {'sronet': {'rows': None, 'max_scale': None}, 'hiif': {'rows': None, 'max_scale': 4}}
    fixed = known.get(name, {})
    lost = [f'{key}: {options[key]}' for key, value in fixed.items() if options.get(key, value) != value]
    return [f'the published layout does not hold {", ".join(lost)}'] if lost else []


def published_args(name: str, options: dict, encoder_spec: dict) -> dict:
    """``args`` of a published checkpoint; ``name``: from :func:`published_name`. UserError names what is in the way."""
    if name == 'thera':
        return thera.published_args(options, encoder_spec)
    hidden = options.get('hidden_dims')
    mlp: dict = {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': list(hidden or ())}}
    encoder_spec['args']['no_upsampling'] = True
    args: dict = {'encoder_spec': encoder_spec}
    if name in ('sronet', 'hiif'):
        width = 'width' if name == 'sronet' else 'hidden_dim'
        return {**args, width: options['dim'], 'blocks': options['num_heads']}
    if name == 'metasr':
        if list(hidden or ()) != [256]:
            raise UserError('the published Meta-SR has one hidden layer of 256; train with hidden_dims: [256].')
        return args
    args['imnet_spec'] = mlp
    if name == 'liif':
        names = {'local_ensemble': 'local_ensemble', 'feat_unfold': 'feat_unfold', 'cell_decode': 'cell'}
        return {**args, **{theirs: options[ours] for theirs, ours in names.items()}}
    if name == 'lte':
        return {**args, 'hidden_dim': options['dim']}
    mlp['args']['act'] = 'gelu'
    args |= {'base_dim': options['dim'], 'head': options['num_heads'], 'is_cell': options['cell']}
    args |= {'local_attn': options['local_attention'], 'pb_spec': None}
    if options['position_encoding'] and options['local_attention']:
        block = options['position_encoding']
        block = PUBLISHED_ENCODING if block == 'published' else block
        args['pb_spec'] = _posenc_spec(block['scale'], block['dims'])
    if name == 'lit':
        pe_spec = _posenc_spec(options['frequency_scale'], options['frequency_dims'])
        pe_spec['args']['complex_transform'] = True
        return {**args, 'pe_spec': pe_spec, 'local_ensemble': options['local_ensemble']}
    branches = options.get('num_branches', 1)
    return {**args, 'r': options['grid_size'] // 2, 'imnet_num': branches, 'conv_num': branches}


def _posenc_spec(scale: float, dims: int) -> dict:
    return {'name': 'posenc', 'args': {'posenc_type': 'sinusoid', 'posenc_scale': scale, 'enc_dims': dims}}
