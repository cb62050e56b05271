"""How an LR image is made from an HR one, 8 bit in and 8 bit out."""

import numpy as np
import torch
from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.resize import resize_axis

KINDS = ('pil', 'matlab')


def downsample(img: np.ndarray, size: tuple[int, int], kind: str) -> np.ndarray:
    """Shrinks an 8-bit image with an antialiased bicubic kernel (a = -0.5 in both kinds).

    Args:
        img: (H, W, 3), uint8.
        size: (h, w) of the result in pixels.
        kind: 'pil': Pillow's BICUBIC (columns first, borders cut off and renormalised), as the papers do for x6 and
            above; 'matlab': MATLAB's imresize to the bit, as the published LR images of DIV2K and the benchmarks.

    Returns:
        np.ndarray: (h, w, 3), uint8.

    Raises:
        UserError: unknown kind.
    """
    check_kind(kind)
    if kind == 'pil':
        return np.asarray(Image.fromarray(img).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    x = torch.from_numpy(np.ascontiguousarray(img)).double()
    # MATLAB keeps the image's type between the passes, so each of them is rounded and clipped.
    for axis in (0, 1):
        x = _round_to_8bit(resize_axis(x, axis, size[axis]))
    return x.byte().numpy()


def check_kind(kind: str) -> None:
    """Raises UserError unless ``kind`` is one of KINDS."""
    if kind not in KINDS:
        raise UserError(f"downsampling: '{kind}' is not known; use one of {', '.join(KINDS)}.")


def _round_to_8bit(x: torch.Tensor) -> torch.Tensor:
    # Half away from zero, MATLAB's rule (torch.round takes halves to even); what is negative is clipped anyway.
    return (x + 0.5).floor().clamp(0, 255)
