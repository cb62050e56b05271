"""A decoded picture, and what data sets and figures take of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from clit_basicsr.formats.metadata import NONE, Metadata


@dataclass(frozen=True)
class Picture:
    """A picture as it is looked at: turned as its EXIF data say.

    Attributes:
        pixels: (H, W, C), uint8 or uint16; C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha). Colours are
            not multiplied by alpha.
        icc: the ICC profile of the grey or RGB values, None: sRGB.
        notes: what was done to the file's content to read it, for the user.
        metadata: EXIF data and resolution, as they are written again.
    """

    pixels: np.ndarray
    icc: bytes | None = None
    notes: tuple[str, ...] = ()
    metadata: Metadata = NONE

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)

    @property
    def rgb(self) -> np.ndarray:
        """(H, W, 3), the same type: on white where it is transparent, grey three times.

        This is what figures and animations show; without alpha it is a view of the pixels, not a copy.
        """
        color = self.pixels
        if self.has_alpha:
            white = np.iinfo(color.dtype).max
            alpha = color[..., -1:].astype(np.uint32)
            mixed = color[..., :-1] * alpha + (white - alpha) * white  # up to white**2, which 32 bits hold
            color = ((mixed + white // 2) // white).astype(color.dtype)
        return np.broadcast_to(color, (*color.shape[:2], 3))

    @property
    def stored_rgb8(self) -> np.ndarray:
        """(H, W, 3), uint8, contiguous: the stored colours, whatever alpha is. This is what data sets take."""
        color = self.pixels[..., :-1] if self.has_alpha else self.pixels
        return np.ascontiguousarray(eight_bit(np.broadcast_to(color, (*color.shape[:2], 3))))


def eight_bit(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3), uint8, a copy; 16 bits are rounded."""
    return np.array(rgb) if rgb.dtype == np.uint8 else np.round(rgb / np.float32(257)).astype(np.uint8)


def make_picture(
    pixels: np.ndarray,
    orientation: int,
    icc: bytes | None,
    notes: Iterable[str] = (),
    metadata: Metadata = NONE,
) -> Picture:
    """A picture of (H, W) or (H, W, C) values as a file stores them, and of its EXIF orientation and ICC profile."""
    pixels = turn(pixels if pixels.ndim == 3 else pixels[..., None], orientation)
    # A profile of another kind than the pixels, which is found in files, would do more harm than none.
    kind = b'GRAY' if pixels.shape[2] < 3 else b'RGB '
    icc = icc if icc and icc[16:20] == kind else None
    return Picture(np.ascontiguousarray(pixels), icc, tuple(notes), metadata)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels (H, W, C) as an EXIF orientation (1 ... 8) says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
