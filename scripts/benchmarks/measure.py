"""Clocks, medians, the machine's rate and its instruction set."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

# Flags of /proc/cpuinfo that decide how fast products are; torch's own name for what it uses stands beside them.
FLAGS = ('avx2', 'fma', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx_vnni', 'amx_bf16', 'amx_int8', 'asimd', 'sve')


class Seconds(NamedTuple):
    """Attributes:
    cpu: of the processor, in all threads of this process; other programs on the machine hardly change it.
    wall: by the clock.
    """

    cpu: float
    wall: float


class Measured(NamedTuple):
    """Attributes:
    medians: of each call.
    rates: the machine's, operations per CPU second, in the order of time.
    """

    medians: dict[str, Seconds]
    rates: list[float]

    @property
    def median_rate(self) -> float:
        return median(self.rates)

    @property
    def fastest_rate(self) -> float:
        return max(self.rates)


def timed(function: Callable[[], Any]) -> Seconds:
    """One call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def median_seconds(samples: list[Seconds]) -> Seconds:
    """Of each clock by itself."""
    return Seconds(median(s.cpu for s in samples), median(s.wall for s in samples))


def measure(calls: dict[str, Callable[[], Any]], repeats: int, slow: Collection[str] = ()) -> Measured:
    """Calls all in turn, ``repeats`` times after a first round that does not count; the rate is taken before each.

    Args:
        slow: calls that are made once, in the first round that counts.
    """
    samples, rates = defaultdict(list), []
    for repeat in range(repeats + 1):
        for name, function in calls.items():
            if name in slow and repeat != 1:
                continue
            rates.append(machine_rate())
            spent = timed(function)
            if repeat:
                samples[name].append(spent)
    rates.append(machine_rate())
    return Measured({name: median_seconds(values) for name, values in samples.items()}, rates)


def machine_rate() -> float:
    """Operations per CPU second of a oneDNN 3 x 3 convolution 256 -> 256, the fastest single-precision code at hand."""
    x, weight = torch.randn(1, 256, 64, 64), torch.randn(256, 256, 3, 3)
    with torch.no_grad():
        best = min(timed(lambda: F.conv2d(x, weight, padding=1)).cpu for _ in range(4))
    return 2 * 256 * 256 * 9 * 64 * 64 / best


def instruction_set() -> str:
    """What torch uses, and what the processor has."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # another system
        lines = []
    found = next((line.split(':')[1].split() for line in lines if line.lower().startswith(('flags', 'features'))), [])
    return f'{torch.backends.cpu.get_cpu_capability()} (processor: {" ".join(f for f in FLAGS if f in found)})'


def status(key: str) -> float:
    """MB of an entry of this process's status: VmRSS now, VmHWM at the highest."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def peak(function: Callable[[], Any]) -> float:
    """MB by which a call raises the memory in use at its highest."""
    Path('/proc/self/clear_refs').write_text('5')  # the highest becomes the present
    before = status('VmRSS')
    function()
    return status('VmHWM') - before
