"""LIT and CLIT, arbitrary-scale super-resolution, as a plugin of BasicSR.

Importing this package makes ``import basicsr`` work on today's torchvision and puts the fixes of
``clit_basicsr.hosts`` in force the moment BasicSR is imported; neither torch nor BasicSR is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clit_basicsr.base.errors import UserError
from clit_basicsr.hosts import import_hooks

if TYPE_CHECKING:
    from clit_basicsr.archs.implicit import ImplicitNet

__all__ = ['UserError', 'load', 'upscale']

__version__ = '0.1.0'

import_hooks.install()


def load(name_or_path: str | os.PathLike | None = None, device: str = 'cpu') -> ImplicitNet:
    """A trained network, in evaluation mode and single precision.

    Args:
        name_or_path: the path of a checkpoint; the name of an experiment below the working directory; or a network that
            comes with the package, looked for in this order; None: ``clit-light`` of the package.
        device: 'cpu', 'cuda', 'cuda:1' ...

    Returns:
        A network for any scale: ``net.upscale(lq, scale=3.7)`` takes and gives images (B, 3, h, w), RGB in [0, 1].

    Raises:
        UserError: nothing of that name is there, with what there is; or the file is damaged, or of no such network.
    """
    from clit_basicsr.pictures import api

    return api.load(name_or_path, device)


def upscale(
    image: Any,
    scale: float | Sequence[float] | None = None,
    *,
    size: tuple[int, int] | None = None,
    model: str | os.PathLike | Any = None,
    tile: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Any:
    """Enlarges a picture, as ``basicsr upscale`` does: colours by the network, alpha by bicubic interpolation.

    Args:
        image: an array (H, W), (H, W, 1 to 4) (grey or RGB, with or without alpha) of uint8, uint16 or floating point
            in [0, 1]; a picture of Pillow; or the path of a file.
        scale: a number, or a pair (y, x), of at least 1; or
        size: (H, W) of the result, at least that of the picture.
        model: a network, as of :func:`load`, or what that accepts; None: ``clit-light`` of the package. A network is
            used where it is, and given back as it was; a file is read again at every call.
        tile: side of the tiles that the encoder sees, in pixels; None: chosen from the free memory.
        precision: in which the network computes: 'fp32', 'tf32', 'bf16' or 'fp16'; None: single precision, as torch is
            set.
        device: 'cpu', 'cuda' ...; None: the model's own if it is a network, else a GPU if there is one.
        progress: whether to show a bar.

    Returns:
        What was given: an array of the same type, float32 for floating point, in [0, 1]; a picture of Pillow. For a
        path, an array (H, W) or (H, W, 2 to 4), uint8 or uint16. A picture of Pillow keeps profile, EXIF data and
            resolution in its ``info``.

    Raises:
        clit_basicsr.base.errors.UserError: the file, the network or the size cannot be used, with the reason.
    """
    from clit_basicsr.pictures import api

    return api.upscale(
        image, scale, size=size, model=model, tile=tile, precision=precision, device=device, progress=progress
    )
