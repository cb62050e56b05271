"""``basicsr attention``: what a query looks at, as Figure 7 of the CLIT paper shows it."""

import argparse
import os
from os import path as osp

from clit_basicsr.cli.sizes import parse_scale
from clit_basicsr.errors import UserError
from clit_basicsr.pictures import files, networks
from clit_basicsr.pictures.attention import draw_attention, look
from clit_basicsr.pictures.enlarge import choose_device

HELP = 'Draw the attention of LIT or CLIT at points of a picture: one map for each head and branch.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('image', help='the LR picture')
    parser.add_argument(
        '--at',
        nargs='+',
        required=True,
        metavar='Y,X',
        help='points in pixels of the picture, row and column from 0 (12.5 lies between two pixels); the HR pixel '
        'that a point lies in is asked',
    )
    parser.add_argument(
        '-s', '--scale', default='4', metavar='S', help='factor of the result, 3.7 or 2x3.5; default: 4'
    )
    parser.add_argument('--model', help=networks.HELP)
    parser.add_argument(
        '-o', '--output', metavar='PNG', help='the figure; default: the name of the picture_attention.png'
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ...; default: a GPU if there is one')
    parser.add_argument('-f', '--force', action='store_true', help='overwrite a figure that exists')


def run(args: argparse.Namespace) -> None:
    points, scale = [parse_point(text) for text in args.at], parse_scale(args.scale)
    output = figure_path(args.output, args.image, 'attention', args.force)
    picture = files.read(args.image)
    path = networks.find_checkpoint(args.model)
    net = networks.load_network(path, choose_device(args.device))
    views = [look(net, picture, at, scale) for at in points]
    title = f'{osp.basename(args.image)} at x{args.scale}: {type(net).__name__}, {networks.name_of(path)}'
    draw_attention(views, picture, title, output)
    print(f'{output}: {len(views)} of {len(views)} points, {path}')


def parse_point(text: str) -> tuple[float, float]:
    """(y, x) from 'y,x'."""
    try:
        y, x = (float(number) for number in text.split(','))
    except ValueError:
        raise UserError(f'--at: give a row and a column as y,x, such as 40,62.5; got {text!r}.') from None
    return y, x


def figure_path(output: str | None, image: str, suffix: str, force: bool) -> str:
    """Where a figure goes: what was asked for, or a name made from the picture's, in the working directory.

    Raises:
        UserError: it exists and may not be overwritten; it is no PNG; its folder is not there.
    """
    path = output or f'{osp.splitext(osp.basename(image))[0]}_{suffix}.png'
    if not path.lower().endswith('.png'):
        raise UserError(f'-o {path}: the figure is a PNG; give a name that ends in .png.')
    folder = osp.dirname(path) or os.curdir
    if not osp.isdir(folder):
        raise UserError(f'-o {path}: there is no folder {folder}; make it first.')
    if osp.exists(path) and not force:
        raise UserError(f'{path} exists; overwrite it with -f, or give another name with -o.')
    return path
