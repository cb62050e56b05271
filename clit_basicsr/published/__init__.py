"""Weights in the layout of the published repositories, as networks of this package, and back.

A published checkpoint is ``{'model': {'name', 'args', 'sd'}}``: CLIT and LIT (https://github.com/jaroslaw1007/CLIT),
LIIF and Meta-SR (https://github.com/yinboc/liif), LTE (https://github.com/jaewon-lee-b/lte), SRNO
(https://github.com/2y7c3/Super-Resolution-Neural-Operator), HIIF; of Thera it is a pickle of arrays, see ``thera``.
Their images are (x - 0.5) / 0.5 (but Thera's), ours in [0, 1].
"""

import logging
import os
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clit_basicsr.archs.checkpoint import load_weights
from clit_basicsr.archs.encoders import ENCODERS, build_encoder, layouts
from clit_basicsr.archs.encoders.layouts import Layout
from clit_basicsr.archs.encoders.trunk import BUFFERS, Trunk
from clit_basicsr.archs.network_options import with_defaults
from clit_basicsr.archs.networks import build_from_file
from clit_basicsr.base.checkpoints import read_checkpoint, weights_in
from clit_basicsr.base.errors import UserError
from clit_basicsr.published import thera
from clit_basicsr.published.hyperparameters import DESCRIBE, Weights, published_args, published_name, remarks

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
    'sronet': (
        ('conv00.{p}', 'conv00.{p}'),
        ('conv{j}.qkv_proj.{p}', 'conv{j}.qkv.{p}'),
        ('conv{j}.o_proj{i}.{p}', 'conv{j}.out{i}.{p}'),
        ('conv{j}.{q}ln.{p}', 'conv{j}.{q}_norm.{p}'),
        ('fc{i}.{p}', 'fc{i}.{p}'),
    ),
    'hiif': (
        ('freq.{p}', 'freq.{p}'),
        ('fc_layers.{i}.{rest}', 'mlps.{i}.{rest}'),
        ('conv{j}.qkv_proj.{p}', 'conv{j}.qkv.{p}'),
        ('conv{j}.proj{i}.{p}', 'conv{j}.out{i}.{p}'),
        ('conv{j}.{q}ln.{p}', 'conv{j}.{q}_norm.{p}'),
    ),
    'thera': thera.LAYOUT,
}
# Layers that the published networks build and never use.
UNUSED = re.compile(r'encoder\.(sub|add)_mean\..+|pe_encoder\.proj\..+')
# Other names of the same kind, in files or here.
SYNONYMS = {'srno': 'sronet', 'hiifv3': 'hiif'}
# The normalisation of the published networks' input.
NORMALIZATION = {'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
INPUT = {2: '(x - 0.5) / 0.5', thera.NORMALIZATION['img_range']: '(x - mean of DIV2K) / 0.50001'}
# Weights of these layers are vectors.
NORMS = re.compile(r'(norm\d?|[kv]ln|LayerNorm_\d|residual\.layers_1)\.weight$')


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


def load(kind: str, state_dict: dict[str, Tensor], **meta) -> nn.Module:
    """Builds a network of ours around weights in the published layout.

    Args:
        kind: 'clit', 'lit', 'liif', 'lte', 'metasr', 'sronet' (or 'srno'), 'hiif' or 'thera'.
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
    kind = SYNONYMS.get(kind, kind)
    if kind not in LAYOUTS:
        raise UserError(f'published weights of kind {kind!r} cannot be loaded; known: {", ".join(LAYOUTS)}.')
    state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    if kind == 'thera':
        state_dict = thera.from_flax(state_dict)
    unused = {key: value for key, value in state_dict.items() if UNUSED.fullmatch(key)}
    used = {key: value for key, value in state_dict.items() if key not in unused}
    for key, value in used.items():
        matrix = key.endswith('_table') or not (key.startswith('encoder.') or NORMS.search(key))
        if key.endswith(('.weight', '_table')) and (not value.numel() or value.dim() < (2 if matrix else 1)):
            raise UserError(f'the weights are not those of a network: {key} has the shape {tuple(value.shape)}.')
    encoder = {key.removeprefix('encoder.'): value for key, value in used.items() if key.startswith('encoder.')}
    params, encoder_opt = _convert_encoder(encoder, meta)
    encoder_opt |= thera.NORMALIZATION if kind == 'thera' else NORMALIZATION
    head, unknown = layouts.rename({k: v for k, v in used.items() if not k.startswith('encoder.')}, LAYOUTS[kind])
    if unknown:
        raise UserError(f'the weights hold {next(iter(unknown))!r}, which has no place in a network of kind {kind!r}.')
    if kind == 'sronet':  # its layers are 1 x 1 convolutions, ours linear
        head = {key: value.flatten(1) if value.dim() == 4 else value for key, value in head.items()}
    head = Weights(head)
    meta['channels'] = ENCODERS[encoder_opt['type']].channels_of(encoder_opt)
    options = DESCRIBE[kind](head, meta)
    if options.get('num_branches', 1) > 1:
        head['trained_branches'] = torch.tensor(options['num_branches'])
    network_g = {'type': options.pop('type'), 'encoder': encoder_opt, **options}
    return Converted(network_g, {**{f'encoder.{key}': value for key, value in params.items()}, **head}, unused)


def _convert_encoder(weights: dict[str, Tensor], meta: dict) -> tuple[dict[str, Tensor], dict]:
    for encoder in ENCODERS.values():
        if encoder.published_layout is None:
            continue
        renamed, unknown = layouts.rename(weights, encoder.published_layout)
        options = None if unknown else encoder.describe(Weights(renamed), meta)
        if options is not None:
            return renamed, options
    known = [name for name, encoder in ENCODERS.items() if encoder.published_layout is not None]
    raise UserError(f'the weights do not hold a known encoder ({", ".join(known)}).')


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
    name = published_name(options)
    encoder_opt = network_g['encoder']
    if name == 'thera' and encoder_opt['type'] not in thera.BACKBONES:
        known = ' or '.join(thera.BACKBONES)
        raise UserError(f'the published Thera has no encoder {encoder_opt["type"]}; train it with {known}.')
    _check_normalization(encoder_opt, params, thera.NORMALIZATION if name == 'thera' else NORMALIZATION)
    branches = options.get('num_branches', 1)
    trained = int(params.get('trained_branches', branches))
    if trained < branches:
        raise UserError(
            f'{trained} of {branches} branches are trained, which the published layout cannot say; '
            'finish the training first.'
        )
    normalization = {f'encoder.{key}' for key in BUFFERS}
    used = {key: value for key, value in params.items() if key not in normalization | {'trained_branches'}}
    encoder = {key.removeprefix('encoder.'): value for key, value in used.items() if key.startswith('encoder.')}
    head = thera.without_masks({key: value for key, value in used.items() if not key.startswith('encoder.')})
    if name == 'sronet':
        head = {key: value[..., None, None] if value.dim() == 2 else value for key, value in head.items()}
    own = ENCODERS[encoder_opt['type']]
    places = own.describe(encoder, {'res_scale': encoder_opt.get('res_scale', 1)})
    if own.published_layout is None or places is None:
        known = ', '.join(name for name, one in ENCODERS.items() if one.published_layout is not None)
        raise UserError(f'no published code uses the encoder {encoder_opt["type"]}; it does with {known}.')
    encoder = layouts.rename_back(
        encoder, own.published_layout, n=places.get('num_block', 0), m=places.get('num_group', 0)
    )
    sd = {f'encoder.{key}': value for key, value in encoder.items()} | layouts.rename_back(head, LAYOUTS[name])
    if name == 'thera':
        sd = thera.to_flax(sd)
    else:
        sd |= _unused_layers(name, own, options) | (unused or {})
    if args is None:
        spec = own.published_spec({'res_scale': 1, **places})
        for line in remarks(name, options, spec):
            logging.getLogger('basicsr').warning(line)
        args = published_args(name, options, spec)
    return {'name': name, 'args': args, 'sd': sd}


def _check_normalization(encoder_opt: dict, params: dict[str, Tensor], published: dict) -> None:
    encoder = build_encoder(encoder_opt)
    values = [params.get(f'encoder.{key}', getattr(encoder, key)).item() for key in ('input_range', 'feat_scale')]
    mean = params.get('encoder.input_mean', encoder.input_mean).flatten().tolist()
    wanted = [published['img_range'], 1, *published['rgb_mean']]
    if any(abs(a - b) > 1e-6 for a, b in zip([*values, *mean], wanted, strict=True)):
        raise UserError(
            f'the published code knows no other input than {INPUT[published["img_range"]]}, unscaled features; this '
            f'network has range {values[0]:g}, mean {[round(v, 4) for v in mean]}, feat_scale {values[1]:g}; train '
            f'with img_range: {published["img_range"]}, rgb_mean: {published["rgb_mean"]} in network_g:encoder.'
        )


def _unused_layers(name: str, encoder: type[Trunk], options: dict) -> dict[str, Tensor]:
    layers = {f'encoder.{key}': value for key, value in encoder.published_unused().items()}
    if name == 'lit':
        layers['pe_encoder.proj.weight'] = torch.zeros(1, options['frequency_dims'])
        layers['pe_encoder.proj.bias'] = torch.zeros(1)
    return layers
