"""The engine: a picture through a network, tile by tile into one array of the result's own type."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from clit_basicsr.archs import Bicubic
from clit_basicsr.archs.implicit import ImplicitNet, output_size
from clit_basicsr.archs.precision import in_precision
from clit_basicsr.base.console import hides_bars
from clit_basicsr.base.errors import UserError
from clit_basicsr.pictures.files import Picture
from clit_basicsr.pictures.memory import SHORTEST_TILE, Tiles, check_fits, device_of, is_out_of_memory, plan_tiles


def enlarge(
    net: ImplicitNet,
    picture: Picture,
    size: tuple[int, int] | None = None,
    scale: float | Sequence[float] | None = None,
    *,
    dtype: np.dtype | None = None,
    tiles: Tiles | None = None,
    precision: str | None = None,
    label: str | None = None,
) -> tuple[Picture, Tiles]:
    """A picture enlarged to any size, at least its own: colours by the network, alpha by bicubic interpolation.

    Neither the picture nor the result is ever floating point as a whole, unless the picture is.

    Args:
        net: in evaluation mode, on the device to use.
        picture: besides uint8 and uint16, its pixels may be floating point in [0, 1]. Grey is processed as RGB and
            averaged.
        size, scale: (H, W) or the factor, a number or (y, x); one of them.
        dtype: of the result; the picture's by default. Values are rounded and clipped.
        tiles: how the picture is cut at first; None: as :func:`plan_tiles` says. Where memory ends, others need it too,
            smaller ones are tried.
        precision: in which the network computes, see :func:`clit_basicsr.archs.precision.in_precision`.
        label: what the progress bar is called, which names the tiles too; None: no bar.

    Returns:
        The picture, and the tiles that it was cut into in the end.

    Raises:
        UserError: the result would be smaller than the picture, does not fit into the memory, or is not finite.
    """
    pixels = np.require(picture.pixels, requirements=['C', 'W'])  # what torch takes
    h, w, channels = pixels.shape
    target = {'size': size} if scale is None else {'scale': scale}
    (height, width), factors = output_size((h, w), size, scale)
    dtype = pixels.dtype if dtype is None else np.dtype(dtype)
    # Pillow takes four bytes per pixel more while it writes the file.
    check_fits((height, width), channels * dtype.itemsize + 4, 'a result')
    out = np.empty((height, width, channels), dtype)
    tiles = tiles or plan_tiles(net, (h, w), factors)
    layers: list[tuple[ImplicitNet, slice]] = [(net, slice(0, channels - picture.has_alpha))]
    if picture.has_alpha:
        layers.append((Bicubic(), slice(channels - 1, channels)))
    while True:
        total = len(layers) * math.ceil(h / tiles.size) * math.ceil(w / tiles.size)
        try:
            with _progress(total, label and f'{label}, {tiles}') as bar, in_precision(precision, device_of(net)):
                for network, part in layers:
                    _paint(network, pixels[..., part], out[..., part], target, tiles, bar)
            return replace(picture, pixels=out), tiles
        except (MemoryError, RuntimeError) as error:  # others use the machine or the GPU as well
            if not is_out_of_memory(error):
                raise
            if tiles.size <= SHORTEST_TILE and not tiles.whole:
                raise UserError(f'there is too little memory even for {tiles}; {_remedy(net)}.') from error
            tiles = plan_tiles(net, (h, w), factors, max(SHORTEST_TILE, tiles.size // 2))


def _paint(net: ImplicitNet, source: np.ndarray, out: np.ndarray, target: dict, tiles: Tiles, bar: tqdm) -> None:
    """Fills out (H, W, C) with the picture source (h, w, C), enlarged to ``target``, a size or a scale; C is 1 or 3."""
    lq = torch.from_numpy(source).permute(2, 0, 1).unsqueeze(0).to(device_of(net)).expand(1, 3, -1, -1)
    lq = lq.float() if lq.is_floating_point() else lq
    integer = np.issubdtype(out.dtype, np.integer)
    white = np.iinfo(out.dtype).max if integer else 1
    options = {'tile_size': tiles.size, 'tile_pad': max(tiles.pad, net.reach)}
    for rows, cols, rgb in net.upscale_tiles(lq, **target, tile=options):
        rgb = rgb.float()  # half precision, if that is what the network computes in
        if not rgb.isfinite().all():
            raise UserError(
                'the network gives values that are not finite (NaN or infinite): its weights are damaged, or the '
                'precision is too low for them (fp32 is the safest).'
            )
        values = rgb[0] if out.shape[2] == 3 else rgb[0].mean(0, keepdim=True)
        values = values.mul_(white)
        values = (values.round_() if integer else values).clamp_(0, white)
        if out.dtype == np.uint8:
            values = values.byte()  # where it was made: a quarter of what a GPU hands over
        out[rows, cols] = values.permute(1, 2, 0).contiguous().cpu().numpy()
        bar.update()


def _remedy(net: ImplicitNet) -> str:
    on_cpu = device_of(net).type == 'cpu'
    return 'close other programs, or enlarge a part of the picture' if on_cpu else 'use the CPU as device'


def _progress(total: int, label: str | None) -> tqdm:
    return tqdm(
        total=total,
        desc=label,
        unit='tile',
        disable=label is None or hides_bars(),
        leave=False,
        delay=1,
        file=sys.stderr,
    )
