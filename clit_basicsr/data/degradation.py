"""What cameras and the web do to LR images: noise, then JPEG compression, drawn anew for every patch."""

from typing import Any

import numpy as np

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.option_types import check_block

OPTIONS = {'noise_range': list, 'noise_prob': float, 'jpeg_range': list, 'jpeg_prob': float}


class Degradation:
    """Random Gaussian noise and JPEG compression, in the names of Real-ESRGAN's option files.

    Args:
        opt (dict): Config. It contains the following keys:
            noise_range (list): [lo, hi], standard deviation of the noise, drawn uniformly, in units of 8-bit levels,
                0 ... 255; independent in every pixel and channel. Default: no noise.
            noise_prob (float): Share of the patches that get noise, 0 ... 1. Default: 1.
            jpeg_range (list): [lo, hi], quality of the JPEG compression, a whole number of 1 ... 100, drawn uniformly.
                Default: no compression.
            jpeg_prob (float): Share of the patches that are compressed, 0 ... 1. Default: 1.

    Raises:
        UserError: a wrong option, or neither range.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        check_block(opt, 'degradation', OPTIONS)
        if not opt.get('noise_range') and not opt.get('jpeg_range'):
            raise UserError('degradation needs noise_range or jpeg_range, such as jpeg_range: [30, 95].')
        self.noise = _parse_range(opt, 'noise_range', (0, 255))
        self.jpeg = _parse_range(opt, 'jpeg_range', (1, 100), whole=True)
        self.noise_prob, self.jpeg_prob = (_parse_share(opt, key) for key in ('noise_prob', 'jpeg_prob'))

    def __call__(self, lq: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The degraded image, (h, w, 3), uint8, RGB, as is ``lq``, which is left as it is."""
        noisy, compressed = rng.random(2) < (self.noise_prob, self.jpeg_prob)
        if self.noise and noisy:
            sigma = rng.uniform(*self.noise)
            # not the host's function, which draws from numpy's global state
            lq = np.clip(np.rint(lq + sigma * rng.standard_normal(lq.shape)), 0, 255).astype(np.uint8)
        if self.jpeg and compressed:
            lq = compress(lq, int(rng.integers(self.jpeg[0], self.jpeg[1] + 1)))
        return lq


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """An image (h, w, 3), uint8, RGB, after JPEG compression by the host, with the chroma at half the resolution."""
    from basicsr.data.degradations import add_jpg_compression  # imports scipy and torchvision

    bgr = np.ascontiguousarray(image[:, :, ::-1])  # OpenCV's order: else red would be compressed as blue
    decoded = add_jpg_compression(bgr.astype(np.float32) / 255, quality)
    return np.ascontiguousarray(np.rint(decoded[:, :, ::-1] * 255).astype(np.uint8))


def _parse_range(opt: dict[str, Any], key: str, limits: tuple[int, int], whole: bool = False) -> tuple | None:
    pair = opt.get(key)
    if pair is None:
        return None
    kinds = (int,) if whole else (int, float)
    if len(pair) != 2 or not all(isinstance(one, kinds) and not isinstance(one, bool) for one in pair):
        raise UserError(f'degradation:{key}: must be two {"whole " if whole else ""}numbers [lo, hi], got {pair!r}.')
    if not limits[0] <= pair[0] <= pair[1] <= limits[1]:
        raise UserError(
            f'degradation:{key}: [lo, hi] needs {limits[0]} <= lo <= hi <= {limits[1]}, got {list(pair)!r}.'
        )
    return tuple(pair)


def _parse_share(opt: dict[str, Any], key: str) -> float:
    share = opt.get(key, 1.0)
    if not 0 <= share <= 1:
        raise UserError(f'degradation:{key}: must be from 0 to 1, got {share!r}.')
    return share
