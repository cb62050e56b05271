"""``basicsr info``: what is available here, or what a checkpoint or a network of the package is."""

import argparse
import os
from os import path as osp
from pathlib import Path

from clit_basicsr import weights
from clit_basicsr.base.file_kinds import SUFFIXES, check_regular
from clit_basicsr.pictures import networks

HELP = 'Describe a checkpoint, or, without one, what this machine can run.'
EXAMPLES = (
    'basicsr info                                             # what can run here',
    'basicsr info clit-light                                  # a network of the package, with its card',
    'basicsr info experiments/my_clit/models/net_g_latest.pth',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'file',
        nargs='?',
        help="a checkpoint: ours, the host's, a published one, .safetensors; the name of an experiment; or a network "
        'that comes with the package',
    )


def run(args: argparse.Namespace) -> None:
    if args.file is not None:
        lines = []
        if not osp.exists(args.file) and not args.file.endswith(SUFFIXES):
            args.file = networks.find_checkpoint(args.file)
            lines = weights.card_lines(networks.name_of(args.file)) if weights.holds(args.file) else []
        check_regular(args.file)
        print('\n'.join([*lines, *describe(args.file)]))
        return
    from clit_basicsr.cli.environment import report

    print(report())


def describe(path: str | os.PathLike) -> list[str]:
    """Lines about a checkpoint. Raises UserError if it is not one, or does not hold what it claims."""
    from torch import Tensor

    from clit_basicsr import published
    from clit_basicsr.archs.checkpoint import load_weights
    from clit_basicsr.archs.networks import build_from_file
    from clit_basicsr.base.checkpoints import read_checkpoint, weights_in
    from clit_basicsr.hosts.basicsr.training_state import check_training_state

    content = read_checkpoint(path)
    lines = [str(path)]
    if {'iter', 'optimizers', 'options'} <= content.keys():
        check_training_state(content, Path(path))
        return [*lines, *describe_state(content)]
    if 'model' in content:
        spec = published.read_file(path)
        lines.append(f'  published checkpoint: {spec["name"]}, {_million(spec["sd"])}')
        content = published.from_file(path)
    weights = {key: weights_in(content, key, path) for key in ('params', 'params_ema') if key in content}
    if not weights:
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        return [
            *lines,
            f'  {len(tensors)} tensors, {_million(tensors)}; keys: {", ".join(map(str, list(content)[:6]))}',
        ]
    if 'network_g' not in content:
        lines.append('  a checkpoint without the options of its network')
        return [*lines, *(f'  {key}: {len(value)} tensors, {_million(value)}' for key, value in weights.items())]
    network_g = content['network_g']
    for key, value in weights.items():
        net = build_from_file(network_g, value, path)
        load_weights(net, value, f'the weights {key} in {path}')
    lines.append(f'  network: {network_g["type"]}, {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters')
    if hasattr(net, 'num_trained_branches'):
        lines.append(f'  trained branches: {net.num_trained_branches} of {len(list(net.branches.children()))}')
    lines += [f'  {key}: {value}' for key, value in network_g.items() if key != 'type']
    encoder = getattr(net, 'encoder', None)
    if hasattr(encoder, 'input_range'):
        mean = [round(value, 4) for value in encoder.input_mean.flatten().tolist()]
        lines.append(
            f'  input: (x - {mean}) * {encoder.input_range.item():g}, features * {encoder.feat_scale.item():g}'
        )
    return [*lines, f'  weights: {", ".join(weights)}']


def describe_state(state: dict) -> list[str]:
    """Lines about a training state: where it stands, and the stages of its training."""
    from clit_basicsr.data.schedule import TrainingPlan

    train = (state['options'] or {}).get('train') or {}
    stages = TrainingPlan.parse(train).stages if train.get('stages') else ()
    return [
        f'  training state after iteration {state["iter"]:,} (its network: models/net_g_{state["iter"]}.pth)',
        *(f'  stage {number}: {stage.describe()}' for number, stage in enumerate(stages, 1)),
    ]


def _million(weights: dict) -> str:
    from torch import Tensor

    return f'{sum(value.numel() for value in weights.values() if isinstance(value, Tensor)) / 1e6:.2f} M numbers'
