"""Every system on one small encoder, with the same data, seed and number of iterations: one table of PSNR.

    python scripts/benchmarks/equal_budget.py --train datasets/DIV2K/DIV2K_train_HR --output equal_budget \\
        --sets Set5=datasets/benchmark/Set5/HR Set14=datasets/benchmark/Set14/HR

Trains with `basicsr train` and measures with `basicsr test`, by option files that it writes to --output; there table.md
and table.csv grow with each system. The same command continues where it was stopped: finished systems are not trained
again, and an unfinished one resumes. Names are those of SYSTEMS.

Widths are 96 where the papers have 256, and everything else as in the papers, apart from LIT and CLIT with C = 48 and
5 x 5 positions, and Thera plus: its tail has half the blocks, as the encoder has, with 3/4 of the width, and its fields
have 192 components. The table gives the parameters beside the figures. All are trained with L1 and Adam, the learning
rate along a cosine in each stage, for Thera plus a fifth of it, as hundreds of components add up. `lit_cumulative` and
`clit` divide their iterations into stages as the paper does.
"""

import argparse
import csv
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from clit_basicsr.archs import build_network
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import replacing

SCALES = (2, 3, 4, 6, 8, 12)
WIDTH = 96
LIT = {'dim': 48, 'num_heads': 4, 'grid_size': 5, 'hidden_dims': [WIDTH] * 4}
GALERKIN = {'dim': WIDTH, 'num_heads': 6, 'hidden_dim': WIDTH}  # heads of 16 channels, as with 256
PLUS = {'num_components': 192, 'tail': {'widths': [48] * 3 + [72] * 3 + [96] * 2}}
SMALL, LARGE = [1, 4], [4, 12]


class System(NamedTuple):
    """What is trained: options of the decoder; stages as (share of the iterations, branches, scales); part of --lr."""

    title: str
    network: dict[str, Any]
    stages: list[tuple[float, int, list]] = [(1, 1, [[SMALL]])]
    rate: float = 1


SYSTEMS = {
    'bicubic': System('Bicubic', {'type': 'Bicubic'}, []),
    'metasr': System('Meta-SR', {'type': 'MetaSR', 'hidden_dims': [WIDTH]}),
    'liif': System('LIIF', {'type': 'LIIF', 'hidden_dims': [WIDTH] * 4}),
    'lte': System('LTE', {'type': 'LTE', 'dim': WIDTH, 'hidden_dims': [WIDTH] * 3}),
    'ultrasr': System('UltraSR', {'type': 'UltraSR', 'dim': WIDTH}),
    'ipe': System('IPE', {'type': 'IPE', 'hidden_dims': [WIDTH] * 4}),
    'srno': System('SRNO', {'type': 'SRNO', **GALERKIN}),
    'hiif': System('HIIF', {'type': 'HIIF', **GALERKIN}),
    'thera_air': System('Thera air', {'type': 'Thera'}),
    'thera_plus': System('Thera plus', {'type': 'Thera', 'variant': 'plus', **PLUS}, rate=1 / 5),
    'lit': System('LIT', {'type': 'LIT', **LIT}),
    'lit_cumulative': System(
        'LIT, cumulative', {'type': 'LIT', **LIT}, [(1 / 2, 1, [[SMALL]]), (1 / 2, 1, [[SMALL], [LARGE]])]
    ),
    'clit': System(
        'CLIT',
        {'type': 'CLIT', 'num_branches': 3, **LIT},
        [
            (2 / 7, 1, [[SMALL]]),
            (2 / 7, 2, [[SMALL], [SMALL, SMALL]]),
            (3 / 7, 3, [[SMALL], [SMALL, SMALL], [SMALL, SMALL, [1, 2]]]),
        ],
    ),
}


