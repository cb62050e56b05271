"""The benchmarks' tables, in Markdown, and their plot; without torch."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


class Floored(NamedTuple):
    """A workload's times beside its floor.

    Attributes:
        name: of the workload.
        seconds: CPU and wall seconds (medians) of each backend.
        median_rate, fastest_rate: the machine's, operations per CPU second.
        operations, low_rank_operations: that the floor counts, without and with the rank-16 rewrite.
        not_counted: GELUs and exponentials per query.
    """

    name: str
    seconds: dict[str, tuple[float, float]]
    median_rate: float
    fastest_rate: float
    operations: float
    low_rank_operations: float
    not_counted: tuple[int, int]

    @property
    def floor(self) -> float:
        """CPU seconds at the median rate."""
        return self.operations / self.median_rate

    @property
    def fastest_floor(self) -> float:
        """CPU seconds at the fastest rate."""
        return self.operations / self.fastest_rate

    @property
    def low_rank_floor(self) -> float:
        """CPU seconds at the median rate, with the rank-16 rewrite."""
        return self.low_rank_operations / self.median_rate


class Sample(NamedTuple):
    """One call in one checkout: CPU seconds, wall seconds, MB that it took at most; see ``compare_checkouts.py``."""

    cpu: float
    wall: float
    peak: float


class Compared(NamedTuple):
    """A workload in two checkouts.

    Attributes:
        difference: of their results, relative to the largest number; None: there is nothing to compare.
    """

    name: str
    old: list[Sample]
    new: list[Sample]
    difference: float | None

    @property
    def ratio(self) -> float:
        """Median CPU seconds, new / old."""
        return middle(self.new).cpu / middle(self.old).cpu


def middle(samples: Sequence[Sample]) -> Sample:
    """Medians, each by itself. Of the peaks, too: from one process to the next they change by a tenth."""
    return Sample(median(s.cpu for s in samples), median(s.wall for s in samples), median(s.peak for s in samples))


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    return '\n'.join([*lines, *('| ' + ' | '.join(cells) + ' |' for cells in rows), ''])


def number(value: float) -> str:
    """Three significant digits, without an exponent for the times that occur."""
    return f'{value:.0f}' if value >= 100 else f'{value:#.3g}'


def floor_table(rows: Sequence[Floored], backends: Sequence[str], references: Sequence[str] = ()) -> str:
    """CPU seconds and multiples of both floors, wall seconds, and how many times the references' CPU time is ours."""
    head = ['workload', 'GFLOP/s, median', 'fastest', 'floor (median rate)', 'floor (fastest rate)']
    head += ['floor with rank 16 (median rate)', 'GELU, exp per query, not in the floor']
    head += [f'{b}{unit}' for b in backends for unit in ('', ', wall')]
    pairs = [(slow, fast) for slow in references for fast in backends if fast not in references]
    head += [f'{slow} : {fast}' for slow, fast in pairs]
    table = []
    for row in rows:
        cells = [row.name, f'{row.median_rate / 1e9:.0f}', f'{row.fastest_rate / 1e9:.0f}']
        cells += [number(row.floor), number(row.fastest_floor)]
        cells.append('' if row.low_rank_operations == row.operations else number(row.low_rank_floor))
        cells.append('{}, {}'.format(*row.not_counted))
        for backend in backends:
            if backend not in row.seconds:
                cells += ['', '']
                continue
            cpu, wall = row.seconds[backend]
            multiples = f'{cpu / row.floor:.2f}x, {cpu / row.fastest_floor:.2f}x'
            if row.low_rank_operations != row.operations:
                multiples += f', {cpu / row.low_rank_floor:.2f}x'
            cells += [f'{number(cpu)} ({multiples})', number(wall)]
        for slow, fast in pairs:
            known = slow in row.seconds and fast in row.seconds
            cells.append(f'{row.seconds[slow][0] / row.seconds[fast][0]:.1f}x' if known else '')
        table.append(cells)
    return markdown(head, table)


def peer_table(rows: Sequence[tuple[str, dict[str, tuple[float, float]]]]) -> str:
    """CPU and wall seconds of (picture, seconds of each system), our own system first."""
    table = []
    for name, seconds in rows:
        own, *peers = seconds
        cells = [name, own, *(number(value) for value in seconds[own])]
        for peer in peers:
            cpu, wall = seconds[peer]
            cells += [number(cpu), number(wall), f'{seconds[own][0] / cpu:.2f}']
        table.append(cells)
    peers = list(rows[0][1])[1:] if rows else []
    head = ['picture', 'ours', 'CPU s', 'wall']
    head += [text for peer in peers for text in (f'{peer}, CPU s', 'wall', f'ours : {peer}')]
    return markdown(head, table)


def wide_table(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """CPU and wall microseconds per LR pixel of (picture, CPU, wall, floor), against the fastest picture."""
    least = min((cpu for _, cpu, _, _ in rows), default=1.0)
    head = ['picture', 'CPU us per LR pixel', 'wall', 'floor (median rate)', 'of the fastest picture']
    cells = [
        [name, f'{cpu:.1f} ({cpu / floor:.2f}x)', f'{wall:.1f}', f'{floor:.1f}', f'{cpu / least:.2f}x']
        for name, cpu, wall, floor in rows
    ]
    return markdown(head, cells)


def comparison_table(rows: Sequence[Compared]) -> str:
    """CPU seconds of both checkouts, the ratio new / old, wall seconds, peak memory and the results' difference."""
    head = ['workload', 'CPU s, old', 'new', 'new / old', 'wall, old', 'new', 'peak MB, old', 'new', 'difference']
    table = []
    for row in rows:
        old, new = middle(row.old), middle(row.new)
        cells = [row.name, number(old.cpu), number(new.cpu), f'{row.ratio:.3f}', number(old.wall), number(new.wall)]
        cells += [f'{old.peak:.0f}', f'{new.peak:.0f}', '' if row.difference is None else f'{row.difference:.1e}']
        table.append(cells)
    return markdown(head, table)


def plot(rows: Sequence[Floored], backends: Sequence[str], path: Path) -> None:
    """Bars: multiples of the floor at the median rate."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4))
    width = 0.8 / len(backends)
    for i, backend in enumerate(backends):
        shown: list[tuple[Any, float]] = [
            (x, row.seconds[backend][0] / row.floor) for x, row in enumerate(rows) if backend in row.seconds
        ]
        axes.bar([x + i * width for x, _ in shown], [value for _, value in shown], width, label=backend)
    axes.axhline(1, color='black', linewidth=0.8)
    axes.set_yscale('log')
    axes.set_ylabel('multiples of the arithmetic floor (median rate)')
    names = [row.name for row in rows]
    axes.set_xticks([x + 0.4 for x in range(len(rows))], names, rotation=25, ha='right', fontsize=8)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
