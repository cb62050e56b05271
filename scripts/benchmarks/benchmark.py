"""Times the backends of the local attention, interleaved in one process, against the arithmetic floor of this machine.

    python scripts/benchmarks/benchmark.py dense peers wide train memory --threads 1 --out scripts/benchmarks

prints the tables and writes them to RESULTS.md, with a plot, into the folder given:

dense   whole pictures with the encoder, LIT and CLIT, by every backend
peers   LIT and CLIT beside LIIF and LTE of this package, by the fastest backend
decoders  one picture by LIT and by every peer of this package
wide    pictures of LIT without the encoder, whole and in the tiles that ``basicsr upscale`` chooses
train   training steps, by every backend
memory  peaks, each in a process of its own

Times are CPU seconds, those of the wall clock beside them, and medians. Rates are in operations per CPU second too. The
floor is given at the median rate of the workload's run and at the fastest; floor.py counts its operations. The
reference runs in chunks of 2,048 and of 30,000 queries; --backends leaves it out where that takes too long. With
``--backends cpu 'cpu bf16'`` training steps are compared in single precision and in bf16.
``compare_checkouts.py`` compares two versions of the package.
"""

import argparse
import datetime
import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from clit_basicsr.cli.environment import versions

sys.path.insert(0, str(Path(__file__).parent))
import cases
import floor
from backends import REFERENCES, by_backend
from measure import Measured, instruction_set, measure
from result_tables import Floored, floor_table, markdown, peer_table, plot, wide_table

FLOORS = 'CPU seconds (multiples of the floor at the median rate, at the fastest rate{}).'


def against_floor(case, function: Callable[[], Any], backends: list[str], repeats: int) -> Floored:
    """One workload by every backend in turn; the references, many times slower, only once."""
    measured = measure({b: partial(by_backend, b, function) for b in backends}, repeats, slow=REFERENCES)
    report(case.name, measured)
    counted = (floor.operations(case), floor.operations(case, low_rank=True), floor.not_counted(case))
    return Floored(case.name, dict(measured.medians), measured.median_rate, measured.fastest_rate, *counted)


def report(name: str, measured: Measured) -> None:
    """A line of JSON for each workload, as soon as it is done."""
    rates = {'median rate': measured.median_rate, 'fastest rate': measured.fastest_rate, 'rates': len(measured.rates)}
    seconds = {key: value._asdict() for key, value in measured.medians.items()}
    print(json.dumps({'name': name, **rates, **seconds}), flush=True)


def dense(only: list[str], backends: list[str], repeats: int) -> list[Floored]:
    chosen = selected(cases.DENSE, only)
    net = cases.network() if chosen else None
    return [against_floor(case, cases.dense_call(net, case), backends, repeats) for case in chosen]


def train(only: list[str], backends: list[str], repeats: int) -> list[Floored]:
    chosen = selected(cases.TRAINING, only)
    net = cases.network().train() if chosen else None
    return [against_floor(case, cases.training_step(net, case), backends, repeats) for case in chosen]


def peers(workloads: list[cases.Dense], only: list[str], repeats: int) -> str:
    """A picture's systems in turn."""
    rows = []
    for name, group in groupby(workloads, key=lambda case: cases.describe(case.size, case.scale)):
        chosen = list(group)
        if not selected(chosen, only):
            continue
        calls = {case.system: cases.dense_call(cases.network(case.system), case) for case in chosen}
        measured = measure(calls, repeats)
        report(f'peers {name}', measured)
        rows.append((name, dict(measured.medians)))
    return peer_table(rows)


def wide(only: list[str], repeats: int) -> str:
    """All pictures in turn: they are compared with each other."""
    chosen = selected(cases.WIDE, only)
    measured = measure({case.name: cases.wide_call(cases.network(), case) for case in chosen}, repeats)
    report('wide', measured)
    rows = []
    for case in chosen:
        pixels, seconds = math.prod(case.size) / 1e6, measured.medians[case.name]
        least = floor.operations(case) / measured.median_rate
        rows.append((case.name, seconds.cpu / pixels, seconds.wall / pixels, least / pixels))
    return wide_table(rows)


def selected(workloads: list, only: list[str]) -> list:
    return [case for case in workloads if any(part in case.name for part in only)]


def memory(backends: list[str]) -> str:
    """Each measurement in a process of its own (memory.py): a peak cannot be taken back."""
    script = Path(__file__).parent / 'memory.py'
    names = ['dense LIT 512x512 x4', 'dense CLIT-3 24x24 x18', *(f'train {case.name}' for case in cases.TRAINING)]
    rows = []
    for name in names:
        cells = [name]
        for backend in backends:
            if backend in REFERENCES and '512' in name:
                cells.append('')  # a quarter of an hour
                continue
            command = [sys.executable, str(script), name, backend, str(torch.get_num_threads())]
            done = subprocess.run(command, capture_output=True, text=True)
            cells.append(done.stdout.strip() if done.returncode == 0 else 'failed')
        rows.append(cells)
        print(json.dumps(dict(zip(['name', *backends], cells, strict=True))), flush=True)
    return markdown(['workload', *backends], rows)


def sections(args: argparse.Namespace, floored: list[Floored]) -> Iterator[tuple[str, str, str]]:
    """Title, explanation and table of each part; what has a floor is added to ``floored``, for the plot."""
    references = [b for b in args.backends if b in REFERENCES]
    if 'dense' in args.what:
        rows = dense(args.only, args.backends, args.repeats)
        floored += rows
        text = FLOORS.format('; with the rank-16 rewrite at the median rate')
        yield 'Whole pictures, encoder included', text, floor_table(rows, args.backends, references)
    if 'peers' in args.what:
        yield 'Beside LIIF and LTE, encoder included', '', peers(cases.PEERS, args.only, args.repeats)
    if 'decoders' in args.what:
        yield 'All decoders, encoder included', '', peers(cases.DECODERS, args.only, args.repeats)
    if 'wide' in args.what:
        yield 'Wide pictures, without the encoder', '', wide(args.only, args.repeats)
    if 'train' in args.what:
        backends = [b for b in args.backends if b != 'reference 30000']
        rows = train(args.only, backends, args.repeats)
        floored += rows
        table = floor_table(rows, backends, [b for b in references if b in backends])
        yield 'Training step, forward and backward', FLOORS.format(''), table
    if 'memory' in args.what:
        yield 'Peak memory, MB', '', memory([b for b in args.backends if b != 'reference 2048'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='+', choices=['dense', 'peers', 'decoders', 'wide', 'train', 'memory'])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--backends', nargs='+', default=['cpu', 'torch', 'reference 2048', 'reference 30000'])
    parser.add_argument('--only', nargs='+', default=[''], help='workloads whose name contains one of these')
    parser.add_argument('--out', type=Path, help='folder for RESULTS.md and plot.png; none: print only')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    command = f'python {shlex.join(sys.argv)}'
    parts = ['# Results', '', f'{datetime.date.today()}, {platform.system()}, `{command}`', '']
    parts += [f'- {name}: {value}' for name, value in versions().items()]
    parts += [f'- instruction set: {instruction_set()}', f'- threads: {args.threads}', '']
    parts += ['Medians. Rates of a oneDNN convolution of the same run, per CPU second.', '']
    floored: list[Floored] = []
    for title, text, table in sections(args, floored):
        parts += [f'## {title}', '', *([text, ''] if text else []), table]
    print('\n'.join(parts))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'RESULTS.md').write_text('\n'.join(parts))
        if floored:
            plot(floored, args.backends, args.out / 'plot.png')


if __name__ == '__main__':
    main()
