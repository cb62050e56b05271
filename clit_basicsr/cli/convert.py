"""``basicsr convert``: checkpoints of the published repositories into ours and back, .pth into .safetensors and
back.
"""

import argparse
import os

from clit_basicsr.base.console import say
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.file_kinds import FLAX, SAFETENSORS, SUFFIXES, check_regular
from clit_basicsr.base.files import temporary_name
from clit_basicsr.cli import arguments, outputs

HELP = 'Convert a checkpoint: published ones of CLIT and its peers into ours or back; .pth, .safetensors.'
EXAMPLES = (
    'basicsr convert published.pth clit.pth',
    'basicsr convert clit.pth clit.safetensors',
    'basicsr convert clit.pth published.pth --to-published',
)
WEIGHTS = ('params_ema', 'params')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'input',
        help='a published checkpoint (.pth; Thera: .pkl), or one of this package or of MMagic (.pth, .safetensors)',
    )
    parser.add_argument(
        'output', help='the file to write: .pth, .pt or .safetensors; published ones .pth, of Thera .pkl'
    )
    parser.add_argument('--to-published', action='store_true', help='write the layout of the published repositories')
    parser.add_argument(
        '--param_key',
        help='the weights to take, params or params_ema; default: both for .pth, else params_ema where there are any',
    )
    arguments.add_force(parser, 'the output if it exists')


def run(args: argparse.Namespace) -> None:
    suffixes = (*SUFFIXES, FLAX) if args.to_published else SUFFIXES
    if not args.output.endswith(suffixes):
        raise UserError(f'{args.output}: the output is a checkpoint; give a name that ends in {", ".join(suffixes)}.')
    outputs.check([args.output], args.force, [args.input])
    check_regular(args.input)
    from clit_basicsr.archs.checkpoint import save_checkpoint
    from clit_basicsr.base.checkpoints import write_checkpoint
    from clit_basicsr.base.flax_file import write_flax

    content = _chosen(_read(args.input), args.param_key, args.input)
    spec = None
    if args.to_published:
        spec = _published(content, args.output)
    try:
        os.makedirs(os.path.dirname(args.output) or '.', exist_ok=True)
        if spec is None:
            save_checkpoint(args.output, content)
        else:
            with temporary_name(args.output) as temporary:
                if spec['name'] == 'thera':
                    write_flax(spec, temporary)
                else:
                    write_checkpoint({'model': spec}, temporary)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
        raise UserError(f'{args.output} cannot be written ({reason}).') from error
    say(f'{args.input} -> {args.output}: {content["network_g"]["type"]}')


def _read(path: str) -> dict:
    """The content of a checkpoint in our terms, with weights that fit its network."""
    from clit_basicsr import published
    from clit_basicsr.archs.checkpoint import load_weights
    from clit_basicsr.archs.networks import build_from_file
    from clit_basicsr.base.checkpoints import read_checkpoint, weights_in

    content = read_checkpoint(path)
    if 'model' in content:
        content = published.from_file(path)
    if 'network_g' not in content:
        raise UserError(
            f'{path} does not say which network it belongs to (it has no network_g); only checkpoints that '
            'basicsr train and basicsr convert write, and published ones, can be converted.'
        )
    for key in [key for key in WEIGHTS if key in content]:
        weights = weights_in(content, key, path)
        net = build_from_file(content['network_g'], weights, path)
        load_weights(net, weights, f'the weights {key} in {path}')
        content[key] = net.state_dict()  # with the encoder's normalisation
    return content


def _chosen(content: dict, param_key: str | None, path: str) -> dict:
    """The content with the weights of that key alone; None: with all of them."""
    there = [key for key in WEIGHTS if key in content]
    if not there:
        raise UserError(f'{path} holds no weights (neither params nor params_ema).')
    if param_key is None:
        return content
    if param_key not in there:
        raise UserError(f'{path} has no {param_key!r}; --param_key can be {" or ".join(there)}.')
    return {**{key: value for key, value in content.items() if key not in WEIGHTS}, 'params': content[param_key]}


def _published(content: dict, path: str) -> dict:
    suffix = FLAX if content['network_g'].get('type') == 'Thera' else '.pth'
    if path.endswith(SAFETENSORS) or (suffix == FLAX) != path.endswith(FLAX):
        raise UserError(f'the published layout is a {suffix} file; {path} is not.')
    weights = content[next(key for key in WEIGHTS if key in content)]
    unused, spec = content.get('published_unused'), content.get('published_args')
    if not isinstance(unused, dict | None) or not isinstance(spec, dict | None):
        raise UserError('published_unused or published_args in the input are of a wrong type; convert the original.')
    from clit_basicsr import published

    return published.to_published(content['network_g'], weights, unused, spec)