class Run(NamedTuple):
    """One system with one seed; its files are in --output under ``name``."""

    system: str
    seed: int

    @property
    def name(self) -> str:
        return f'{self.system}_seed{self.seed}'


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    runs = [Run(system, seed) for seed in args.seeds for system in args.systems if system != 'bicubic' or not seed]
    try:
        sets = parse_sets(args.sets)
        for run in runs:
            write_options(args, run, sets)  # before anything is trained: wrong sizes and changed settings show now
        for number, run in enumerate(runs, 1):
            print(f'[{number}/{len(runs)}] {SYSTEMS[run.system].title}, seed {run.seed}', flush=True)
            carry_out(args.output, run)
            write_tables(args, [one for one in runs if summary_of(args.output, one).is_file()], sets)
    except UserError as error:
        sys.exit(f'equal_budget: {error}')
    except KeyboardInterrupt:
        sys.exit('equal_budget: stopped; the same command continues from here')
    print(f'{args.output / "table.md"}:\n\n{(args.output / "table.md").read_text()}')


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--train', required=True, type=Path, help='folder of HR images, or a raw LMDB')
    parser.add_argument('--sets', required=True, nargs='+', metavar='NAME=FOLDER', help='HR images to measure on')
    parser.add_argument('--output', required=True, type=Path, help='folder of option files, runs and tables')
    parser.add_argument('--systems', nargs='+', choices=SYSTEMS, default=list(SYSTEMS), metavar='NAME')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--scales', nargs='+', type=float, default=list(SCALES))
    parser.add_argument('--iters', type=int, default=20000, help='of each system, all stages together')
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--lq-size', type=int, default=32, help='side of the LR patches')
    parser.add_argument('--num-queries', type=int, default=1024, help='HR pixels of each patch')
    parser.add_argument('--num-feat', type=int, default=48, help='channels of the encoder, an EDSR')
    parser.add_argument('--num-block', type=int, default=8, help='its residual blocks')
    parser.add_argument('--workers', type=int, default=1, help='processes that load data; the batches are the same')
    parser.add_argument('--num-gpu', type=int, default=0)
    return parser


def parse_sets(entries: list[str]) -> dict[str, Path]:
    sets = {}
    for entry in entries:
        name, equals, folder = entry.partition('=')
        if not equals or not name or not Path(folder).is_dir():
            raise UserError(f'--sets {entry}: write NAME=FOLDER, such as Set5=datasets/benchmark/Set5/HR')
        sets[name] = Path(folder).resolve()
    return sets


