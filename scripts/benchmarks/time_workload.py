"""Times one workload of cases.py in a process of its own, for ``compare_checkouts.py``.

    time_workload.py --list
    time_workload.py NAME --runs 2 --threads 1 --result FILE.npz

prints one line of JSON: the names of all workloads; or CPU and wall seconds of each run, and by how many MB the runs
raised the memory in use at its highest over that of the loaded network. The time of a first run does not count; the
last leaves its result in FILE: the picture, or the gradients.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import cases
from measure import instruction_set, peak, timed

Case = cases.Dense | cases.Wide | cases.Training
# LR pixels of the workload that loads libraries, threads and packed code: these are not the workload's.
WARM = 8
# Whose true gradient is 0: the softmax does not change with it.
ZERO_GRADIENTS = ('position_encoder.proj.bias',)


def workloads() -> dict[str, Case]:
    """Every workload once; training steps have a prefix."""
    pictures = {case.name: case for case in (*cases.DENSE, *cases.PEERS, *cases.WIDE)}
    return pictures | {f'train {case.name}': case for case in cases.TRAINING}


def prepare(case: Case) -> tuple[Callable[[], Any], Callable[[Any], dict[str, Tensor]]]:
    """A function that runs the workload, and one that makes the result of what that returns; both are ready to use."""
    if isinstance(case, cases.Training):
        net = cases.network().train()
        cases.training_step(net, case, side=WARM, queries=WARM**2)()
        return cases.training_step(net, case), lambda _: gradients(net)
    if isinstance(case, cases.Wide):
        cases.wide_call(cases.network(), case._replace(size=(WARM, WARM)))()
        call = cases.wide_call(cases.network(), case)
    else:
        net = cases.network(case.system)
        cases.dense_call(net, case._replace(size=(WARM, WARM)))()
        call = cases.dense_call(net, case)
    return call, lambda out: {'picture': out}


def gradients(net: nn.Module) -> dict[str, Tensor]:
    named = {key: p.grad for key, p in net.named_parameters() if key not in ZERO_GRADIENTS}
    return {key: grad for key, grad in named.items() if grad is not None}


def run(case: Case, runs: int, result: Path) -> dict[str, Any]:
    """What is printed; see above."""
    call, named = prepare(case)
    times, last = [], []

    def repeated() -> None:
        for _ in range(runs + 1):
            last.clear()
            times.append(timed(lambda: last.append(call())))

    most = peak(repeated)
    np.savez(result, **{key: value.numpy() for key, value in named(last[0]).items()})
    return {'cpu': [t.cpu for t in times[1:]], 'wall': [t.wall for t in times[1:]], 'peak': most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', nargs='?')
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--runs', type=int, default=2)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--result', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.list:
        print(json.dumps({'names': list(workloads()), 'instruction set': instruction_set()}))
    else:
        print(json.dumps(run(workloads()[args.name], args.runs, args.result)))


if __name__ == '__main__':
    main()
