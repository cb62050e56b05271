"""``basicsr upscale``: pictures, folders and patterns in, bigger pictures out."""

from __future__ import annotations

import argparse
import glob
import os
import sys
import time
from collections.abc import Callable
from os import path as osp
from typing import TYPE_CHECKING

from clit_basicsr.base.devices import choose_device
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import check_is_picture_file, names_in
from clit_basicsr.base.precisions import PRECISIONS, check_speed
from clit_basicsr.cli import arguments, outputs, sizes
from clit_basicsr.formats.folders import describe_skipped
from clit_basicsr.pictures import networks
from clit_basicsr.pictures.formats import FORMATS

if TYPE_CHECKING:
    from clit_basicsr.archs.implicit import ImplicitNet

HELP = 'Enlarge pictures by any factor from 1 up.'
# What is taken of a folder.
SUFFIXES = (*FORMATS, '.gif', '.jfif', '.jp2', '.avif', '.pgm', '.ppm')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', nargs='+', help='pictures; folders, all of whose pictures are used; patterns')
    parser.add_argument(
        '-o',
        '--output',
        required=True,
        metavar='OUT',
        help='the file to write, or the folder: names and formats stay, what cannot be written becomes .png',
    )
    sizes.add_arguments(parser)
    arguments.add_model(parser)
    parser.add_argument(
        '--tile', type=int, metavar='N', help='side of the tiles that the encoder sees, pixels; default: by free memory'
    )
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        help='in which the network computes; bf16 and fp16 are for GPUs; default: fp32, as torch is set',
    )
    arguments.add_device_and_force(parser, 'pictures that exist')


def run(args: argparse.Namespace) -> None:
    target = sizes.parse(args)
    if args.tile is not None and args.tile < 1:
        raise UserError(f'--tile: a tile has at least 1 pixel; got {args.tile}.')
    jobs = plan_outputs(args.input, args.output)
    outputs.check([output for _, output in jobs], args.force, [source for source, _ in jobs])
    if len(jobs) == 1:
        check_is_picture_file(jobs[0][0])
    path = networks.find_checkpoint(args.model)
    device = choose_device(args.device)
    check_speed(args.precision, device.type, '--precision')
    from clit_basicsr.pictures.memory import reporting_full_memory

    net = networks.load_network(path, device)
    print(f'{networks.label_of(path)}: {type(net).__name__} on {device}, {args.precision or "fp32"}')
    began, failed = time.monotonic(), 0
    for i, (source, output) in enumerate(jobs, 1):
        count = f'[{i}/{len(jobs)}] ' if len(jobs) > 1 else ''
        try:
            with reporting_full_memory(source, 'give a smaller size, or enlarge a part of it'):
                upscale_file(net, source, output, target, args.tile, args.precision, count)
        except UserError as error:
            if len(jobs) == 1:
                raise
            print(f'basicsr: error: {error}', file=sys.stderr)
            failed += 1
    if len(jobs) > 1:
        print(f'{len(jobs) - failed} of {len(jobs)} pictures written in {time.monotonic() - began:.1f} s')
    if failed:
        raise UserError(f'{failed} of {len(jobs)} pictures failed.')


def upscale_file(
    net: ImplicitNet,
    source: str,
    output: str,
    target: Callable[[int, int], dict],
    tile: int | None,
    precision: str | None,
    count: str,
) -> None:
    """One picture from file to file. ``target``: see :func:`clit_basicsr.cli.sizes.parse`."""
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
        tiles = plan_tiles(net, (h, w), factors, tile)
        label = f'{count}{osp.basename(source)} {w}x{h} -> {width}x{height}'
        bigger, tiles = enlarge(net, picture, **options, dtype=dtype, tiles=tiles, precision=precision, label=label)
    except UserError as error:
        raise UserError(f'{source}: {error}') from error
    del picture
    files.write(output, bigger)
    notes = ''.join(f'; {note}' for note in (*bigger.notes, *losses))
    print(f'{count}{source} {w}x{h} -> {output} {width}x{height} ({time.monotonic() - began:.1f} s, {tiles}{notes})')


def plan_outputs(inputs: list[str], output: str) -> list[tuple[str, str]]:
    """Pairs of a picture and the file that is written for it.

    Raises:
        UserError: nothing is to be done, or two pictures would be written to one file.
    """
    if '' in (*inputs, output):
        raise UserError('a picture or the output has an empty name.')
    sources: list[str] = []
    for one in inputs:
        sources += find_pictures(one)
    one_file = len(inputs) == len(sources) == 1 and not osp.isdir(inputs[0])
    is_folder = osp.isdir(output) or output.endswith(('/', os.sep)) or not osp.splitext(output)[1]
    if not is_folder:
        if not one_file:
            raise UserError(f'{output} is not a folder; several pictures, or those of a folder, need one.')
        return [(sources[0], output)]
    jobs: dict[str, str] = {}
    for source in sources:
        stem, suffix = osp.splitext(osp.basename(source))
        path = osp.join(output, stem + (suffix if suffix.lower() in FORMATS else '.png'))
        if path in jobs:
            raise UserError(f'{jobs[path]} and {source} would both be written to {path}; do them apart.')
        jobs[path] = source
    return [(source, path) for path, source in jobs.items()]


def find_pictures(pattern: str) -> list[str]:
    """The file itself, the pictures of a folder, or the files that a pattern (``*``, ``?``, ``[...]``) means."""
    if osp.isdir(pattern):
        names = names_in(pattern)
        taken = [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith('.')]
        with os.scandir(pattern) as entries:
            skipped = describe_skipped(entries, set(taken))
        if not taken:
            raise UserError(f'the folder {pattern} holds no pictures' + (f' ({skipped}).' if skipped else '.'))
        if skipped:
            print(f'{pattern}: skipped: {skipped}')
        return [osp.join(pattern, name) for name in taken]
    if not osp.exists(pattern) and glob.has_magic(pattern):
        found = sorted(path for path in glob.glob(pattern, recursive=True) if not osp.isdir(path))
        if not found:
            raise UserError(f'no file matches {pattern}.')
        return found
    return [pattern]
