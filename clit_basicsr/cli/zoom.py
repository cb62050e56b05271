"""``basicsr zoom``: an animation that zooms into a picture, each frame at its own scale."""

import argparse
import time
from os import path as osp

from clit_basicsr.base.console import hides_bars, say
from clit_basicsr.base.devices import choose_device
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import check_is_picture_file
from clit_basicsr.cli import arguments, outputs, sizes
from clit_basicsr.pictures import networks
from clit_basicsr.pictures.formats import FILMS

HELP = 'Zoom continuously into a point of a picture: GIF or MP4, every frame computed at its own scale.'
EXAMPLES = (
    'basicsr zoom photo.jpg --at 0.40,0.36 --to 12            # photo_zoom.gif',
    'basicsr zoom photo.jpg -o zoom.mp4 --seconds 10 --width 720',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', help='a picture')
    parser.add_argument(
        '-o',
        '--output',
        metavar='OUT',
        help='the animation, .gif or .mp4; default: beside the picture, named <picture>_zoom.gif',
    )
    parser.add_argument(
        '--at',
        default='0.5,0.5',
        metavar='X,Y',
        help='the point to zoom into, in fractions of width and height, with a decimal point (0.3,0.75), or in pixels '
        '(120,340); default: the centre',
    )
    parser.add_argument('--to', type=float, default=16, metavar='S', help='scale of the last frame; default: 16')
    parser.add_argument('--seconds', type=float, default=6, help='default: 6')
    parser.add_argument('--fps', type=float, default=20, help='frames per second; default: 20')
    parser.add_argument(
        '--width',
        type=int,
        metavar='N',
        help="width of the frames in pixels, rounded to an even number; the height follows; default: the picture's, at "
        'most 480. The animation begins with a window of this width at x1, or with the whole picture if smaller',
    )
    arguments.add_model(parser)
    arguments.add_device_and_force(parser, 'an existing animation')


def run(args: argparse.Namespace) -> None:
    if args.output is None:
        args.output = f'{osp.splitext(args.input)[0]}_zoom.gif'
    if osp.splitext(args.output)[1].lower() not in FILMS:
        raise UserError(f'{args.output}: an animation is written as .gif or .mp4.')
    if args.width is not None and args.width < 2:
        raise UserError(f'--width: a frame has at least 2 pixels; got {args.width}.')
    check_is_picture_file(args.input)
    path = networks.find_checkpoint(args.model)
    outputs.check([args.output], args.force, [args.input])
    from clit_basicsr.pictures.memory import reporting_full_memory

    with reporting_full_memory(args.input, 'give a smaller --width'):
        _zoom(args, path)


def _zoom(args: argparse.Namespace, path: str) -> None:
    from tqdm import tqdm

    from clit_basicsr.pictures import files, zoom

    began = time.monotonic()
    picture = files.read(args.input)
    h, w = picture.pixels.shape[:2]
    width = max(2, (args.width or min(w, 480)) // 2 * 2)
    frame_size = (max(2, round(width * h / w / 2) * 2), width)
    num_frames = zoom.check_film(args.output, frame_size, args.seconds, args.fps)
    shots = zoom.plan_shots((h, w), frame_size, sizes.point(args.at, h, w), args.to, num_frames)
    picture, shots = zoom.cut_to_film(picture, shots, frame_size)
    device = choose_device(args.device)
    net = networks.load_network(path, device)
    say(f'{networks.label_of(path)}: {type(net).__name__} on {device}, single precision')
    film = zoom.render_film(net, picture, shots, frame_size)
    with tqdm(film, args.input, num_frames, unit='frame', leave=False, disable=hides_bars()) as frames:
        if args.output.lower().endswith('.gif'):
            palette = zoom.shared_palette(picture, shots, frame_size)
            zoom.write_gif(args.output, frames, zoom.gif_durations(num_frames, args.fps), palette)
        else:
            zoom.write_mp4(args.output, frames, args.fps, frame_size)
    say(
        f'{args.input} -> {args.output}: x{shots[0].scale:.3g} to x{shots[-1].scale:.3g}, {len(shots)} frames of '
        f'{frame_size[1]}x{frame_size[0]} ({time.monotonic() - began:.1f} s)'
    )
