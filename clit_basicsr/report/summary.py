"""What a test measured, compared with the paper's figures: one table, as text, Markdown, CSV and JSON."""

import csv
import io
import json
import math
from typing import NamedTuple

from clit_basicsr.base.messages import scale_text


class Row(NamedTuple):
    """One data set at one scale.

    Attributes:
        name: as the option file has it.
        data_set: the name of the images, whatever their scale.
        scale: (y, x).
        lr: where the LR images are from: 'given', or made by 'pil' or 'matlab'.
        protocol: 'div2k' or 'benchmark'; '' for metrics that know none.
        images: how many.
        values: the mean over the images of each metric, under the names of the option file.
        paper: the paper's PSNR in dB; None where the paper has none to compare with.
        note: why, where that is not plain.
    """

    name: str
    data_set: str
    scale: tuple[float, float]
    lr: str
    protocol: str
    images: int
    values: dict[str, float]
    paper: float | None = None
    note: str = ''


class Summary(NamedTuple):
    """A test run.

    Attributes:
        name: of the run.
        paper_row: the row of the paper's tables; '' if none fits.
        remarks: whole sentences to stand below the table: why no row fits, which data sets were skipped.
        psnr: the metric that is compared with the paper's; '' if it was not measured.
        rows: in the order of the option file.
        warnings: whole sentences to stand above the table.
    """

    name: str
    paper_row: str
    remarks: list[str]
    psnr: str
    rows: list[Row]
    warnings: tuple[str, ...] = ()

    def title(self) -> str:
        beside = f"compared with the paper's row {self.paper_row}" if self.paper_row else "without a row of the paper's"
        return f'{self.name}, {beside}'

    def notes(self) -> list[str]:
        """What stands below the table."""
        return [
            *self.remarks,
            *(f'{row.name} has no figure to compare with: {row.note}.' for row in self.rows if row.note),
        ]


def difference(row: Row, psnr: str) -> float | None:
    """Measured minus the paper's PSNR, dB."""
    return None if row.paper is None else row.values[psnr] - row.paper


def table(summary: Summary) -> list[list[str]]:
    """Header and rows, formatted: PSNR to the third decimal, other metrics to the fourth, differences to the second."""
    others = [name for row in summary.rows for name in row.values if name != summary.psnr]
    metrics = [*([summary.psnr] if summary.psnr else []), *dict.fromkeys(others)]
    header = ['data set', 'scale', 'images', 'LR', *metrics]
    compared = any(row.paper is not None for row in summary.rows)
    if compared:
        header[5:5] = ['paper', 'diff']
    lines = [header]
    for row in summary.rows:
        line = [row.data_set, f'x{scale_text(row.scale)}', str(row.images), row.lr]
        for name in metrics:
            digits = 3 if name == summary.psnr else 4
            line.append(f'{row.values[name]:.{digits}f}' if name in row.values else '-')
        if compared:
            gap = difference(row, summary.psnr)
            line[5:5] = ['-', '-'] if row.paper is None else [f'{row.paper:.2f}', f'{gap:+.2f}']
        lines.append(line)
    return lines


def as_text(summary: Summary) -> str:
    """The table in columns, the data set to the left and everything else to the right."""
    lines = table(summary)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        '  '.join([line[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return '\n'.join([summary.title(), *summary.warnings, *padded, *summary.notes()]) + '\n'


def as_markdown(summary: Summary) -> str:
    lines = table(summary)
    lines.insert(1, ['---', *['---:'] * (len(lines[0]) - 1)])
    rows = ['| ' + ' | '.join(line) + ' |' for line in lines]
    above = [*summary.warnings, ''] if summary.warnings else []
    notes = [f'- {note}' for note in summary.notes()]
    return '\n'.join([f'# {summary.title()}', '', *above, *rows, '', *notes, ''])


def as_csv(summary: Summary) -> str:
    """One line for each data set and scale, figures unrounded."""
    metrics = list(dict.fromkeys(name for row in summary.rows for name in row.values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    header = ['name', 'data_set', 'scale', 'lr', 'protocol', 'images', *metrics]
    writer.writerow([*header, 'paper_row', 'paper_psnr', 'difference'])
    for row in summary.rows:
        about = [row.name, row.data_set, scale_text(row.scale), row.lr, row.protocol, row.images]
        beside = [summary.paper_row if row.paper is not None else None, row.paper, difference(row, summary.psnr)]
        writer.writerow([*about, *(row.values.get(name) for name in metrics), *beside])
    return out.getvalue()


def as_json(summary: Summary) -> str:
    """The same with the notes; a figure that is not finite (PSNR of equal images) is null."""
    rows = []
    for row in summary.rows:
        values = {name: value if math.isfinite(value) else None for name, value in row.values.items()}
        gap = difference(row, summary.psnr)
        gap = gap if gap is None or math.isfinite(gap) else None
        about = {**row._asdict(), 'scale': list(row.scale), 'values': values}
        rows.append({**about, 'difference': gap})
    return json.dumps({**summary._asdict(), 'rows': rows}, indent=2) + '\n'
