"""Pairs of HR and LR images: which sizes belong together, and how the LR image is made, 8 bit in and 8 bit out."""

import math

import numpy as np
import torch
from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import scale_text
from clit_basicsr.data.downsamplings import check_downsampling
from clit_basicsr.ops.geometry.resize import resize_axis


def lq_size(hr_size: tuple[int, ...], scale: tuple[float, float]) -> tuple[int, int]:
    """(h, w) of the largest LR image that an HR image of (H, W, ...) covers; 0 along an axis that is too short."""
    height, width = (math.floor(side / s + 1e-9) for side, s in zip(hr_size[:2], scale, strict=True))
    return height, width


def gt_size(lq: tuple[int, ...], scale: tuple[float, float]) -> tuple[int, int]:
    """(H, W) that an LR image of (h, w, ...) covers: round((h, w) * scale), half to even."""
    return round(lq[0] * scale[0]), round(lq[1] * scale[1])


def fits(hr_size: tuple[int, ...], lq: tuple[int, ...], scale: tuple[float, float]) -> bool:
    """Whether a given LR image of (h, w, ...) can be that of an HR image.

    The HR image may have a rim, because LR images are made after cutting it to a multiple; a tenth is no longer a rim.
    """
    pairs = zip(hr_size[:2], gt_size(lq, scale), strict=True)
    return all(needed <= side <= 1.1 * needed + max(scale) for side, needed in pairs)


def make_pair(hr: np.ndarray, scale: tuple[float, float], downsampling: str) -> tuple[np.ndarray, np.ndarray]:
    """An HR image (H, W, 3), uint8, cut to what its LR image covers, and that LR image.

    Raises:
        UserError: the image is too small for the scale, or the way of downsampling is not known.
    """
    size = lq_size(hr.shape, scale)
    if min(size) < 1:
        raise UserError(f'{hr.shape[0]}x{hr.shape[1]} pixels are too few for scale {scale_text(scale)}')
    height, width = gt_size(size, scale)
    hr = hr[:height, :width]
    return hr, downsample(hr, size, downsampling)


def downsample(img: np.ndarray, size: tuple[int, int], downsampling: str) -> np.ndarray:
    """Shrinks an 8-bit image with an antialiased bicubic kernel (a = -0.5 in both ways).

    Args:
        img: (H, W, 3), uint8.
        size: (h, w) of the result in pixels.
        downsampling: 'pil': Pillow's BICUBIC (columns first, borders cut off and renormalised), as the papers do for
            x6 and above; 'matlab': MATLAB's imresize to the bit, as the published LR images of DIV2K and the
            benchmarks.

    Returns:
        np.ndarray: (h, w, 3), uint8.

    Raises:
        UserError: the way is not known.
    """
    check_downsampling(downsampling)
    if downsampling == 'pil':
        return np.asarray(Image.fromarray(img).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    x = torch.from_numpy(np.ascontiguousarray(img, dtype=np.float64))
    # MATLAB keeps the image's type between the passes, so each of them is rounded and clipped.
    for axis in (0, 1):
        x = _round_to_8bit(resize_axis(x, axis, size[axis]))
    return x.byte().numpy()


def _round_to_8bit(x: torch.Tensor) -> torch.Tensor:
    # Half away from zero, MATLAB's rule (torch.round takes halves to even); what is negative is clipped anyway.
    return (x + 0.5).floor().clamp(0, 255)
