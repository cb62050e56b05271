"""``basicsr upscale``: pictures, folders and patterns in, bigger pictures out."""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
import time
from collections.abc import Callable
from os import path as osp
from typing import TYPE_CHECKING

from clit_basicsr.base.console import say
from clit_basicsr.base.devices import choose_device
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import check_is_picture_file
from clit_basicsr.base.precisions import PRECISIONS, check_speed
from clit_basicsr.cli import arguments, outputs, sizes
from clit_basicsr.formats.folders import describe_skipped, holds, walk
from clit_basicsr.pictures import networks
from clit_basicsr.pictures.formats import FORMATS, QUALITY

if TYPE_CHECKING:
    from clit_basicsr.archs.implicit import ImplicitNet

SMALLEST_TILE = 8  # pixels; smaller ones would be little but padding, and take hours
HELP = 'Enlarge pictures by any factor of at least 1.'
EXAMPLES = (
    'basicsr upscale photo.jpg -s 3.7                        # photo_x3.7.jpg',
    'basicsr upscale holiday/ -o enlarged/ --width 3840 -r    # every picture, sub-folders too',
    "basicsr upscale 'scans/*.tif' -o big/ -s 2x3.5           # 2 times as wide, 3.5 times as high",
    'basicsr upscale frames/ -o big/ -s 4 --shard 3/16        # on the third of 16 machines',
)
# What is taken of a folder.
SUFFIXES = (*FORMATS, '.gif', '.jfif', '.jp2', '.avif', '.pgm', '.ppm')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', nargs='+', help='pictures; folders, all of whose pictures are used; patterns')
    parser.add_argument(
        '-o',
        '--output',
        metavar='OUT',
        help='the file to write, or the folder: names and formats are kept; formats that cannot be written become '
        '.png; default: '
        'beside each picture, photo_x3.7.jpg or photo_1920x1080.jpg',
    )
    sizes.add_arguments(parser)
    arguments.add_model(parser)
    parser.add_argument(
        '--tile', type=int, metavar='N', help="side of the encoder's tiles in pixels; default: by free memory"
    )
    parser.add_argument(
        '--quality', type=int, default=QUALITY, metavar='1-100', help=f'of JPEG and WebP; default: {QUALITY}'
    )
    parser.add_argument('-r', '--recursive', action='store_true', help='the pictures of sub-folders too')
    parser.add_argument(
        '--shard',
        metavar='I/N',
        help='process only pictures I, I + N, I + 2 N ...: 3/16 is the third of 16 shares, for several machines',
    )
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        help='precision of the computation; bf16 and fp16 are for GPUs; default: single precision, with TF32 '
        'convolutions on GPUs',
    )
    parser.add_argument(
        '--skip-existing', action='store_true', help='leave out pictures whose result exists: continues a batch'
    )
    arguments.add_device_and_force(parser, 'existing pictures')


def run(args: argparse.Namespace) -> None:
    target = sizes.parse(args)
    if args.tile is not None and args.tile < SMALLEST_TILE:
        raise UserError(f'--tile: a tile has at least {SMALLEST_TILE} pixels a side; got {args.tile}.')
    if not 1 <= args.quality <= 100:
        raise UserError(f'--quality: from 1 to 100; got {args.quality}.')
    if args.skip_existing and args.force:
        raise UserError('--skip-existing leaves existing pictures, -f overwrites them; give one of the two.')
    part, parts = parse_shard(args.shard)
    # Planned as a whole, so that every shard sees the same conflicts of names.
    planned = plan_outputs(args.input, args.output, sizes.suffix(args), args.recursive)
    jobs = planned[part - 1 :: parts]
    if not jobs:
        say(f'nothing to do: there are only {len(planned)} pictures for {parts} shards')
        return
    if args.skip_existing:
        jobs = without_existing(jobs)
        if not jobs:
            return
    remedy = 'use -f to overwrite it' if len(jobs) == 1 else '-f overwrites, --skip-existing leaves out what is done'
    outputs.check([output for _, output in jobs], args.force, [source for source, _ in planned], remedy)
    if len(jobs) == 1:
        check_is_picture_file(jobs[0][0])
    path = networks.find_checkpoint(args.model)
    device = choose_device(args.device)
    check_speed(args.precision, device.type, '--precision')
    from clit_basicsr.pictures.memory import reporting_full_memory

    net = networks.load_network(path, device)
    say(f'{networks.label_of(path)}: {type(net).__name__} on {device}, {args.precision or "single precision"}')
    began, failed = time.monotonic(), 0
    for i, (source, output) in enumerate(jobs, 1):
        count = f'[{i}/{len(jobs)}] ' if len(jobs) > 1 else ''
        try:
            with reporting_full_memory(source, 'give a smaller size, or enlarge a part of it'):
                upscale_file(net, source, output, target, args, count)
        except UserError as error:
            if len(jobs) == 1:
                raise
            print(f'basicsr: error: {error}', file=sys.stderr)
            failed += 1
    if len(jobs) > 1:
        say(f'{len(jobs) - failed} of {len(jobs)} pictures written in {time.monotonic() - began:.1f} s')
    if failed:
        raise UserError(f'{failed} of {len(jobs)} pictures failed.')


