"""validation.csv: what a run measured on its validation sets, a row for each iteration, data set and metric."""

import csv
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from clit_basicsr.base.files import replacing

# Files of earlier versions have no header and these columns.
OLD_COLUMNS = ('iteration', 'dataset', 'metric', 'value')


class Row(NamedTuple):
    """A figure.

    Attributes:
        iteration: of the training; the run's name in a test.
        dataset: name of the validation set.
        scale: '2', or '2x3.5' (y, x).
        metric: its name in the option file.
        value: the mean over the images.
        protocol: of our metrics; '' for the host's.
        border: pixels cut off at each edge; '' if unknown.
        lq: where the LR images are from: 'given', or made by 'pil' or 'matlab'.
        tile: '64+32' (size and padding in LR pixels), or 'whole'.
    """

    iteration: str
    dataset: str
    scale: str
    metric: str
    value: str
    protocol: str
    border: str
    lq: str
    tile: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one row of."""
        return self.iteration, self.dataset, self.metric


class ValidationTable:
    """The file of a run; it is written as a whole, so that a partial one never exists.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def rows(self) -> list[Row]:
        """All rows, oldest first; those of earlier versions with empty columns."""
        if not os.path.isfile(self.path):
            return []
        with open(self.path, newline='', encoding='utf-8') as file:
            lines = [line for line in csv.reader(file) if line]
        if lines and lines[0] == list(Row._fields):
            return [Row(*line) for line in lines[1:] if len(line) == len(Row._fields)]
        known = [dict(zip(OLD_COLUMNS, line, strict=True)) for line in lines if len(line) == len(OLD_COLUMNS)]
        return [Row(**{name: values.get(name, '') for name in Row._fields}) for values in known]

    def add(self, rows: Iterable[Row]) -> None:
        """Appends rows, in place of those of the same iteration, data set and metric."""
        new = {row.key: row for row in rows}
        self._write([*(row for row in self.rows() if row.key not in new), *new.values()])

    def drop_after(self, iteration: int) -> None:
        """Removes the rows of later iterations, which a resumed run measures again."""
        rows = self.rows()
        kept = [row for row in rows if not row.iteration.isdigit() or int(row.iteration) <= iteration]
        if kept != rows:
            self._write(kept)

    def replay(self, dataset: str, update: Callable[[str, float, int], object]) -> None:
        """Calls ``update(metric, value, iteration)`` for each row of a data set, oldest first."""
        for row in self.rows():
            if row.dataset == dataset and row.iteration.isdigit():
                update(row.metric, float(row.value), int(row.iteration))

    def _write(self, rows: list[Row]) -> None:
        with replacing(self.path) as unfinished, open(unfinished, 'w', newline='', encoding='utf-8') as file:
            csv.writer(file).writerows([Row._fields, *rows])
