"""PSNR and SSIM by the papers' protocols: on float images that are clamped and never rounded.

The host's own metrics get rounded 8-bit images and one border for all validation sets.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import scale_text
from clit_basicsr.metrics.protocols import border_width, find_protocol

# ITU-R BT.601 luma of RGB in [0, 1], up to its offset of 16, which cancels in differences.
LUMA = (65.738 / 256, 129.057 / 256, 25.064 / 256)
WINDOW = 11
SIGMA = 1.5


@METRIC_REGISTRY.register()
def calculate_psnr_float(
    img: Tensor, img2: Tensor, protocol: str, scale: float | Sequence[float], **kwargs: object
) -> float:
    """PSNR in dB of one image, as in the tables of the papers.

    Args:
        img: (1, 3, H, W), the prediction, RGB; clamped to [0, 1] here.
        img2: (1, 3, H, W), the truth, RGB in [0, 1].
        protocol: 'div2k': on RGB, a border of scale + 6 pixels cut off; 'benchmark': on luma, a border of scale pixels.
        scale: a number or (y, x); the border comes from the larger one, rounded up.

    Returns:
        float: infinite for identical images, NaN if a pixel of the prediction is not finite.

    Raises:
        UserError: unknown protocol, or nothing is left inside the border.
        ValueError: shapes differ or are not as above.
    """
    _check_shapes(img, img2)
    border = border_width(protocol, scale)
    height, width = img.shape[-2:]
    if min(height, width) <= 2 * border:
        pair = (scale[0], scale[1]) if isinstance(scale, Sequence) else (scale, scale)
        raise UserError(
            f'an image of {height}x{width} pixels is too small for the border of {border} pixels that protocol '
            f'{protocol} cuts off at scale {scale_text(pair)}; remove it from the data set.'
        )
    if not img.isfinite().all():
        return math.nan  # clamping would make a pixel of inf a white one
    difference = img.double().clamp(0, 1) - img2.double()
    difference = difference[..., border : height - border, border : width - border]
    if find_protocol(protocol).luma:
        difference = torch.tensordot(difference, difference.new_tensor(LUMA), dims=([1], [0]))
    mse = difference.square().mean().item()
    return -10 * math.log10(mse) if mse > 0 else math.inf


@METRIC_REGISTRY.register()
def calculate_ssim_float(img: Tensor, img2: Tensor, **kwargs: object) -> float:
    """SSIM of one image, as in the published code: on RGB for every protocol, no border cut off.

    The window is an 11 x 11 Gaussian of sigma 1.5, with zero padding.

    Args:
        img: (1, 3, H, W), the prediction, RGB; clamped to [0, 1] here.
        img2: (1, 3, H, W), the truth, RGB in [0, 1].

    Returns:
        float: NaN if a pixel of the prediction is not finite.

    Raises:
        ValueError: shapes differ or are not as above.
    """
    _check_shapes(img, img2)
    if not img.isfinite().all():
        return math.nan
    # Channel by channel: the moments of a whole image in double precision are many times its size.
    channels = zip(img.double().clamp(0, 1).unbind(1), img2.double().unbind(1), strict=True)
    return sum(_ssim_map(a, b).mean().item() for a, b in channels) / img.shape[1]


# The model feeds metrics that carry this mark with float tensors instead of 8-bit images.
calculate_psnr_float.takes_float_tensors = True
calculate_ssim_float.takes_float_tensors = True


def _check_shapes(img: Tensor, img2: Tensor) -> None:
    if img.shape != img2.shape or img.dim() != 4 or img.shape[:2] != (1, 3):
        raise ValueError(f'expected two images of shape (1, 3, H, W), got {img.shape=}, {img2.shape=}.')


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)


def _blur(x: Tensor) -> Tensor:
    """Gaussian window with zero padding along the last two axes of x (1, H, W), one axis at a time."""
    offset = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    gauss = torch.exp(-(offset**2) / (2 * SIGMA**2))
    weights = (gauss / gauss.sum()).tolist()
    pad = WINDOW // 2
    for axis, padding in ((-2, (0, 0, pad, pad)), (-1, (pad, pad))):
        padded = F.pad(x, padding)
        x = torch.zeros_like(x)
        for i, weight in enumerate(weights):
            x.add_(padded.narrow(axis, i, x.shape[axis]), alpha=weight)
    return x
