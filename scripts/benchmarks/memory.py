"""Peak memory of one workload in MB: memory.py NAME BACKEND THREADS. Called by benchmark.py, one process for each."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import cases
from backends import by_backend
from measure import peak

from clit_basicsr.archs.features import Features
from clit_basicsr.ops.geometry.coords import Frame, Piece


def dense(net, size: int, scale: float):
    """A whole picture from given features into a given result: the encoder and both of these do not count."""
    feat = Features(torch.rand(1, 64, size, size), torch.rand(1, 3, size, size), Frame((size, size)), (size, size))
    hr = round(size * scale)
    out = torch.zeros(1, 3, hr, hr)

    def call() -> None:
        with torch.no_grad():
            net._fill(out, feat, Piece((hr, hr), (0, hr), (0, hr)), net.plan_scales((scale, scale)))

    return call


def main() -> None:
    name, backend, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    net = cases.network()
    if name.startswith('dense'):
        size, scale = name.split()[-2:]
        call = dense(net, int(size.split('x')[0]), float(scale[1:]))
        warm = dense(net, 8, 2)
    else:
        call = cases.training_step(net, next(case for case in cases.TRAINING if name.endswith(case.name)))
        warm = cases.training_step(net, cases.Training('', 1, (2,)))
    by_backend(backend, warm)  # libraries, threads and packed code are not the workload's
    print(f'{peak(lambda: by_backend(backend, call)):.0f}')


if __name__ == '__main__':
    main()
