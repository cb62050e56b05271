"""The curve that a test run leaves: PSNR over scale, measured and the paper's."""

import math

from clit_basicsr.base.files import replacing
from clit_basicsr.report.paper_tables import paper_psnr
from clit_basicsr.report.summary import Row, Summary


def draw_psnr_over_scale(summary: Summary, path: str) -> None:
    """Writes a PNG with one line for each data set, and a dashed one for the paper's row on that set
    where any of the measurements is compared with it.

    Scales are spaced logarithmically. Measurements with a scale for each axis, and those that are not finite, are in
    the table alone.

    Args:
        summary: with ``summary.psnr`` in the values of its rows.
        path: of the PNG; a partial file of that name never exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(8, 5), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = {row.scale[0] for points in measured_lines(summary).values() for row in points}
    for index, (data_set, points) in enumerate(measured_lines(summary).items()):
        color = f'C{index}'
        scales, values = [row.scale[0] for row in points], [row.values[summary.psnr] for row in points]
        axes.plot(scales, values, 'o-', color=color, label=f'{data_set}, {summary.name}')
        papers = paper_line(summary.paper_row, data_set)
        if any(row.paper is not None for row in points):
            axes.plot(*zip(*papers, strict=True), 's--', color=color, mfc='white', label=f'{data_set}, paper')
            drawn |= {scale for scale, _ in papers}
    axes.set_xscale('log')
    axes.set_xticks(sorted(drawn), [f'x{scale:g}' for scale in sorted(drawn)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.set_xlabel('scale')
    axes.set_ylabel('PSNR, dB')
    axes.set_title(summary.title(), parse_math=False)
    if drawn:
        axes.legend()
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format='png')


def measured_lines(summary: Summary) -> dict[str, list[Row]]:
    """For each data set the rows that the curve can show, by scale."""
    lines: dict[str, list[Row]] = {}
    for row in sorted(summary.rows, key=lambda row: row.scale):
        if row.scale[0] == row.scale[1] and math.isfinite(row.values.get(summary.psnr, math.nan)):
            lines.setdefault(row.data_set, []).append(row)
    order = [row.data_set for row in summary.rows]
    return {data_set: lines[data_set] for data_set in dict.fromkeys(order) if data_set in lines}


def paper_line(paper_row: str, data_set: str) -> list[tuple[float, float]]:
    """(scale, dB) of a row of the paper's tables on one of its data sets."""
    figures = paper_psnr().get(paper_row, {})
    return sorted((scale, psnr) for (name, scale), psnr in figures.items() if name == data_set)
