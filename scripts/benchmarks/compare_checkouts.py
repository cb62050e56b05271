"""Compares two checkouts of this package: the same workloads by both, in fresh processes that alternate.

    python scripts/benchmarks/compare_checkouts.py OLD NEW --only 'LIT 64x64' wide --repeats 3 --network-file net.pth

OLD and NEW are folders that contain ``clit_basicsr``; the workloads are those of this script's own folder: whole
pictures, LIIF and LTE, wide pictures without the encoder, training steps (time_workload.py), and the commands
``--help`` and ``upscale`` of a photograph of 510 x 339 pixels x3.4, start-up included. One thread by default.

It prints a table in Markdown: medians of CPU and wall seconds of all runs, their ratio, the median of the processes'
peak memory above the loaded network (of commands: of the whole process) and the largest difference of the results,
relative to the largest number of its tensor (of pictures that commands write: to their full range). Exits with 1
where a workload fails or the results differ by more than rounding.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from result_tables import Compared, Sample, comparison_table

HERE = Path(__file__).parent
# The largest differences that are only rounding: of single precision, and of one level of 8-bit pictures.
ROUNDING, LEVEL = 1e-4, 1.01 / 255
HELP, UPSCALE = 'command --help', 'command upscale 510x339 x3.4'
# What a photograph is made by: scikit-image brings it along.
PHOTOGRAPH = """
import sys
from PIL import Image
from skimage import data
Image.fromarray(data.chelsea()).resize((510, 339), Image.Resampling.BICUBIC).save(sys.argv[1])
"""
WHERE = "import importlib.util; print(importlib.util.find_spec('clit_basicsr').origin)"


class Failed(Exception):
    """A process did not do its work."""


def process(checkout: Path, command: list[str], threads: int, folder: Path) -> str:
    """The output of a Python process that takes the package from a checkout.

    Raises:
        Failed: it did not exit with 0.
    """
    count = str(threads)
    own = {'PYTHONPATH': str(checkout), 'OMP_NUM_THREADS': count, 'MKL_NUM_THREADS': count}
    environment, python = os.environ | own, [sys.executable, *command]
    done = subprocess.run(python, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise Failed(f'exit code {done.returncode} in {checkout}: {lines[-1] if lines else "no message"}')
    return done.stdout


def check_package(checkout: Path, folder: Path) -> None:
    """Raises Failed where the package would come from somewhere else: every figure would be of another version."""
    origin = Path(process(checkout, ['-c', WHERE], 1, folder).strip())
    if checkout not in origin.parents:
        raise Failed(f'{checkout} holds no clit_basicsr: Python would take {origin}')


def run_workload(name: str, checkout: Path, result: Path, args: argparse.Namespace) -> list[Sample]:
    """One process with several runs; the result is ``result`` (.npz)."""
    command = [str(HERE / 'time_workload.py'), name, '--runs', str(args.runs), '--threads', str(args.threads)]
    lines = process(checkout, [*command, '--result', str(result)], args.threads, result.parent).splitlines()
    found = json.loads(lines[-1])
    return [Sample(cpu, wall, found['peak']) for cpu, wall in zip(found['cpu'], found['wall'], strict=True)]


def run_command(name: str, checkout: Path, result: Path, args: argparse.Namespace) -> list[Sample]:
    """One command from start to end; the picture that it writes is ``result`` (.png)."""
    arguments = ['--help']
    if name == UPSCALE:
        arguments = ['upscale', 'photograph.png', '-s', '3.4', '-o', str(result), '-f', '--device', 'cpu']
        arguments += ['--model', str(args.network_file)]
    command = [str(HERE / 'time_command.py'), sys.executable, '-m', 'clit_basicsr', *arguments]
    found = json.loads(process(checkout, command, args.threads, result.parent))
    return [Sample(found['cpu'], found['wall'], found['peak'])]


def alternate(
    run: Callable[[Path, Path], list[Sample]], checkouts: tuple[Path, Path], results: tuple[Path, Path], repeats: int
) -> tuple[list[Sample], list[Sample]]:
    """Samples of both checkouts: ``run(checkout, result)`` alternating, the one that begins changes too."""
    samples: tuple[list[Sample], list[Sample]] = ([], [])
    for repeat in range(repeats):
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):
            samples[side].extend(run(checkouts[side], results[side]))
    return samples


def difference(old: dict[str, np.ndarray], new: dict[str, np.ndarray], largest: float | None = None) -> float:
    """The largest over all arrays: max |new - old| / ``largest``, which is max |old| by default.

    Raises:
        Failed: names or shapes differ, or numbers are not finite.
    """
    shapes = [{name: values.shape for name, values in side.items()} for side in (old, new)]
    if shapes[0] != shapes[1]:
        raise Failed(f'the results have different shapes: {shapes[0]} and {shapes[1]}')
    worst = 0.0
    for name, values in old.items():
        apart = float(np.abs(new[name].astype(np.float64) - values).max())
        if not np.isfinite(apart):
            raise Failed(f'the results are not finite: {name}')
        scale = largest or float(np.abs(values.astype(np.float64)).max())
        if apart:
            worst = max(worst, apart / scale if scale else np.inf)
    return worst


def read_result(file: Path) -> dict[str, np.ndarray]:
    """Arrays of a workload; a picture in 0 ... 1."""
    if file.suffix == '.npz':
        with np.load(file) as arrays:
            return dict(arrays)
    from PIL import Image

    with Image.open(file) as picture:
        return {'picture': np.asarray(picture) / 255}


def compare(name: str, checkouts: tuple[Path, Path], folder: Path, args: argparse.Namespace) -> Compared:
    """One workload or command in both.

    Raises:
        Failed: in one of them it fails, or the results cannot be compared.
    """
    is_command = name in (HELP, UPSCALE)
    run = run_command if is_command else run_workload
    old, new = (folder / f'{side}.{"png" if is_command else "npz"}' for side in ('old', 'new'))
    if is_command:  # bytecode and kernels are made, files are cached
        for checkout in checkouts:
            run(name, checkout, new, args)
    samples = alternate(lambda checkout, file: run(name, checkout, file, args), checkouts, (old, new), args.repeats)
    apart = None if name == HELP else difference(read_result(old), read_result(new), 1.0 if is_command else None)
    return Compared(name, *samples, apart)


def disagreements(rows: list[Compared]) -> list[str]:
    """The workloads whose results differ by more than rounding."""
    bound = {UPSCALE: LEVEL}
    return [row.name for row in rows if row.difference is not None and row.difference > bound.get(row.name, ROUNDING)]


def describe(checkout: Path) -> str:
    """The folder and its commit."""
    command = ['git', '-C', str(checkout), 'describe', '--always', '--dirty']
    done = subprocess.run(command, capture_output=True, text=True)
    return f'{checkout} ({done.stdout.strip() or "no commit"})'


def known(checkout: Path, folder: Path) -> dict[str, Any]:
    """Names of the workloads, and the instruction set."""
    listed = process(checkout, [str(HERE / 'time_workload.py'), '--list'], 1, folder)
    return json.loads(listed.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('old', type=Path, metavar='OLD')
    parser.add_argument('new', type=Path, metavar='NEW')
    parser.add_argument('--only', nargs='+', default=[''], help='workloads whose name contains one of these')
    parser.add_argument('--repeats', type=int, default=3, help='processes of each checkout for each workload')
    parser.add_argument('--runs', type=int, default=2, help='runs that count in each of these processes')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--network-file', type=Path, help='checkpoint for `upscale`; none: that command is left out')
    args = parser.parse_args()
    checkouts = args.old.resolve(), args.new.resolve()
    args.network_file = args.network_file and args.network_file.resolve()
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for checkout in checkouts:
            check_package(checkout, folder)
        process(checkouts[1], ['-c', PHOTOGRAPH, 'photograph.png'], 1, folder)
        listed = known(checkouts[1], folder)
        names = [*listed['names'], HELP, *([UPSCALE] if args.network_file else [])]
        for workload in [name for name in names if any(part in name for part in args.only)]:
            try:
                rows.append(compare(workload, checkouts, folder, args))
                print(json.dumps({'name': workload, 'new / old': rows[-1].ratio}), file=sys.stderr, flush=True)
            except Failed as error:
                failed.append(f'{workload}: {error}')
                print(failed[-1], file=sys.stderr, flush=True)
    print(f'- old: {describe(checkouts[0])}\n- new: {describe(checkouts[1])}')
    print(f'- {platform.system()}, {listed["instruction set"]}, threads: {args.threads}')
    print(f'- {args.repeats} processes of each, alternating, {args.runs} runs in each that count (of commands: 1)\n')
    print(comparison_table(rows))
    failed += [f'{name}: the results differ by more than rounding' for name in disagreements(rows)]
    print(''.join(f'- failed: {line}\n' for line in failed), end='')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
