"""``basicsr compare``: what networks make of one picture, crop by crop, as Figures 5 and 6 of the CLIT paper."""

from __future__ import annotations

import argparse
from os import path as osp
from typing import TYPE_CHECKING

from clit_basicsr.base.console import say
from clit_basicsr.base.devices import choose_device
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import check_is_picture_file
from clit_basicsr.cli import arguments, outputs, sizes
from clit_basicsr.data.downsamplings import DOWNSAMPLINGS
from clit_basicsr.metrics.protocols import PROTOCOLS
from clit_basicsr.pictures import networks

if TYPE_CHECKING:
    from clit_basicsr.archs.implicit import ImplicitNet
    from clit_basicsr.pictures.compare import Crop

HELP = 'Draw crops of a picture next to what bicubic interpolation and networks make of its shrunk copy, with PSNR.'
EXAMPLES = (
    'basicsr compare photo.png -s 3.4 8                       # bicubic and clit-light',
    'basicsr compare photo.png -m clit-light my_lit -s 4 --crop 60,40,64,64',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('image', help='the ground truth; the LR images are made from it')
    parser.add_argument(
        '-m',
        '--model',
        '--models',
        dest='models',
        nargs='+',
        metavar='MODEL',
        help=f'one or more networks, each {networks.HELP}',
        default=[None],
    )
    parser.add_argument(
        '-s',
        '--scale',
        nargs='+',
        action='extend',
        metavar='S',
        help='factors, 3.4, or 2x3.5 for width x height, a row of crops for each; default: 4',
    )
    parser.add_argument(
        '--crop',
        metavar='X,Y,W,H',
        help='upper left corner, width and height in pixels; default: where the networks differ most from bicubic',
    )
    parser.add_argument(
        '--downsampling', choices=DOWNSAMPLINGS, default='pil', help='how LR images are made; default: pil'
    )
    parser.add_argument('--protocol', choices=list(PROTOCOLS), default='benchmark', help='of PSNR; default: benchmark')
    parser.add_argument(
        '-o',
        '--output',
        metavar='PNG',
        help='the figure; default: beside the picture, named <picture>_compare.png',
    )
    arguments.add_device_and_force(parser, 'an existing figure')


def run(args: argparse.Namespace) -> None:
    scales = [parse_pair(text) for text in args.scale or ['4']]
    crop = None if args.crop is None else parse_crop(args.crop)
    check_is_picture_file(args.image)
    paths = [networks.find_checkpoint(model) for model in args.models]
    output = outputs.figure(args.output, args.image, 'compare', args.force)
    from clit_basicsr.pictures.memory import reporting_full_memory

    with reporting_full_memory(args.image, 'use a smaller picture, or a part of it'):
        _compare(args, paths, scales, crop, output)


def _compare(
    args: argparse.Namespace, paths: list[str], scales: list[tuple[float, float]], crop: Crop | None, output: str
) -> None:
    from clit_basicsr.pictures import compare, files

    hr = files.eight_bit(files.read(args.image).rgb)  # as the LR images of the papers are made of
    nets = load(paths, args.device)
    if crop is not None:
        check_crop(crop, hr.shape[:2])
    comparisons = [compare.compare(nets, hr, scale, args.downsampling, args.protocol) for scale in scales]
    how = 'as given'
    if crop is None:
        crop, how = compare.most_different(comparisons), 'where networks and bicubic differ most'
    check_crop(crop, compare.common_size(comparisons))
    place = ','.join(str(crop[i]) for i in (1, 0, 3, 2))
    note = (
        f'PSNR of the whole picture: {PROTOCOLS[args.protocol]}, not rounded\n'
        f'LR images by {args.downsampling}; crop x,y,w,h = {place}, {how}'
    )
    compare.draw_comparison(comparisons, crop, osp.basename(args.image), note, output)
    for one in comparisons:
        figures = ', '.join(f'{answer.label} {answer.psnr:.2f} dB' for answer in one.answers)
        print(f'x{compare.factor_text(one.scale)}: {figures}')
    say(f'{output}: crop {place}, {how}')


def load(paths: list[str], device: str | None) -> dict[str, ImplicitNet]:
    """Bicubic interpolation and the networks, by what the figure calls them: names, or paths where names repeat."""
    from clit_basicsr.archs.bicubic_arch import Bicubic

    names = [networks.name_of(path) for path in paths]
    where = choose_device(device)
    nets: dict[str, ImplicitNet] = {'bicubic': Bicubic().to(where).eval()}
    for path, name in zip(paths, names, strict=True):
        label = name if names.count(name) == 1 and name != 'bicubic' else path
        if label in nets:
            raise UserError(f'--models: {path} is named twice.')
        nets[label] = networks.load_network(path, where)
    return nets


def parse_pair(text: str) -> tuple[float, float]:
    scale = sizes.parse_scale(text)
    return scale if isinstance(scale, tuple) else (scale, scale)


def parse_crop(text: str) -> Crop:
    """(y, x, h, w) from 'x,y,w,h'; UserError unless these are four whole numbers that describe a part of a picture."""
    try:
        x, y, w, h = (int(number) for number in text.split(','))
    except ValueError:
        raise UserError(f'--crop: give x,y,w,h in whole pixels, such as 40,60,64,64; got {text!r}.') from None
    if min(y, x) < 0 or min(h, w) < 1:
        raise UserError(f'--crop: {text} is not a part of a picture: x and y start at 0, w and h at 1.')
    return y, x, h, w


def check_crop(crop: Crop, size: tuple[int, ...]) -> None:
    y, x, h, w = crop
    if y + h > size[0] or x + w > size[1]:
        raise UserError(
            f'--crop: {x},{y},{w},{h} ends at column {x + w}, row {y + h}; there are {size[1]} columns and {size[0]} '
            'rows that every scale covers.'
        )
