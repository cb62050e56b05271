"""Weights in the layout of the published repositories, as networks of this package, and back.

A published checkpoint is ``{'model': {'name', 'args', 'sd'}}``: CLIT and LIT (https://github.com/jaroslaw1007/CLIT),
LIIF and Meta-SR (https://github.com/yinboc/liif), LTE (https://github.com/jaewon-lee-b/lte). Their images are (x -
0.5) / 0.5, ours in [0, 1].
"""

import inspect
import math
import os
import re
from typing import NamedTuple

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.checkpoint import load_weights
from clit_basicsr.archs.encoders import ENCODERS, build_encoder, layouts
from clit_basicsr.archs.encoders.layouts import Layout
from clit_basicsr.archs.encoders.trunk import BUFFERS, Trunk
from clit_basicsr.archs.networks import build_from_file
from clit_basicsr.base.checkpoints import read_checkpoint, weights_in
from clit_basicsr.base.errors import UserError

# Their key, our key: see archs/encoders/layouts.py.
LAYOUTS: dict[str, Layout] = {
    'clit': (
        ('conv_ch.{p}', 'conv_in.{p}'),
        ('conv_{q}s.{i}.{p}', 'branches.{i}.conv_{q}.{p}'),
        ('pb_encoder.proj.{p}', 'position_encoder.proj.{p}'),
        ('imnets.{i}.layers.{j}.{p}', 'branches.{i}.decoder.{j}.{p}'),
    ),
    'lit': (
        ('conv_{q}.{p}', 'branches.0.conv_{q}.{p}'),
        ('conv_freq.{p}', 'branches.0.frequency_block.conv.{p}'),
        ('pb_encoder.proj.{p}', 'position_encoder.proj.{p}'),
        ('imnet.layers.{j}.{p}', 'branches.0.decoder.{j}.{p}'),
    ),
    'liif': (('imnet.layers.{j}.{p}', 'decoder.{j}.{p}'),),
    'lte': (
        ('coef.{p}', 'coef.{p}'),
        ('freq.{p}', 'freq.{p}'),
        ('phase.{p}', 'phase.{p}'),
        ('imnet.layers.{j}.{p}', 'decoder.{j}.{p}'),
    ),
    'metasr': (('imnet.layers.{j}.{p}', 'filter_net.{j}.{p}'),),
}
# Layers that the published networks build and never use.
UNUSED = re.compile(r'encoder\.(sub|add)_mean\..+|pe_encoder\.proj\..+')
# The encoding of positions that option ``position_encoding: published`` names.
POSENC_SCALE, POSENC_DIMS = 10, 64
# The normalisation of the published networks' input.
NORMALIZATION = {'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}


class Converted(NamedTuple):
    """A published network in our terms.

    Attributes:
        network_g: type and options, as in an option file.
        params: our key -> tensor.
        unused: published key -> tensor, of layers that are built and never used; wanted back by :func:`to_published`.
    """

    network_g: dict
    params: dict[str, Tensor]
    unused: dict[str, Tensor]


class _Weights(dict[str, Tensor]):
    """Weights that hyper-parameters are read from; one that is missing is the file's mistake."""

    def __missing__(self, key: str) -> Tensor:
        raise UserError(f'the weights are not those of a whole network: {key} (in our names) is missing.')


def load(kind: str, state_dict: dict[str, Tensor], **meta) -> nn.Module:
    """Builds a network of ours around weights in the published layout.

    Args:
        kind: 'clit', 'lit', 'liif', 'lte' or 'metasr'.
        state_dict: the published ``sd``, key -> tensor.
        meta: hyper-parameters that the weights do not show: ``head`` (heads), ``local_ensemble``, ``res_scale`` (EDSR),
            ``posenc_scale`` and ``posenc_dims``, ``pe_scale``. Widths, depths and ablations follow from the weights'
            shapes.

    Returns:
        nn.Module: in evaluation mode, on the CPU. Its images are in [0, 1]; the published network's are (x - 0.5) /
        0.5.

    Raises:
        UserError: the kind is unknown, or a key of the weights has no place in the network.
    """
    converted = convert(kind, state_dict, **meta)
    net = build_from_file(converted.network_g, converted.params, f'the published {kind}')
    load_weights(net, converted.params)
    return net.eval()


def load_file(path: str | os.PathLike) -> nn.Module:
    """The network of a published checkpoint, its hyper-parameters read from the file. Raises UserError as
    :func:`load`.
    """
    content = from_file(path)
    net = build_from_file(content['network_g'], content['params'], path)
    load_weights(net, content['params'], f'the weights in {path}')
    return net.eval()


def read_file(path: str | os.PathLike) -> dict:
    """``name``, ``args`` and ``sd`` of a published checkpoint.

    Raises:
        UserError: the file cannot be read, or is not a published checkpoint.
    """
    content = read_checkpoint(path)
    spec = content.get('model')
    if not isinstance(spec, dict) or not {'name', 'args', 'sd'} <= spec.keys():
        raise UserError(f"{path} is not a published checkpoint: it has no {{'model': {{'name', 'args', 'sd'}}}}.")
    if not isinstance(spec['name'], str) or not isinstance(spec['args'], dict):
        raise UserError(f'{path} is not a published checkpoint: name or args of the model in it are of a wrong type.')
    return {'name': spec['name'], 'args': spec['args'], 'sd': weights_in(spec, 'sd', path)}


def from_file(path: str | os.PathLike) -> dict:
    """A published checkpoint as the content of one of ours, to be saved by :func:`save_checkpoint`."""
    spec = read_file(path)
    try:
        converted = convert(spec['name'], spec['sd'], **meta_of(spec['args']))
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    return {
        'params': converted.params,
        'network_g': converted.network_g,
        'published_args': spec['args'],
        'published_unused': converted.unused,
    }


def meta_of(args: dict) -> dict:
    """What :func:`load` needs to know in addition to the weights, from a published checkpoint's ``args``."""
    for spec in (args.get(key) or {} for key in ('encoder_spec', 'pb_spec', 'pe_spec')):
        if not isinstance(spec, dict) or not isinstance(spec.get('args') or {}, dict):
            raise UserError('its args are not those of a published checkpoint.')
    encoder = args.get('encoder_spec') or {}
    bias = (args.get('pb_spec') or {}).get('args') or {}
    if bias.get('posenc_type', 'sinusoid') != 'sinusoid':
        raise UserError(f"the positional encoding {bias['posenc_type']!r} cannot be loaded; only 'sinusoid' can.")
    meta = {key: args[key] for key in ('head', 'local_ensemble') if key in args}
    meta['res_scale'] = (encoder.get('args') or {}).get('res_scale', 0.1 if encoder.get('name') == 'edsr' else 1)
    if bias:
        meta |= {'posenc_scale': bias.get('posenc_scale', 6), 'posenc_dims': bias.get('enc_dims', 256)}
    if args.get('pe_spec'):
        meta['pe_scale'] = (args['pe_spec'].get('args') or {}).get('posenc_scale', 6)
    return meta


def convert(kind: str, state_dict: dict[str, Tensor], **meta) -> Converted:
    """The same network in our terms; see :func:`load`."""
    if kind not in LAYOUTS:
        raise UserError(f'published weights of kind {kind!r} cannot be loaded; known: {", ".join(LAYOUTS)}.')
    unused = {key: value for key, value in state_dict.items() if UNUSED.fullmatch(key)}
    used = {key: value for key, value in state_dict.items() if key not in unused}
    for key, value in used.items():
        matrix = key.endswith('_table') or not key.startswith('encoder.')
        if key.endswith(('.weight', '_table')) and (not value.numel() or value.dim() < (2 if matrix else 1)):
            raise UserError(f'the weights are not those of a network: {key} has the shape {tuple(value.shape)}.')
    encoder = {key.removeprefix('encoder.'): value for key, value in used.items() if key.startswith('encoder.')}
    params, encoder_opt = _convert_encoder(encoder, meta)
    head, unknown = layouts.rename({k: v for k, v in used.items() if not k.startswith('encoder.')}, LAYOUTS[kind])
    if unknown:
        raise UserError(f'the weights hold {next(iter(unknown))!r}, which has no place in a network of kind {kind!r}.')
    head = _Weights(head)
    meta['channels'] = ENCODERS[encoder_opt['type']].channels_of(encoder_opt)
    describe = {'clit': _describe_clit, 'lit': _describe_lit, 'liif': _describe_liif, 'lte': _describe_lte}
    options = describe.get(kind, _describe_metasr)(head, meta)
    if options.get('num_branches', 1) > 1:
        head['trained_branches'] = torch.tensor(options['num_branches'])
    network_g = {'type': options.pop('type'), 'encoder': encoder_opt, **options}
    return Converted(network_g, {**{f'encoder.{key}': value for key, value in params.items()}, **head}, unused)


def _convert_encoder(weights: dict[str, Tensor], meta: dict) -> tuple[dict[str, Tensor], dict]:
    for encoder in ENCODERS.values():
        if encoder.published_layout is None:
            continue
        renamed, unknown = layouts.rename(weights, encoder.published_layout)
        options = None if unknown else encoder.describe(_Weights(renamed), meta)
        if options is not None:
            return renamed, {**options, **NORMALIZATION}
    known = [name for name, encoder in ENCODERS.items() if encoder.published_layout is not None]
    raise UserError(f'the weights do not hold a known encoder ({", ".join(known)}).')


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
    scale, dims = meta.get('posenc_scale', POSENC_SCALE), weights['position_encoder.proj.weight'].shape[1]
    if meta.get('posenc_dims', dims) != dims:
        raise UserError(f'the positional bias has {dims} inputs, but enc_dims says {meta["posenc_dims"]}.')
    return 'published' if (scale, dims) == (POSENC_SCALE, POSENC_DIMS) else {'scale': scale, 'dims': dims}


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


def to_published(
    network_g: dict, params: dict[str, Tensor], unused: dict[str, Tensor] | None = None, args: dict | None = None
) -> dict:
    """The inverse of :func:`convert`: what the published code loads as ``{'model': ...}``.

    Args:
        network_g: type and options of a network of ours.
        params: its weights.
        unused: published key -> tensor, of layers that the published code builds and never uses, if they are known.
        args: the published hyper-parameters, if they are known; otherwise they are made from the options.

    Returns:
        dict: ``name``, ``args``, ``sd``.

    Raises:
        UserError: the published code has no such network.
    """
    options = with_defaults(network_g)
    name = _published_name(options)
    encoder_opt = network_g['encoder']
    _check_normalization(encoder_opt, params)
    normalization = {f'encoder.{key}' for key in BUFFERS}
    used = {key: value for key, value in params.items() if key not in normalization | {'trained_branches'}}
    encoder = {key.removeprefix('encoder.'): value for key, value in used.items() if key.startswith('encoder.')}
    head = {key: value for key, value in used.items() if not key.startswith('encoder.')}
    own = ENCODERS[encoder_opt['type']]
    places = own.describe(encoder, {'res_scale': encoder_opt.get('res_scale', 1)})
    if own.published_layout is None or places is None:
        known = ', '.join(name for name, one in ENCODERS.items() if one.published_layout is not None)
        raise UserError(f'no published code uses the encoder {encoder_opt["type"]}; it does with {known}.')
    encoder = layouts.rename_back(
        encoder, own.published_layout, n=places.get('num_block', 0), m=places.get('num_group', 0)
    )
    sd = {f'encoder.{key}': value for key, value in encoder.items()} | layouts.rename_back(head, LAYOUTS[name])
    sd |= _unused_layers(name, own, options) | (unused or {})
    if args is None:
        args = _published_args(name, options, own.published_spec({'res_scale': 1, **places}))
    return {'name': name, 'args': args, 'sd': sd}


def with_defaults(network_g: dict) -> dict:
    """The options of a network, those that were left out at their defaults."""
    parameters = inspect.signature(ARCH_REGISTRY.get(network_g['type'])).parameters
    return {name: p.default for name, p in parameters.items() if name != 'upscale'} | network_g


def _published_name(options: dict) -> str:
    kind = options['type']
    if kind in ('LIIF', 'LTE', 'MetaSR'):
        if kind == 'LTE' and not options['local_ensemble']:
            raise UserError('the published LTE always has its local ensemble; train with local_ensemble: true.')
        return kind.lower()
    if kind not in ('CLIT', 'LIT'):
        raise UserError(f'no published code exists for {kind}; it does for CLIT, LIT, LIIF, LTE and MetaSR.')
    wrong = [
        (f'{key}: {options[key]}', f'{key}: {value}')
        for key, value in (('aggregation', 'flatten'), ('upsampling_padding', 'zeros'))
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


def _check_normalization(encoder_opt: dict, params: dict[str, Tensor]) -> None:
    encoder = build_encoder(encoder_opt)
    values = [params.get(f'encoder.{key}', getattr(encoder, key)) for key in ('input_range', 'feat_scale')]
    mean = params.get('encoder.input_mean', encoder.input_mean)
    if [value.item() for value in values] != [2, 1] or not bool((mean == 0.5).all()):
        raise UserError(
            'the published code knows no other input than (x - 0.5) / 0.5, unscaled features; this network has '
            f'range {values[0].item():g}, mean {[round(v, 4) for v in mean.flatten().tolist()]}, feat_scale '
            f'{values[1].item():g}; train with img_range: 2, rgb_mean: [0.5, 0.5, 0.5] in network_g:encoder.'
        )


def _unused_layers(name: str, encoder: type[Trunk], options: dict) -> dict[str, Tensor]:
    layers = {f'encoder.{key}': value for key, value in encoder.published_unused().items()}
    if name == 'lit':
        layers['pe_encoder.proj.weight'] = torch.zeros(1, options['frequency_dims'])
        layers['pe_encoder.proj.bias'] = torch.zeros(1)
    return layers


def _published_args(name: str, options: dict, encoder_spec: dict) -> dict:
    hidden = options.get('hidden_dims')
    mlp: dict = {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': list(hidden or ())}}
    encoder_spec['args']['no_upsampling'] = True
    args: dict = {'encoder_spec': encoder_spec}
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
        block = {'scale': POSENC_SCALE, 'dims': POSENC_DIMS} if block == 'published' else block
        args['pb_spec'] = _posenc_spec(block['scale'], block['dims'])
    if name == 'lit':
        pe_spec = _posenc_spec(options['frequency_scale'], options['frequency_dims'])
        pe_spec['args']['complex_transform'] = True
        return {**args, 'pe_spec': pe_spec, 'local_ensemble': options['local_ensemble']}
    branches = options.get('num_branches', 1)
    return {**args, 'r': options['grid_size'] // 2, 'imnet_num': branches, 'conv_num': branches}


def _posenc_spec(scale: float, dims: int) -> dict:
    return {'name': 'posenc', 'args': {'posenc_type': 'sinusoid', 'posenc_scale': scale, 'enc_dims': dims}}
