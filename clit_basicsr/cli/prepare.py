"""``basicsr prepare``: folders of images into LMDBs, sub-images and LR images; what is in an LMDB, and is it sound."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from os import path as osp

from clit_basicsr.base.console import hides_bars, say
from clit_basicsr.base.errors import Terminated, UserError
from clit_basicsr.base.messages import scale_text
from clit_basicsr.cli import arguments
from clit_basicsr.data.downsamplings import DOWNSAMPLINGS

HELP = 'Prepare images for training: LMDBs, sub-images, LR images. Inspect and verify LMDBs.'
EXAMPLES = (
    'basicsr prepare DIV2K_train_HR -o DIV2K_train_HR.lmdb     # raw LMDB, fastest to read',
    'basicsr prepare DIV2K_train_HR -o train_480 --crop-size 480 --step 240',
    'basicsr prepare Urban100/HR -o Urban100/LR_bicubic -s 2 3 4 --downsampling matlab',
    'basicsr prepare --info --verify DIV2K_train_HR.lmdb',
)
FORMATS = {'raw': 'raw', 'lmdb': 'encoded', 'folder': 'folder'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', nargs='*', help='folders of images')
    parser.add_argument('-o', '--output', metavar='OUT', help='what to write: NAME.lmdb, or a folder')
    parser.add_argument(
        '--format',
        choices=FORMATS,
        help="raw: LMDB of uncompressed rows, fastest for crops; lmdb: BasicSR's LMDB of encoded images; folder: PNG "
        'files. Default: raw if OUT ends in .lmdb, otherwise folder',
    )
    cut = parser.add_argument_group("sub-images, as BasicSR's extract_subimages makes them")
    cut.add_argument('--crop-size', type=int, metavar='N', help='side of the sub-images, pixels')
    cut.add_argument(
        '--step', type=int, metavar='N', help='distance between sub-images in pixels; default: half of --crop-size'
    )
    cut.add_argument(
        '--thresh-size', type=int, metavar='N', help='remainders of at most N pixels are dropped; default: 0'
    )
    lr = parser.add_argument_group('LR images, 8 bit')
    lr.add_argument(
        '-s', '--scales', type=float, nargs='+', metavar='S', help='OUT/X2, OUT/X3 ...: LR images at these scales'
    )
    lr.add_argument('--downsampling', choices=DOWNSAMPLINGS, help='how; default: pil')
    parser.add_argument('--compression', type=int, default=3, metavar='0-9', help='level of PNG; default: 3')
    parser.add_argument('-r', '--recursive', action='store_true', help='the images of sub-folders too')
    parser.add_argument('--processes', type=int, metavar='N', help='default: one for each core')
    parser.add_argument('--info', action='store_true', help='describe existing LMDBs')
    parser.add_argument('--verify', action='store_true', help='read every image of existing LMDBs and check it')
    arguments.add_force(parser, 'an output that exists, and drop unfinished work on other images')


def run(args: argparse.Namespace) -> None:
    if not args.input:
        raise UserError('give the folders of the images, or LMDBs with --info or --verify.')
    if args.info or args.verify:
        if args.output:
            raise UserError('--info and --verify write nothing; leave out -o.')
        inspect(args)
        return
    if not args.output:
        raise UserError('give the output: -o NAME.lmdb, or a folder.')
    kind, cut = checked(args)
    for folder in args.input:
        if not osp.isdir(folder):
            raise UserError(f'{folder} is not a folder; give the folder of the images.')
        # Sub-folders hold what was made, and a second run would take that for images.
        within = osp.commonpath([osp.realpath(folder), osp.realpath(args.output)]) == osp.realpath(folder)
        if args.recursive and kind == 'folder' and within:
            raise UserError(f'-o {args.output} is inside {folder}, whose sub-folders are read; give another output.')
    from tqdm import tqdm

    from clit_basicsr.data.preparation.recipe import Recipe, SubImages, folder_name
    from clit_basicsr.data.preparation.run import Work, gigabytes, prepare
    from clit_basicsr.data.preparation.sources import find_sources

    output = args.output.rstrip('/' + os.sep) or os.sep
    scales = tuple(args.scales or ())
    suffix = '' if kind == 'folder' else '.lmdb'
    paths = tuple(osp.join(output, folder_name(scale) + suffix) for scale in scales) or (output,)
    recipe = Recipe(kind, cut and SubImages(*cut), scales, args.downsampling or 'pil', args.compression)
    began = time.monotonic()
    work = Work(tuple(find_sources(args.input, args.recursive)), recipe, paths)
    left = work if args.force else work.unfinished()
    if left is None:
        say(f'{", ".join(paths)}: already complete; -f makes it again')
        return
    left.check_outputs(args.force)
    left.check_space()
    written, count, items = ', '.join(left.paths), len(left.sources), sum(len(keys) for keys in left.keys)
    say(f'{count} images -> {written}: {items} {_kind(args)}, about {gigabytes(sum(left.sizes))}')
    dotted = [key for keys in left.keys for key in keys if '.' in key] if kind == 'encoded' else []
    if dotted:
        print(
            f'prepare: {len(dotted)} names hold a dot, the first {dotted[0]!r}; this package reads them, but BasicSR '
            'itself takes names up to the first dot and will not find them.',
            file=sys.stderr,
        )
    processes = min(args.processes or os.cpu_count() or 1, count)
    try:
        with tqdm(
            total=count, unit='image', desc='prepare', leave=False, delay=1, file=sys.stderr, disable=hides_bars()
        ) as bar:
            already = prepare(left, processes, args.force, bar.update)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('the same command continues where it left off') from None
    except Terminated:
        raise Terminated('terminated; the same command continues where it left off') from None
    continued = f' ({already} from the run before)' if already else ''
    say(f'{written}: {items} {_kind(args)} written and verified in {time.monotonic() - began:.1f} s{continued}')


def _kind(args: argparse.Namespace) -> str:
    return 'sub-images' if args.crop_size else 'LR images' if args.scales else 'images'


def checked(args: argparse.Namespace) -> tuple[str, tuple[int, int, int] | None]:
    """The format, and size, step and threshold of sub-images. Raises UserError for options that contradict."""
    is_lmdb = args.output.rstrip('/').endswith('.lmdb')
    kind = args.format or ('raw' if is_lmdb else 'folder')
    if not args.scales and (kind == 'folder') == is_lmdb:
        wanted = 'does not end' if is_lmdb else 'ends'
        raise UserError(f'-o {args.output}: the name of an output of --format {kind} {wanted} in .lmdb.')
    if args.scales and is_lmdb:
        raise UserError(f'-o {args.output}: with --scales the output is a folder, which will hold X2.lmdb and so on.')
    if not 0 <= args.compression <= 9:
        raise UserError(f'--compression: a level from 0 to 9; got {args.compression}.')
    if args.processes is not None and args.processes < 1:
        raise UserError(f'--processes: at least 1; got {args.processes}.')
    for scale in args.scales or ():
        if not 1 <= scale < 1e4:
            raise UserError(f'--scales: a scale is at least 1; got {scale:g}.')
    names = [scale_text((scale, scale)) for scale in args.scales or ()]
    if len(set(names)) != len(names):
        raise UserError(f'--scales: two of them would both be X{Counter(names).most_common(1)[0][0]}; leave out one.')
    if args.scales and args.crop_size:
        raise UserError('--crop-size and --scales: make sub-images first, then LR images of their folder.')
    if args.downsampling and not args.scales:
        raise UserError('--downsampling is for LR images; give their --scales.')
    if args.crop_size is None:
        if args.step is not None or args.thresh_size is not None:
            raise UserError('--step and --thresh-size are for sub-images; give their --crop-size.')
        if kind == 'folder' and not args.scales:
            raise UserError('nothing to do: give --crop-size, --scales, or an output that ends in .lmdb.')
        return FORMATS[kind], None
    step = max(args.crop_size // 2, 1) if args.step is None else args.step
    cut = (args.crop_size, step, args.thresh_size or 0)
    for name, value, least in (('crop-size', cut[0], 1), ('step', cut[1], 1), ('thresh-size', cut[2], 0)):
        if value < least:
            raise UserError(f'--{name}: at least {least}; got {value}.')
    return FORMATS[kind], cut


def inspect(args: argparse.Namespace) -> None:
    for root in args.input:
        if not osp.isdir(root):
            raise UserError(f'{root} is not a folder; give that of an LMDB.')
    from tqdm import tqdm

    from clit_basicsr.data.preparation import inspection

    bad = 0
    for root in args.input:
        if args.info:
            print('\n'.join(inspection.describe(root)))
        if args.verify:
            problems, count = [], 0
            with tqdm(unit='image', desc='verify', leave=False, delay=1, file=sys.stderr, disable=hides_bars()) as bar:
                for problem in inspection.damaged(root):
                    bar.update()
                    count += 1
                    problems += [problem] if problem else []
            for problem in problems:
                print(f'basicsr: error: {problem}', file=sys.stderr)
            bad += len(problems)
            if not problems:
                print(f'{root}: all {count} images are sound')
    if bad:
        raise UserError(f'{bad} images are damaged.')
