"""Figure 7 of the CLIT paper: what a query looks at, head by head and branch by branch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch

from clit_basicsr.archs.implicit import ImplicitNet, output_size
from clit_basicsr.archs.lit_arch import LITBase
from clit_basicsr.base.files import replacing
from clit_basicsr.ops.geometry.coords import pixel_centers
from clit_basicsr.pictures.files import Picture, eight_bit
from clit_basicsr.pictures.memory import plan_tiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# Side of the close-up: local grids at least, HR pixels at most (but the local grid is always shown whole).
CLOSE_UP_GRIDS = 3
CLOSE_UP_HR = 256
HEADS_PER_ROW = 8
QUERY = '#ff2d2d'
OUTLINES = ('#ffd400', '#00c8ff', '#5dff5d')  # of the branches' local grids
INCH = 1.15  # side of a head's map


class BranchMap(NamedTuple):
    """What one branch looks at for one query.

    Attributes:
        weights: (H, G, G), rows first.
        box: top, left, bottom, right of the local grid in LR pixels, whose centres are at whole numbers.
        query: (y, x) of the query in positions of the local grid, whose first one is (0, 0).
        factor: positions per LR pixel, (y, x): how much finer the branch's features are.
    """

    weights: np.ndarray
    box: tuple[float, float, float, float]
    query: tuple[float, float]
    factor: tuple[float, float]


class QueryView(NamedTuple):
    """A query and its surroundings.

    Attributes:
        at: (y, x) in LR pixels, whose centres are at whole numbers: the centre of an HR pixel.
        pixel: (y, x), that HR pixel.
        maps: of every active branch.
        rows, cols: first and one past the last LR pixel of the close-up.
        result: (H', W', 3) in [0, 1], the close-up enlarged.
        result_box: top, left, bottom, right of ``result`` in LR pixels.
    """

    at: tuple[float, float]
    pixel: tuple[int, int]
    maps: list[BranchMap]
    rows: tuple[int, int]
    cols: tuple[int, int]
    result: np.ndarray
    result_box: tuple[float, float, float, float]


def attention_at(
    net: ImplicitNet, picture: Picture, at: tuple[float, float], scale: float | tuple[float, float]
) -> QueryView:
    """Asks a network for its attention at one point of a picture.

    Args:
        net: in evaluation mode, on the device to use.
        at: (y, x) within the picture, in LR pixels from its upper left corner; the query is the HR pixel there.
        scale: of the result, a number or (y, x).

    Raises:
        UserError: the network has no local attention.
    """
    lq_size = (picture.pixels.shape[0], picture.pixels.shape[1])
    size, factors = output_size(lq_size, None, scale)
    scales = net.plan_scales(factors)
    y, x = (min(int(place * hr / n), hr - 1) for place, hr, n in zip(at, size, lq_size, strict=True))
    pixel, (height, width) = (y, x), lq_size
    places = ((y + 0.5) * height / size[0] - 0.5, (x + 0.5) * width / size[1] - 0.5)
    coord = torch.stack([pixel_centers(hr)[i] for hr, i in zip(size, pixel, strict=True)]).view(1, 1, 2)
    cell = torch.tensor([[2 / n for n in size]])

    grid = cast(int, net.branches[0].grid_size) if isinstance(net, LITBase) else 1
    side = max(grid + 2, min(CLOSE_UP_GRIDS * max(grid, 3), int(CLOSE_UP_HR / max(factors))))
    rows, cols = (_around(place, side, n) for place, n in zip(places, lq_size, strict=True))
    device = next(net.parameters(), torch.empty(0)).device
    lq = torch.from_numpy(np.array(picture.rgb)).permute(2, 0, 1).unsqueeze(0).to(device)
    feat = net.encode_part(lq, (rows[0], cols[0]), side, plan_tiles(net, lq_size, factors).pad)
    # What the finest branch reads, and no more: its features may be 16 times as large.
    near = feat.crop(*((round(place) - net.reach - 1, round(place) + net.reach + 2) for place in places))
    found = net.attention(near, coord.to(device), cell.to(device), scales)
    maps = [_branch_map(one.weights[0, 0], one.center[0, 0], one.grid, feat.frame.size, places) for one in found]

    hr_rows, hr_cols = (
        (math.floor(a * hr / n), math.ceil(b * hr / n))
        for (a, b), hr, n in zip((rows, cols), size, lq_size, strict=True)
    )
    result = net.upscale_part(feat, size, hr_rows, hr_cols, scales)[0].clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    corners = [(hr_rows[end] * height / size[0] - 0.5, hr_cols[end] * width / size[1] - 0.5) for end in (0, 1)]
    box = (*corners[0], *corners[1])
    return QueryView(places, pixel, maps, rows, cols, result, box)


def _around(place: float, side: int, n: int) -> tuple[int, int]:
    """``side`` pixels around a place of an axis of n pixels, within it: first and one past the last."""
    start = min(max(round(place) - side // 2, 0), max(n - side, 0))
    return start, min(start + side, n)


def _branch_map(weights, center, grid, frame, at) -> BranchMap:
    r = weights.shape[-1] // 2
    middle = center.tolist()
    factor = tuple(fine / n for fine, n in zip(grid, frame, strict=True))
    start = [(m - r) / f - 0.5 for m, f in zip(middle, factor, strict=True)]
    stop = [(m + r + 1) / f - 0.5 for m, f in zip(middle, factor, strict=True)]
    query = tuple((place + 0.5) * f - 0.5 - m + r for place, f, m in zip(at, factor, middle, strict=True))
    return BranchMap(weights.cpu().numpy(), (*start, *stop), query, factor)


def draw_attention(views: list[QueryView], picture: Picture, title: str, path: str) -> None:
    """Writes a PNG: for each query the picture, a close-up with the local grids, the result, and every head's map.

    All maps of the figure are on one colour scale.

    Args:
        title: stands above everything.
        path: of the PNG; a partial file of that name never exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heads = views[0].maps[0].weights.shape[0]
    lines = [len(view.maps) * math.ceil(heads / HEADS_PER_ROW) for view in views]
    heights = [3.3 + n * (INCH + 0.25) for n in lines]
    width = max(10.0, min(heads, HEADS_PER_ROW) * INCH + 2.2)
    figure = Figure(figsize=(width, sum(heights) + 0.4), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, parse_math=False)
    largest = max(one.weights.max() for view in views for one in view.maps)
    parts = figure.subfigures(len(views), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, view in zip(parts, views, strict=True):
        _draw_query(part, view, picture, largest)
    with replacing(path) as temporary:
        figure.savefig(temporary, format='png')


def _draw_query(part: SubFigure, view: QueryView, picture: Picture, largest: float) -> None:
    from matplotlib.ticker import MaxNLocator

    heads = view.maps[0].weights.shape[0]
    lines = len(view.maps) * math.ceil(heads / HEADS_PER_ROW)
    above, below = part.subfigures(2, 1, squeeze=False, height_ratios=[3.3, lines * (INCH + 0.25)])[:, 0]
    whole, close, result = above.subplots(1, 3)
    pixels = eight_bit(picture.rgb)
    (top, bottom), (left, right) = view.rows, view.cols

    h, w = pixels.shape[:2]
    whole.imshow(pixels)
    whole.add_patch(_outline((top - 0.5, left - 0.5, bottom - 0.5, right - 0.5), QUERY))
    _mark(whole, view.at)
    whole.set_title(f'LR picture, {w} x {h}', fontsize=9)

    close.imshow(pixels[top:bottom, left:right], extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5))
    for index, one in enumerate(view.maps):
        close.add_patch(_outline(one.box, OUTLINES[index % len(OUTLINES)]))
    _mark(close, view.at, 5)
    close.set_xlim(left - 0.5, right - 0.5)  # a grid at the border goes beyond the picture
    close.set_ylim(bottom - 0.5, top - 0.5)
    grid = view.maps[0].weights.shape[-1]
    close.set_title(f'local grids, {grid} x {grid}, colours as below', fontsize=9)

    box = view.result_box
    result.imshow(view.result, extent=(box[1], box[3], box[2], box[0]), interpolation='nearest')
    _mark(result, view.at, 5)
    result.set_title(f'result, HR pixel {view.pixel[0]}, {view.pixel[1]}', fontsize=9)
    for axes in (whole, close, result):
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    above.suptitle(f'query at y = {view.at[0]:.4g}, x = {view.at[1]:.4g} of the LR picture', fontsize=10)
    _draw_maps(below, view, largest)