def network_options(args: argparse.Namespace, system: str) -> dict[str, Any]:
    options = dict(SYSTEMS[system].network)
    if system == 'bicubic':
        return options
    encoder = {'type': 'EDSR', 'num_feat': args.num_feat, 'num_block': args.num_block}
    return options | {'encoder': encoder | {'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}}


def stages(args: argparse.Namespace, system: str) -> list[dict[str, Any]]:
    """The stages of ``train``; their iterations add up to --iters."""
    blocks, done, share = [], 0, 0.0
    lr = SYSTEMS[system].rate * args.lr
    for part, branches, scales in SYSTEMS[system].stages:
        share += part
        iters = round(share * args.iters) - done
        done += iters
        rate = {'lr': lr, 'eta_min': lr / 1000, 'warmup_iter': min(200, iters // 10)}
        blocks.append({'branches': branches, 'iters': iters, **rate, 'scales': scales})
    return blocks


def training_options(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    is_lmdb = (args.train / 'data.mdb').is_file()
    data = {
        'name': 'train',
        'type': 'RandomScaleDataset',
        'dataroot_gt': str(args.train.resolve()),
        'io_backend': {'type': 'lmdb' if is_lmdb else 'disk'},
        'lq_size': args.lq_size,
        'num_queries': args.num_queries,
        'num_worker_per_gpu': args.workers,
        'batch_size_per_gpu': args.batch_size,
        'dataset_enlarge_ratio': 100,
    }
    return {
        'name': run.name,
        'model_type': 'CumulativeSRModel',
        'num_gpu': args.num_gpu,
        'manual_seed': run.seed,
        'datasets': {'train': data},
        'network_g': network_options(args, run.system),
        'path': {'pretrain_network_g': None},
        'train': {
            'ema_decay': 0.998,
            'optim_g': {'type': 'Adam', 'betas': [0.9, 0.999]},
            'stages': stages(args, run.system),
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
        },
        'logger': {'print_freq': max(1, args.iters // 20), 'save_checkpoint_freq': max(1, min(1000, args.iters))},
    }


def test_options(args: argparse.Namespace, run: Run, sets: dict[str, Path]) -> dict[str, Any]:
    data = {}
    for name, folder in sets.items():
        for scale in args.scales:
            block = {'name': f'{name}_x{scale:g}', 'type': 'ScaledPairDataset', 'dataroot_gt': str(folder)}
            data[f'test_{block["name"]}'] = block | {'scale': scale, 'downsampling': 'matlab', 'protocol': 'benchmark'}
    weights = None if run.system == 'bicubic' else f'experiments/{run.name}/models/net_g_latest.pth'
    return {
        'name': run.name,
        'model_type': 'ImplicitSRModel',
        'num_gpu': args.num_gpu,
        'manual_seed': run.seed,
        'datasets': data,
        'network_g': network_options(args, run.system),
        'path': {'pretrain_network_g': weights, 'param_key_g': 'params_ema'},
        'val': {'save_img': False, 'metrics': {'psnr': {'type': 'calculate_psnr_float'}}},
    }


def write_options(args: argparse.Namespace, run: Run, sets: dict[str, Path]) -> None:
    """The option files of a run. Raises UserError if it was begun with others."""
    for kind, options in (('train', training_options(args, run)), ('test', test_options(args, run, sets))):
        path, text = args.output / 'options' / f'{kind}_{run.name}.yml', yaml.safe_dump(options, sort_keys=False)
        if path.is_file() and path.read_text() != text:
            raise UserError(f'{path} was written with other settings; give those again, or another --output')
        with replacing(str(path)) as unfinished:
            Path(unfinished).write_text(text)


def carry_out(folder: Path, run: Run) -> None:
    """Trains and measures, as far as that is not done already."""
    final = folder / 'experiments' / run.name / 'models' / 'net_g_latest.pth'
    if run.system != 'bicubic' and not final.is_file():
        call('train', folder, run, '--auto_resume')
    if not summary_of(folder, run).is_file():
        call('test', folder, run)


def call(command: str, folder: Path, run: Run, *flags: str) -> None:
    """Runs `basicsr` in the folder; iterations and measured sets are shown as they come."""
    options = f'options/{command}_{run.name}.yml'
    process = subprocess.Popen(
        [sys.executable, '-m', 'clit_basicsr', command, '-opt', options, *flags],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        process_group=0,  # Ctrl-C is for this script, which then ends the command in order
    )
    last: deque[str] = deque(maxlen=20)
    try:
        for line in process.stdout:
            last.append(line)
            if 'iter:' in line or 'Validation' in line:
                print('   ', line.strip(), flush=True)
    except BaseException:
        process.terminate()  # a training then saves its state
        process.wait()
        raise
    if process.wait():
        raise UserError(f'basicsr {command} -opt {folder / options} failed:\n{"".join(last)}')


def summary_of(folder: Path, run: Run) -> Path:
    return folder / 'results' / run.name / 'summary.csv'


def figures_of(folder: Path, run: Run) -> dict[str, float]:
    """PSNR by the name of set and scale, as `basicsr test` left it."""
    with open(summary_of(folder, run), newline='', encoding='utf-8') as file:
        return {row['name']: float(row['psnr']) for row in csv.DictReader(file)}


def write_tables(args: argparse.Namespace, runs: list[Run], sets: dict[str, Path]) -> None:
    """table.md, a row for each run; table.csv, unrounded, a row for each figure."""
    columns = [(name, scale) for name in sets for scale in args.scales]
    header = ['system', 'seed', 'parameters', *(f'{name} x{scale:g}' for name, scale in columns)]
    lines, rows = [header, ['---', *['---:'] * (len(header) - 1)]], []
    for run in runs:
        found = figures_of(args.output, run)
        count = sum(one.numel() for one in build_network(network_options(args, run.system)).parameters())
        values = [found[f'{name}_x{scale:g}'] for name, scale in columns]
        lines.append([SYSTEMS[run.system].title, str(run.seed), f'{count:,}', *(f'{value:.2f}' for value in values)])
        about = [SYSTEMS[run.system].title, run.seed, args.iters if count else 0, count]
        rows += [[*about, name, f'{scale:g}', value] for (name, scale), value in zip(columns, values, strict=True)]
    title = (
        f'PSNR in dB (Y, border of scale pixels), LR images made by `matlab`; {args.iters:,} iterations each, batches '
        f'of {args.batch_size} x {args.lq_size} x {args.lq_size} LR pixels with {args.num_queries:,} queries; EDSR of '
        f'{args.num_feat} channels, residual blocks: {args.num_block}.'
    )
    table = '\n'.join([title, '', *('| ' + ' | '.join(line) + ' |' for line in lines), ''])
    with replacing(str(args.output / 'table.md')) as unfinished:
        Path(unfinished).write_text(table)
    with replacing(str(args.output / 'table.csv')) as unfinished, open(unfinished, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['system', 'seed', 'iterations', 'parameters', 'set', 'scale', 'psnr'])
        writer.writerows(rows)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
