"""What a validation measures on a picture: ours and the host's metrics, and why a figure is missing or NaN."""

import inspect
import math
import warnings
from os import path as osp
from typing import Any, NamedTuple

from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.images import without_suffix
from clit_basicsr.metrics.protocols import dataset_protocol

# Pixels that the host's metrics need along both axes, after the border is cut off.
NEEDED = {'calculate_ssim': 11, 'calculate_ssim_pt': 11, 'calculate_niqe': 96}


def is_float_metric(options: dict) -> bool:
    """Whether a block of ``val:metrics`` names a metric of ours, which measures float images by a protocol."""
    return getattr(METRIC_REGISTRY.get(options['type']), 'takes_float_tensors', False)


def needs_gt(options: dict) -> bool:
    """Whether a block of ``val:metrics`` names a metric that compares with the GT image, as all but NIQE do."""
    return 'img2' in inspect.signature(METRIC_REGISTRY.get(options['type'])).parameters


def dataset_scale(dataset: Any) -> tuple[float, float]:
    """The (y, x) scale of a validation set, ours or the host's."""
    scale = getattr(dataset, 'scale', None) or dataset.opt.get('scale')
    if scale is None:
        raise UserError(f'datasets: {dataset.opt["name"]}: scale is missing.')
    return tuple(scale) if isinstance(scale, (list, tuple)) else (scale, scale)


class Figures(NamedTuple):
    """What was measured on a picture.

    Attributes:
        values: by metric; one that needs a GT image is missing where there is none.
        remarks: by metric, why a figure is missing or NaN.
    """

    values: dict[str, float]
    remarks: dict[str, str]


def measure(metrics: dict[str, dict], dataset: Any, output: Tensor, gt: Tensor | None, picture: str) -> Figures:
    """Measures a picture.

    Args:
        metrics: the block ``val:metrics``.
        dataset: the validation set, ours or the host's, which names scale and protocol.
        output, gt: (1, 3, H, W), RGB in [0, 1], the first one as the network gives it.
        picture: its name, for messages.

    Raises:
        UserError: a metric of ours cannot measure this picture.
    """
    finite = bool(output.isfinite().all())
    figures = Figures({}, {})
    eight_bit: dict = {}
    for name, options in metrics.items():
        if gt is None and needs_gt(options):
            figures.remarks[name] = f'there are no GT images for {name}, so it has no figure'
            continue
        if not finite:
            value, reason = math.nan, 'the result is not finite'
        elif is_float_metric(options):
            value, reason = float_metric(dataset, output, gt, options, picture), ''
        else:
            eight_bit = eight_bit or rounded(output, gt)
            value, reason = host_metric(eight_bit, options)
        figures.values[name] = float(value)
        if math.isnan(value):
            figures.remarks[name] = f'{name} is NaN, first of {picture}: {reason}'
    return figures


def first_remarks(figures: list[Figures]) -> list[str]:
    """The first remark on each metric, a sentence without its full stop."""
    found: dict[str, str] = {}
    for one in figures:
        found = {**one.remarks, **found}
    return list(found.values())


def float_metric(dataset: Any, output: Tensor, gt: Tensor | None, options: dict, picture: str) -> float:
    """A metric of ours on a picture, by the set's protocol."""
    pair = {'img': output, 'img2': gt, 'scale': dataset_scale(dataset), 'protocol': dataset_protocol(dataset)}
    try:
        return calculate_metric(pair, options)
    except UserError as error:
        raise UserError(f'{picture}: {error}') from error


def rounded(output: Tensor, gt: Tensor | None) -> dict:
    """What the host's metrics take: 8-bit images, BGR."""
    pair = {'img': tensor2img([output])}
    return pair if gt is None else {**pair, 'img2': tensor2img([gt])}


def host_metric(pair: dict, options: dict) -> tuple[float, str]:
    """A metric of the host on a picture, and the reason if it is NaN: what is left inside the border is too small."""
    height, width = (side - 2 * options.get('crop_border', 0) for side in pair['img'].shape[:2])
    needed = NEEDED.get(options['type'], 1)
    if min(height, width) < needed:
        return math.nan, f'{options["type"]} needs {needed} pixels a side, the border leaves {height} x {width}'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # numpy's, of divisions by zero
        value = calculate_metric(pair, options)
    return value, '' if not math.isnan(value) else f'{options["type"]} gives no number'


def picture_names(dataset: Any) -> dict[str, str]:
    """A file name, without format, for every picture of a set that lists its LR images; no two have the same.

    It is the image's own name; where two images share it (in two folders, in two formats), the path below their
    folder, with the format if need be, and '_' between folders.
    """
    if hasattr(dataset, 'lr_names'):
        paths, root = dataset.lr_names, (dataset.lr or dataset.hr).root
    else:  # the host's
        entries = getattr(dataset, 'paths', [])
        paths, root = [entry['lq_path'] if isinstance(entry, dict) else entry for entry in entries], ''
    paths = list(dict.fromkeys(paths))
    below = {path: osp.relpath(path, root) if root and osp.isabs(path) == osp.isabs(root) else path for path in paths}
    forms = (
        lambda path: osp.basename(without_suffix(path)),
        lambda path: flat(without_suffix(below[path])),
        lambda path: flat(below[path]),
        lambda path: f'{flat(without_suffix(path))}_{paths.index(path)}',
    )
    for form in forms:
        names = {path: form(path) for path in paths}
        if len(set(names.values())) == len(paths):
            break
    return names


def flat(path: str) -> str:
    return '_'.join(part for part in osp.normpath(path).split(osp.sep) if part not in ('', '.', '..'))
