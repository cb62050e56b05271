"""Figures 5 and 6 of the CLIT paper: crops of what several networks make of one picture, next to the picture itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import replacing
from clit_basicsr.base.messages import scale_text
from clit_basicsr.data.pairs import downsample, gt_size, lq_size
from clit_basicsr.metrics import calculate_psnr_float
from clit_basicsr.metrics.protocols import border_width
from clit_basicsr.pictures.enlarge import enlarge
from clit_basicsr.pictures.files import Picture

OUTLINE = '#ff2d2d'
PANEL = 2.1  # width of a crop, inches
WHOLE = 3.4  # width of the whole picture, inches
DPI = 110


Crop = tuple[int, int, int, int]  # y, x, h, w in HR pixels


def factor_text(scale: tuple[float, float]) -> str:
    """A scale (y, x) as the command line has it, for width x height."""
    return scale_text((scale[1], scale[0]))


class Answer(NamedTuple):
    """What one network made of the picture.

    Attributes:
        label: its name.
        image: (H, W, 3), uint8.
        psnr: of the whole picture, dB, measured before rounding.
    """

    label: str
    image: np.ndarray
    psnr: float


class Comparison(NamedTuple):
    """All networks at one scale.

    Attributes:
        scale: (y, x).
        truth: (H, W, 3), uint8, the picture, cut to what the LR image covers.
        answers: in the order of the networks.
    """

    scale: tuple[float, float]
    truth: np.ndarray
    answers: list[Answer]


def compare(
    nets: dict[str, ImplicitNet], hr: np.ndarray, scale: tuple[float, float], downsampling: str, protocol: str
) -> Comparison:
    """Makes an LR image of a picture and lets every network enlarge it again.

    Args:
        nets: by label, in evaluation mode, on their device.
        hr: (H, W, 3), uint8.
        scale: (y, x).
        downsampling: how the LR image is made, see :func:`clit_basicsr.data.pairs.downsample`.
        protocol: how PSNR is measured, a key of :data:`clit_basicsr.metrics.protocols.PROTOCOLS`.

    Raises:
        UserError: the picture is too small for the scale.
    """
    size = lq_size(hr.shape, scale)
    height, width = gt_size(size, scale)
    truth = hr[:height, :width]
    if min(truth.shape[:2]) <= 2 * border_width(protocol, scale):
        raise UserError(
            f'{hr.shape[1]}x{hr.shape[0]} pixels are too few at scale {factor_text(scale)}: PSNR leaves out a border '
            f'of {border_width(protocol, scale)}; use a larger picture or a smaller scale.'
        )
    lr = downsample(truth, size, downsampling).astype(np.float32) / 255
    answers = []
    for label, net in nets.items():
        image = enlarge(net, Picture(lr), scale=scale, label=f'x{factor_text(scale)} {label}')[0].pixels
        psnr = calculate_psnr_float(_to_tensor(image), _to_tensor(truth / np.float32(255)), protocol, scale)
        answers.append(Answer(label, np.round(image.clip(0, 1) * 255).astype(np.uint8), psnr))
    return Comparison(scale, truth, answers)


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)


def common_size(comparisons: list[Comparison]) -> tuple[int, int]:
    """(H, W) of the part of the picture that is there at every scale."""
    return min(one.truth.shape[0] for one in comparisons), min(one.truth.shape[1] for one in comparisons)


def most_different(comparisons: list[Comparison]) -> Crop:
    """The square, a quarter of the picture's smaller side, where networks and the first of them differ most.

    The measure is the absolute difference of the pixels, averaged over all networks but the first, and all scales.
    """
    height, width = common_size(comparisons)
    total = np.zeros((height, width))
    for one in comparisons:
        first, *others = (answer.image[:height, :width].astype(np.float32) for answer in one.answers)
        for image in others:
            total += np.abs(image - first).mean(-1)
    side = min(max(16, min(height, width) // 4), height, width)
    summed = np.pad(total.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = summed[side:, side:] - summed[:-side, side:] - summed[side:, :-side] + summed[:-side, :-side]
    y, x = np.unravel_index(windows.argmax(), windows.shape)
    return int(y), int(x), side, side


def draw_comparison(comparisons: list[Comparison], crop: Crop, title: str, note: str, path: str) -> None:
    """Writes a PNG: the whole picture with the crop outlined, and next to it a row of labelled crops for each scale.

    Args:
        crop: within every comparison's pictures.
        title: stands above everything.
        note: stands below everything: how it was measured.
        path: of the PNG; a partial file of that name never exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    y, x, h, w = crop
    labels = ['ground truth', *(answer.label for answer in comparisons[0].answers)]
    panel = PANEL * min(max(h / w, 0.4), 2.5)
    whole = WHOLE * comparisons[0].truth.shape[0] / comparisons[0].truth.shape[1]
    size = (WHOLE + len(labels) * PANEL, max(len(comparisons) * (panel + 0.25), min(whole, 2 * WHOLE)) + 1.1)
    figure = Figure(figsize=size, dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.supxlabel(note, fontsize=9, parse_math=False)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[WHOLE, len(labels) * PANEL])[0]
    axes = left.add_subplot()
    axes.imshow(comparisons[0].truth)
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, edgecolor=OUTLINE, linewidth=2))
    axes.set_axis_off()

    panels = right.subplots(len(comparisons), len(labels), squeeze=False)
    for row, one in zip(panels, comparisons, strict=True):
        best = max(answer.psnr for answer in one.answers)
        images = [one.truth, *(answer.image for answer in one.answers)]
        captions = ['', *(f'{answer.psnr:.2f} dB' for answer in one.answers)]
        for axes, image, caption in zip(row, images, captions, strict=True):
            axes.imshow(image[y : y + h, x : x + w])
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(caption, fontsize=9, fontweight='bold' if caption == f'{best:.2f} dB' else 'normal')
        row[0].set_ylabel(f'x{factor_text(one.scale)}', fontsize=11)
    for axes, label in zip(panels[0], labels, strict=True):
        axes.set_title(_wrapped(label), fontsize=9, parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format='png')


def _wrapped(label: str, width: int = 26) -> str:
    """A long name in lines that a panel has room for."""
    return '\n'.join(label[start : start + width] for start in range(0, len(label), width))
