"""How fast training data are read: a folder of PNG files, BasicSR's LMDB and a raw LMDB, on images made here.

    python scripts/benchmarks/data_loading.py                       # samples per second, CPU time per sample, its steps
    python scripts/benchmarks/data_loading.py --memory 20000        # resident memory of two workers over an epoch

CPU time is that of one process; the storages take turns. The images (2040 x 1356) and databases stay in --folder for
the next run.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from clit_basicsr.data import images, random_scale_dataset
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset

SIZE = (1356, 2040)
BATCH = 32
SCALES = {'r ~ U(1, 4)': [[[1, 4]]], 'cascade, r up to 32': [[[1, 4], [1, 4], [1, 2]]]}
STEPS = ('read', 'decode', 'crop', 'resize', 'sample')


def make_images(folder: Path, count: int) -> None:
    """PNG files of about 2 bytes per pixel, as those of DIV2K, and what ``basicsr prepare`` makes of them."""
    (folder / 'HR').mkdir(parents=True, exist_ok=True)
    for i in range(count):
        path = folder / 'HR' / f'{i:04d}.png'
        if not path.exists():
            rng = np.random.default_rng(i)
            img = sum(
                cv2.resize(rng.normal(0, 60 / 2**k, (4 * 2**k, 6 * 2**k, 3)), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
                for k in range(8)
            )
            img = np.clip(img + rng.normal(128, 2, (*SIZE, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(path), img, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    for options in ('HR.lmdb', 'HR_encoded.lmdb --format lmdb', 'LR --scales 4 --downsampling pil'):
        output, *rest = options.split()
        command = [sys.executable, '-m', 'clit_basicsr', 'prepare', str(folder / 'HR'), '-o', str(folder / output)]
        subprocess.run([*command, *rest], check=True)


def storages(folder: Path, scales: list) -> dict[str, RandomScaleDataset]:
    opt = {'manual_seed': 0, 'scales': scales}
    lmdb = {'io_backend': {'type': 'lmdb'}}
    return {
        'folder': RandomScaleDataset(opt | {'dataroot_gt': str(folder / 'HR')}),
        'BasicSR LMDB': RandomScaleDataset(opt | lmdb | {'dataroot_gt': str(folder / 'HR_encoded.lmdb')}),
        'raw LMDB': RandomScaleDataset(opt | lmdb | {'dataroot_gt': str(folder / 'HR.lmdb')}),
    }


@contextmanager
def timed_steps():
    """CPU seconds of the steps of a sample, by name; what is left is of tensors, random numbers and the plan."""
    seconds: dict[str, float] = defaultdict(float)
    places = {
        'read': (images.ImageSource, 'open'),
        'decode': (images.EncodedImage, 'pixels'),
        'crop': (RandomScaleDataset, '_augmented_crop'),
        'resize': (random_scale_dataset, 'downsample'),
        'sample': (random_scale_dataset, 'sample_pixels'),
    }
    kept = {step: getattr(*place) for step, place in places.items()}

    def timed(step):
        def run(*args, **kwargs):
            began = time.process_time()
            result = kept[step](*args, **kwargs)
            seconds[step] += time.process_time() - began
            return result

        return run

    for step, (owner, name) in places.items():
        setattr(owner, name, timed(step))
    try:
        yield seconds
    finally:
        for step, (owner, name) in places.items():
            setattr(owner, name, kept[step])


def load(dataset, batch: int) -> tuple[float, float]:
    """CPU and wall-clock seconds of a batch."""
    cpu, wall = time.process_time(), time.monotonic()
    dataset.__getitems__([(batch, position) for position in range(BATCH)])
    return time.process_time() - cpu, time.monotonic() - wall


def measure(folder: Path, repeats: int) -> None:
    for title, scales in SCALES.items():
        sets = storages(folder, scales)
        times: dict[str, list] = {name: [] for name in sets}
        fast = 8  # batches of the raw LMDB for each one of the others, which take as long
        for repeat in range(repeats + 1):
            for name, dataset in sets.items():
                numbers = range(repeat * fast, (repeat + 1) * fast) if name == 'raw LMDB' else [repeat * fast]
                found = [load(dataset, number) for number in numbers]
                times[name] += found if repeat else []  # the first round fills the caches of files
        print(f'\n{title}: batches of {BATCH}, {repeats} rounds')
        print('| storage | CPU ms / sample | samples / CPU s | samples / s | times the folder |', end='')
        print(''.join(f' {step} |' for step in (*STEPS, 'rest')))
        print('|---' * (5 + len(STEPS) + 1) + '|')
        mean = {name: np.mean(found, 0) / BATCH for name, found in times.items()}
        for name, (cpu, wall) in mean.items():
            with timed_steps() as seconds:
                number = 4 if name == 'raw LMDB' else 1
                total = sum(load(sets[name], batch)[0] for batch in range(number))
            split = [seconds[step] for step in STEPS]
            parts = [1e3 * part / number / BATCH for part in (*split, total - sum(split))]
            cells = [f'{1e3 * cpu:.2f}', f'{1 / cpu:.0f}', f'{1 / wall:.0f}', f'{mean["folder"][0] / cpu:.1f}']
            print(f'| {name} | ' + ' | '.join([*cells, *(f'{part:.2f}' for part in parts)]) + ' |')
        same = [sets[name].__getitems__([(3, i) for i in range(4)]) for name in sets]
        equal = all(
            torch.equal(sample[key], expected[key])
            for other in same[1:]
            for sample, expected in zip(other, same[0], strict=True)
            for key in ('lq', 'gt', 'coord', 'cell', 'scales')
        )
        print(f'batches of the three are equal to the bit: {equal}')


def measure_host(folder: Path, count: int) -> None:
    from basicsr.data.paired_image_dataset import PairedImageDataset  # after our package, which makes it importable

    opt = {'phase': 'train', 'scale': 4, 'gt_size': 192, 'use_hflip': True, 'use_rot': True, 'filename_tmpl': '{}x4'}
    roots = {'dataroot_gt': str(folder / 'HR'), 'dataroot_lq': str(folder / 'LR' / 'X4')}
    dataset = PairedImageDataset(opt | roots | {'io_backend': {'type': 'disk'}})
    dataset[0]
    began = time.process_time()
    for i in range(count):
        dataset[i % len(dataset)]
    cpu = (time.process_time() - began) / count
    print(f"\nBasicSR's PairedImageDataset, folder, x4: {1e3 * cpu:.1f} CPU ms / sample, {1 / cpu:.0f} samples / CPU s")


def resident(pid: int) -> dict[str, float]:
    """MB of a process by kind: RssAnon is its own, RssFile pages of mapped files, which the system may take back."""
    lines = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
    return {key: int(lines[key].split()[0]) / 1024 for key in ('RssAnon', 'RssFile')}


def measure_memory(folder: Path, samples: int, workers: int = 2) -> None:
    dataset = storages(folder, SCALES['r ~ U(1, 4)'])['raw LMDB']
    items = [(batch, position) for batch in range(samples // BATCH) for position in range(BATCH)]
    loader = iter(DataLoader(dataset, BATCH, sampler=items, num_workers=workers))
    pids = [worker.pid for worker in loader._workers]
    print(f'\nresident memory of {workers} workers over {len(items)} samples, MB (RssAnon, RssFile)')
    for number, _ in enumerate(loader):
        if number % max(samples // BATCH // 10, 1) == 0 and number < len(items) // BATCH - 2 * workers - 2:
            found = [resident(pid) for pid in pids]
            print(f'{number * BATCH:6d}: ' + '; '.join(f'{x["RssAnon"]:.0f}, {x["RssFile"]:.0f}' for x in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, default=Path('datasets/benchmark_2k'), help='where the images are made')
    parser.add_argument('--images', type=int, default=40, metavar='N', help='how many; default: 40 (0.6 GB)')
    parser.add_argument('--repeats', type=int, default=4, metavar='N', help='rounds; default: 4')
    parser.add_argument('--memory', type=int, metavar='SAMPLES', help='measure memory over so many samples instead')
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    make_images(args.folder, args.images)
    print(f'{os.cpu_count()} cores; torch {torch.__version__}, OpenCV {cv2.__version__}')
    if args.memory:
        measure_memory(args.folder, args.memory)
        return
    measure(args.folder, args.repeats)
    measure_host(args.folder, 2 * BATCH)


if __name__ == '__main__':
    main()
