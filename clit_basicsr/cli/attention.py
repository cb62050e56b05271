"""``basicsr attention``: what a query looks at, as Figure 7 of the CLIT paper shows it."""

from __future__ import annotations

import argparse
from os import path as osp

from clit_basicsr.base.console import hides_bars, say
from clit_basicsr.base.devices import choose_device
from clit_basicsr.base.files import check_is_picture_file
from clit_basicsr.cli import arguments, outputs, sizes
from clit_basicsr.pictures import networks

HELP = 'Draw the attention of LIT or CLIT at points of a picture: one map for each head and branch.'
EXAMPLES = ('basicsr attention small.png --at 0.3,0.4 -s 8 -m experiments/my_clit',)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('image', help='the LR picture')
    parser.add_argument(
        '--at',
        nargs='+',
        required=True,
        metavar='X,Y',
        help='points: parts of width and height, written with a point (0.3,0.75), or pixels (120,340); the attention '
        'shown is that of the HR pixel that contains the point',
    )
    parser.add_argument(
        '-s',
        '--scale',
        default='4',
        metavar='S',
        help='factor of the result, 3.7, or 2x3.5 for width x height; default: 4',
    )
    arguments.add_model(parser)
    parser.add_argument(
        '-o',
        '--output',
        metavar='PNG',
        help='the figure; default: beside the picture, named <picture>_attention.png',
    )
    arguments.add_device_and_force(parser, 'an existing figure')


def run(args: argparse.Namespace) -> None:
    scale = sizes.parse_scale(args.scale)
    check_is_picture_file(args.image)
    path = networks.find_checkpoint(args.model)
    output = outputs.figure(args.output, args.image, 'attention', args.force)
    from clit_basicsr.pictures.memory import reporting_full_memory

    with reporting_full_memory(args.image, 'use a smaller picture, or a part of it'):
        _attention(args, scale, path, output)


def _attention(args: argparse.Namespace, scale: float | tuple[float, float], path: str, output: str) -> None:
    from tqdm import tqdm

    from clit_basicsr.pictures import files
    from clit_basicsr.pictures.attention import attention_at, draw_attention

    picture = files.read(args.image)
    points = [sizes.point(text, *picture.pixels.shape[:2]) for text in args.at]
    net = networks.load_network(path, choose_device(args.device))
    with tqdm(points, desc='attention', unit='point', delay=1, disable=hides_bars()) as bar:
        views = [attention_at(net, picture, at, scale) for at in bar]
    title = f'{osp.basename(args.image)} at x{args.scale}: {type(net).__name__}, {networks.name_of(path)}'
    draw_attention(views, picture, title, output)
    say(f'{output}: {len(views)} {"point" if len(views) == 1 else "points"}, {networks.label_of(path)}')
