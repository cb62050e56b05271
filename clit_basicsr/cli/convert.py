"""``basicsr convert``: checkpoints of the published repositories into ours and back, .pth into .safetensors and
back.
"""

import argparse

import torch

from clit_basicsr import published
from clit_basicsr.archs import build_network, save_checkpoint
from clit_basicsr.archs.checkpoint import load_weights
from clit_basicsr.base.checkpoints import read_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import temporary_name
from clit_basicsr.cli import outputs

HELP = 'Convert a checkpoint: published CLIT, LIT, LIIF, LTE, Meta-SR into ours or back; .pth, .safetensors.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', help='a published checkpoint, or one of ours (.pth or .safetensors)')
    parser.add_argument('output', help='the file to write: .pth, or .safetensors')
    parser.add_argument('--to-published', action='store_true', help='write the layout of the published repositories')
    parser.add_argument('--param_key', default='params_ema', help='the weights that --to-published takes')


def run(args: argparse.Namespace) -> None:
    content = read_checkpoint(args.input)
    if 'model' in content:
        content = published.from_file(args.input)
        net = build_network(content['network_g'])
        load_weights(net, content['params'], f'the weights in {args.input}')
        content['params'] = net.state_dict()  # with the encoder's normalisation
    if 'network_g' not in content:
        raise UserError(f'{args.input} does not say which network it is of (no network_g in it).')
    outputs.check([args.output], force=True)
    try:
        if args.to_published:
            _write_published(content, args.output, args.param_key)
        else:
            save_checkpoint(args.output, content)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
        raise UserError(f'{args.output} cannot be written ({reason}).') from error
    print(f'{args.input} -> {args.output}: {content["network_g"]["type"]}')


def _write_published(content: dict, path: str, param_key: str) -> None:
    if not path.endswith(('.pth', '.pt')):
        raise UserError(f'the published layout is a .pth file; {path} is not.')
    weights = content[param_key if param_key in content else 'params']
    spec = published.to_published(
        content['network_g'], weights, content.get('published_unused'), content.get('published_args')
    )
    with temporary_name(path) as temporary:
        torch.save({'model': spec}, temporary)