def without_existing(jobs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The jobs whose result does not exist yet; the others are counted in a line."""
    rest = [job for job in jobs if not osp.lexists(job[1])]
    if len(rest) < len(jobs):
        say(f'{len(jobs) - len(rest)} of {len(jobs)} results exist already and are skipped')
    return rest


def upscale_file(
    net: ImplicitNet,
    source: str,
    output: str,
    target: Callable[[int, int], dict],
    args: argparse.Namespace,
    count: str,
) -> None:
    """One picture from file to file.

    Args:
        target: see :func:`clit_basicsr.cli.sizes.parse`.
        args: tile, precision and quality of them.
        count: what is printed before its name.
    """
    from clit_basicsr.pictures import files
    from clit_basicsr.pictures.enlarge import enlarge
    from clit_basicsr.pictures.memory import plan_tiles

    began = time.monotonic()
    picture = files.read(source)
    h, w = picture.pixels.shape[:2]
    try:
        options = target(h, w)
        (height, width), factors = sizes.result(h, w, options)
        dtype, losses = files.check_output(output, picture, (height, width))
        tiles = plan_tiles(net, (h, w), factors, args.tile)
        label = f'{count}{osp.basename(source)} {w}x{h} -> {width}x{height}'
        bigger, tiles = enlarge(
            net, picture, **options, dtype=dtype, tiles=tiles, precision=args.precision, label=label
        )
    except UserError as error:
        raise UserError(f'{source}: {error}') from error
    del picture
    files.write(output, bigger, args.quality)
    notes = ''.join(f'; {note}' for note in (*bigger.notes, *losses))
    say(f'{count}{source} {w}x{h} -> {output} {width}x{height} ({time.monotonic() - began:.1f} s, {tiles}{notes})')


def parse_shard(text: str | None) -> tuple[int, int]:
    """(3, 16) from '3/16', (1, 1) from None. Raises UserError for anything else."""
    match = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text or '1/1')
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f'--shard: give I/N, the I-th of N parts, from 1/N to N/N, such as 3/16; got {text!r}.')
    return int(match[1]), int(match[2])


def plan_outputs(inputs: list[str], output: str | None, suffix: str, recursive: bool) -> list[tuple[str, str]]:
    """Pairs of a picture and the file that is written for it.

    Args:
        output: a file or a folder; None: beside each picture, its name with ``suffix``.
        recursive: whether to look into the sub-folders of folders, too; the output gets the same ones.

    Raises:
        UserError: nothing is to be done, or two pictures would be written to one file.
    """
    if '' in (*inputs, output):
        raise UserError('a picture or the output has an empty name.')
    sources: list[tuple[str, str]] = []  # pictures, and the folder of the output that each goes to
    for one in inputs:
        if osp.isdir(one):
            if output is None:
                raise UserError(f'{one} is a folder; give another one for the results (-o).')
            sources += pictures_in(one, recursive, output)
        else:
            sources += [(path, '') for path in files_of(one)]
    jobs: dict[str, str] = {}
    is_folder = output is not None and (
        osp.isdir(output) or output.endswith(('/', os.sep)) or not osp.splitext(output)[1]
    )
    if output is not None and not is_folder:
        if len(inputs) != 1 or len(sources) != 1 or osp.isdir(inputs[0]):
            raise UserError(f'{output} is not a folder; several pictures, or those of a folder, need one.')
        return [(sources[0][0], output)]
    for source, folder in sources:
        stem, ending = osp.splitext(source if output is None else osp.basename(source))
        ending = ending if ending.lower() in FORMATS else '.png'
        path = f'{stem}{suffix}{ending}' if output is None else osp.join(output, folder, stem + ending)
        if path in jobs:
            raise UserError(f'{jobs[path]} and {source} would both be written to {path}; process them separately.')
        jobs[path] = source
    return [(source, path) for path, source in jobs.items()]


def pictures_in(root: str, recursive: bool, output: str) -> list[tuple[str, str]]:
    """The pictures of a folder, each with its folder below ``root``; those below the output are left out.

    Links to folders are followed unless they lead back.
    """
    found: list[tuple[str, str]] = []
    skipped = ''
    for below, entries in walk(root, recursive, [output]):
        inner = {entry.name for entry in entries if recursive and holds(entry.is_dir)}
        taken = [one.name for one in entries if one.name.lower().endswith(SUFFIXES) and one.name not in inner]
        folder = osp.join(root, below) if below else root
        found += [(osp.join(folder, name), below) for name in taken]
        skipped = describe_skipped(entries, {*taken, *inner})
        if skipped and (taken or recursive):
            say(f'{folder}: skipped: {skipped}')
    if not found:
        raise UserError(f'the folder {root} holds no pictures' + (f' ({skipped}).' if skipped else '.'))
    return found


def files_of(pattern: str) -> list[str]:
    """The file itself, or the files that a pattern (``*``, ``?``, ``[...]``) means."""
    if not osp.exists(pattern) and glob.has_magic(pattern):
        found = sorted(path for path in glob.glob(pattern, recursive=True) if not osp.isdir(path))
        if not found:
            raise UserError(f'no file matches {pattern}.')
        return found
    return [pattern]
