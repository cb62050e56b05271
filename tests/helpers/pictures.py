"""Small pictures for the tests."""

import numpy as np
from PIL import Image


def ramp(height: int, width: int) -> np.ndarray:
    """(height, width, 3): red is y, green is x, and constant blue shows whether the channels are in order."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, 7)], -1).astype(np.uint8)


def save(img: np.ndarray, path) -> None:
    Image.fromarray(img).save(path)