def _draw_maps(part: SubFigure, view: QueryView, largest: float) -> None:
    """A row of maps for each branch; where there are many heads, several."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    norm = Normalize(0, largest)
    heads, grid, _ = view.maps[0].weights.shape
    columns, rows = min(heads, HEADS_PER_ROW), math.ceil(heads / HEADS_PER_ROW)
    cells = part.subplots(len(view.maps) * rows, columns, squeeze=False)
    for index, one in enumerate(view.maps):
        color = OUTLINES[index % len(OUTLINES)]
        for place in range(rows * columns):
            axes: Axes = cells[index * rows + place // columns, place % columns]
            axes.set_xticks([])
            axes.set_yticks([])
            if place >= heads:
                axes.set_visible(False)
                continue
            axes.imshow(one.weights[place], norm=norm, cmap='magma')
            axes.plot(one.query[1], one.query[0], '+', color='#00e5ff', markersize=7, markeredgewidth=1.2)
            axes.set_xlim(-0.5, grid - 0.5)
            axes.set_ylim(grid - 0.5, -0.5)
            axes.spines[:].set(color=color, linewidth=2)
            if index == 0:
                axes.set_title(f'head {place + 1}', fontsize=8)
            if place % columns == 0:
                finer = ' x '.join(f'{f:.3g}' for f in dict.fromkeys(one.factor))
                axes.set_ylabel(f'branch {index + 1}\nfeatures x{finer}', fontsize=8)
    bar = part.colorbar(ScalarMappable(norm, 'magma'), ax=cells, fraction=0.03, pad=0.01)
    bar.set_label('attention weight', fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _outline(box: tuple[float, float, float, float], color: str):
    from matplotlib.patches import Rectangle

    top, left, bottom, right = box
    return Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1.6)


def _mark(axes: Axes, at: tuple[float, float], size: float = 9) -> None:
    axes.plot(at[1], at[0], '+', color='white', markersize=1.2 * size, markeredgewidth=3)
    axes.plot(at[1], at[0], '+', color=QUERY, markersize=size, markeredgewidth=1.5)
