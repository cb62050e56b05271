"""Times every backend of the local attention, interleaved in one process, against the arithmetic floor of this machine.

    python scripts/benchmarks/benchmark.py dense train memory --threads 1 --repeats 5 --out scripts/benchmarks

prints the tables and writes them to RESULTS.md, with a plot, into the folder given. The reference runs in chunks of
2,048 and of 30,000 queries; --backends leaves it out where that takes too long.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median

import torch

from clit_basicsr.archs import lit_branch
from clit_basicsr.cli.environment import versions
from clit_basicsr.ops import use_backend

sys.path.insert(0, str(Path(__file__).parent))
import cases

REFERENCES = {'reference 2048': 2048, 'reference 30000': 30000}


def run(backend: str, function) -> float:
    """Seconds of one call."""
    queries = lit_branch.MAX_QUERIES
    lit_branch.MAX_QUERIES = REFERENCES.get(backend, queries)
    try:
        with use_backend(backend.split()[0]):
            began = time.perf_counter()
            function()
            return time.perf_counter() - began
    finally:
        lit_branch.MAX_QUERIES = queries


def measure(case, function, backends: list[str], repeats: int) -> dict:
    """Median seconds of each backend, the machine's rate before each of them, and the floor from the best rate."""
    seconds, rates = defaultdict(list), []
    for repeat in range(repeats + 1):
        for backend in backends:
            if backend in REFERENCES and repeat != 1:
                continue  # many times slower: once is enough
            rates.append(cases.machine_rate())
            spent = run(backend, function)
            if repeat:
                seconds[backend].append(spent)
    rates.append(cases.machine_rate())
    row = {'name': case.name, 'rate': max(rates), 'slowest rate': min(rates), 'floor': case.floor / max(rates)}
    return row | {backend: median(values) for backend, values in seconds.items()}


def table(title: str, rows: list[dict], backends: list[str]) -> str:
    """Markdown: seconds and, in brackets, multiples of the floor; then how many times faster than the references."""
    fast = [b for b in backends if b not in REFERENCES]
    compared = [b for b in backends if b in REFERENCES]
    head = ['workload', 'GFLOP/s', 'floor', *backends, *(f'{f} : {c}' for c in compared for f in fast)]
    lines = [f'## {title}', '', '| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for row in rows:
        cells = [row['name'], f'{row["rate"] / 1e9:.0f}', f'{row["floor"]:.2f}']
        cells += [f'{row[b]:.2f} ({row[b] / row["floor"]:.2f}x)' if b in row else '' for b in backends]
        cells += [f'{row[c] / row[f]:.1f}x' if c in row else '' for c in compared for f in fast]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join([*lines, ''])


def memory_table(backends: list[str]) -> str:
    """Each measurement in a process of its own (memory.py): a peak cannot be taken back."""
    script = Path(__file__).parent / 'memory.py'
    names = ['dense LIT 512x512 x4', 'dense CLIT-3 24x24 x18', *(f'train {case.name}' for case in cases.TRAINING)]
    lines = ['## Peak memory, MB', '', '| workload | ' + ' | '.join(backends) + ' |']
    lines.append('|' + '---|' * (len(backends) + 1))
    for name in names:
        cells = [name]
        for backend in backends:
            if backend in REFERENCES and '512' in name:
                cells.append('')  # a quarter of an hour
                continue
            command = [sys.executable, str(script), name, backend, str(torch.get_num_threads())]
            done = subprocess.run(command, capture_output=True, text=True)
            cells.append(done.stdout.strip() if done.returncode == 0 else 'failed')
        lines.append('| ' + ' | '.join(cells) + ' |')
        print(lines[-1], flush=True)
    return '\n'.join([*lines, ''])


def plot(rows: list[dict], backends: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4))
    width = 0.8 / len(backends)
    for i, backend in enumerate(backends):
        shown = [(x, row[backend] / row['floor']) for x, row in enumerate(rows) if backend in row]
        axes.bar([x + i * width for x, _ in shown], [value for _, value in shown], width, label=backend)
    axes.axhline(1, color='black', linewidth=0.8)
    axes.set_yscale('log')
    axes.set_ylabel('multiples of the arithmetic floor')
    names = [row['name'] for row in rows]
    axes.set_xticks([x + 0.4 for x in range(len(rows))], names, rotation=25, ha='right', fontsize=8)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='+', choices=['dense', 'train', 'memory'])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--backends', nargs='+', default=['cpu', 'torch', 'reference 2048', 'reference 30000'])
    parser.add_argument('--only', default='', help='workloads whose name contains this')
    parser.add_argument('--out', type=Path, help='folder for RESULTS.md and plot.png; none: print only')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    command = f'python {" ".join(sys.argv)}'
    parts = ['# Results', '', f'{datetime.date.today()}, {platform.system()}, `{command}`', '']
    parts += [f'- {name}: {value}' for name, value in versions().items()]
    parts += ['', 'Seconds (multiples of the floor), medians; floor by a oneDNN convolution of the same run.', '']
    net = cases.network()
    results = {}
    if 'dense' in args.what:
        net.eval()
        title = 'Whole pictures, encoder included'
        results[title] = [
            report(measure(case, partial(net.upscale, lq(case), scale=case.scale), args.backends, args.repeats))
            for case in cases.DENSE
            if args.only in case.name
        ]
        parts.append(table(title, results[title], args.backends))
    if 'train' in args.what:
        net.train()
        backends = [b for b in args.backends if b != 'reference 30000']
        results['Training step'] = [
            report(measure(case, cases.training_step(net, case), backends, args.repeats))
            for case in cases.TRAINING
            if args.only in case.name
        ]
        parts.append(table('Training step, forward and backward', results['Training step'], backends))
    if 'memory' in args.what:
        parts.append(memory_table([b for b in args.backends if b != 'reference 2048']))
    print('\n'.join(parts))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'RESULTS.md').write_text('\n'.join(parts))
        rows = [row for group in results.values() for row in group]
        if rows:
            plot(rows, args.backends, args.out / 'plot.png')


def lq(case) -> torch.Tensor:
    return torch.rand(1, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))


def report(row: dict) -> dict:
    print(json.dumps(row), flush=True)
    return row


if __name__ == '__main__':
    main()
