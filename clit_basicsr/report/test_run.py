"""What ``basicsr test`` leaves: its measurements as a summary, with the paper's figures where they can be compared."""

from __future__ import annotations

import logging
import re
from os import path as osp
from typing import Any, NamedTuple

from clit_basicsr.base.files import replacing
from clit_basicsr.metrics.protocols import dataset_protocol
from clit_basicsr.report import missing_sets, summary
from clit_basicsr.report.curves import draw_psnr_over_scale
from clit_basicsr.report.paper_row import paper_row
from clit_basicsr.report.paper_tables import paper_psnr, paper_set, why_not_comparable
from clit_basicsr.report.summary import Row


class Measurement(NamedTuple):
    """What the host's model found on one test set."""

    dataset: Any
    values: dict[str, float]


def write_summary(opt: dict, measurements: list[Measurement], failed: dict[str, str] | None = None) -> None:
    """The table to stdout and the log file; summary.csv, .md, .json and psnr_over_scale.png into the results.

    Args:
        failed: the sets that could not be measured, and why.
    """
    from basicsr.utils import get_root_logger

    found = summarize(opt, measurements)
    found.remarks.extend(f'{name} was not measured: {reason.rstrip(".")}.' for name, reason in (failed or {}).items())
    folder = opt['path']['results_root']
    for name, text in (
        ('summary.csv', summary.as_csv(found)),
        ('summary.md', summary.as_markdown(found)),
        ('summary.json', summary.as_json(found)),
    ):
        with (
            replacing(osp.join(folder, name)) as unfinished,
            open(unfinished, 'w', encoding='utf-8', newline='') as file,
        ):
            file.write(text)
    if found.psnr:
        draw_psnr_over_scale(found, osp.join(folder, 'psnr_over_scale.png'))
    curve = ', psnr_over_scale.png' if found.psnr else ''
    text = f'{summary.as_text(found)}Saved in {folder}: summary.csv, .md, .json{curve}'
    print(text, flush=True)
    logger = get_root_logger()
    for handler in logger.handlers:  # not those of the terminal, which has it
        if isinstance(handler, logging.FileHandler):
            handler.handle(logger.makeRecord(logger.name, logging.INFO, '', 0, f'\n{text}', (), None))


def summarize(opt: dict, measurements: list[Measurement]):
    """A :class:`clit_basicsr.report.summary.Summary` of what was measured."""

    metrics = opt['val'].get('metrics') or {}
    psnr = next((name for name, one in metrics.items() if one['type'] == 'calculate_psnr_float'), '')
    row, reason = find_row(opt)
    order = {block['name']: place for place, block in enumerate(opt['datasets'].values())}
    rows = sorted((row_of(one, psnr, row) for one in measurements), key=lambda one: order[one.name])
    remarks = [f'No row of the paper fits: {reason}.'] if reason else []
    if row and not any(one.paper is not None or one.note for one in rows):
        remarks.append(f'{row} has no figures for these data sets and scales.')
    remarks += [f'{line[0].upper()}{line[1:]}.' for line in missing_sets.describe(opt.get('missing_sets', {}))]
    return summary.Summary(opt['name'], row, remarks, psnr, rows, tuple(opt.get('warnings', [])))


def find_row(opt: dict) -> tuple[str, str]:
    """The row that the option file names, or that its network is of; or '' and the reason why none fits."""
    if opt.get('paper_row'):
        return opt['paper_row'], ''
    network, ensemble = opt.get('network_g') or {}, (opt.get('val') or {}).get('self_ensemble') or False
    wanted = 'rotations' if network.get('type') == 'Thera' else False
    if ensemble != wanted:
        return '', f'the paper measures with self_ensemble: {wanted or "false"}'
    return paper_row(network)


def row_of(measurement: Measurement, psnr: str, paper: str):
    """A :class:`clit_basicsr.report.summary.Row`, with the paper's figure where what was measured is the same."""

    dataset, values = measurement
    name = dataset.opt['name']
    scale = getattr(dataset, 'scale', None) or dataset.opt.get('scale') or 1
    scale = tuple(scale) if isinstance(scale, list | tuple) else (scale, scale)
    made = getattr(dataset, 'downsampling', '')
    lr = 'given' if dataset.opt.get('dataroot_lq') else made
    protocol = dataset_protocol(dataset) if psnr in values else ''
    # Set5_x4, Set5x4: the set is Set5; x4 alone: named after its folder
    data_set = re.sub(r'(^|_|(?<=\d))x\d[\d.x]*$', '', name) or osp.basename(
        osp.normpath(dataset.opt.get('dataroot_gt', ''))
    )
    known = paper_set(data_set)
    row = Row(name, known or data_set, scale, lr, protocol, len(dataset), values)
    figure = paper_psnr().get(paper, {}).get((known or '', scale[0])) if psnr in values else None
    if figure is None or known is None:
        return row
    note = why_not_comparable(known, scale, len(dataset), protocol, lr, paper)
    return row._replace(note=note) if note else row._replace(paper=figure)
