"""The figures of the papers: PSNR by system, data set and scale, from tables.csv.

Its first column names the source: a number is a table of CLIT (CVPR 2023), 'Thera paper' is arXiv 2311.17643, which
reports SRNO too.
"""

import csv
import functools
import re
from importlib import resources
from typing import NamedTuple


class PaperSet(NamedTuple):
    """A data set of the tables.

    Attributes:
        images: how many it has; a set of another number is another set.
        protocol: how PSNR is measured on it, see :func:`clit_basicsr.metrics.calculate_psnr_float`.
    """

    images: int
    protocol: str


SETS = {
    'DIV2K validation': PaperSet(100, 'div2k'),
    'Set5': PaperSet(5, 'benchmark'),
    'Set14': PaperSet(14, 'benchmark'),
    'B100': PaperSet(100, 'benchmark'),
    'Urban100': PaperSet(100, 'benchmark'),
}
# Names of the sets in option files and folders, letters and digits only.
SYNONYMS = {'div2k': 'DIV2K validation', 'div2kvalid': 'DIV2K validation', 'div2kvalidhr': 'DIV2K validation'}
SYNONYMS |= {'bsd100': 'B100', 'bsds100': 'B100'}

# Up to this scale the LR images are the published ones (MATLAB's imresize), above they are made by PIL.
LARGEST_PUBLISHED_SCALE = 4


@functools.cache
def paper_psnr() -> dict[str, dict[tuple[str, float], float]]:
    """PSNR in dB by row of the tables ('EDSR-baseline-CLIT'), then by data set (a key of SETS) and scale."""
    rows: dict[str, dict[tuple[str, float], float]] = {}
    text = (resources.files(__package__) / 'tables.csv').read_text(encoding='utf-8')
    for line in csv.DictReader(text.splitlines()):
        if line['channel']:  # else hours of training
            row = rows.setdefault(line['method'], {})
            row[line['data_set'], float(line['scale'])] = float(line['psnr_db'])
    return rows


def paper_set(name: str) -> str | None:
    """The data set of the tables that goes by this name, whatever its capitals and underscores; None: none does."""
    plain = re.sub(r'[\W_]', '', name.lower())
    return {re.sub(r'[\W_]', '', key.lower()): key for key in SETS}.get(plain) or SYNONYMS.get(plain)


def why_not_comparable(
    data_set: str, scale: tuple[float, float], images: int, protocol: str, lr: str, row: str = ''
) -> str:
    """What sets a measurement apart from the papers'; '' if nothing does.

    Args:
        data_set: a key of SETS.
        scale: (y, x).
        images: how many were measured.
        protocol: 'div2k' or 'benchmark'.
        lr: where the LR images are from: 'given', or made by 'matlab' or 'pil'.
        row: what it is compared with; Thera's figures are measured on LR images by MATLAB's imresize at every scale.
    """
    known = SETS[data_set]
    if images != known.images:
        return f'{images} images, where {data_set} has {known.images}'
    if protocol != known.protocol:
        return f'protocol {protocol}, where the paper measures {data_set} by {known.protocol}'
    if scale[0] != scale[1]:
        return 'the paper has one scale for both axes'
    accepted = ('given', 'matlab') if scale[0] <= LARGEST_PUBLISHED_SCALE or 'Thera' in row else ('pil',)
    if lr not in accepted:
        return f'LR images {lr}, where the paper has them {" or by ".join(accepted)} at x{scale[0]:g}'
    return ''
