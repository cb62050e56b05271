"""``clit_basicsr.upscale``: from Python what ``basicsr upscale`` does to a file; ``clit_basicsr.load``."""

import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.archs.precision import check_double
from clit_basicsr.archs.sizes import as_numbers, output_size
from clit_basicsr.base.devices import choose_device
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.precisions import check_precision
from clit_basicsr.pictures import files
from clit_basicsr.pictures.enlarge import enlarge
from clit_basicsr.pictures.files import Picture
from clit_basicsr.pictures.memory import device_of, plan_tiles, reporting_full_memory
from clit_basicsr.pictures.networks import find_checkpoint, load_network

# Pixels; larger sides mean the same: no tiles.
MAX_TILE = 2**31 - 1


def load(name_or_path: str | os.PathLike | None, device: str) -> ImplicitNet:
    """See :func:`clit_basicsr.load`."""
    return _read(name_or_path, choose_device(device))


def _read(model: str | os.PathLike | None, device: torch.device) -> ImplicitNet:
    return load_network(find_checkpoint(os.fspath(model) if isinstance(model, os.PathLike) else model), device)


def upscale(
    image: Any,
    scale: float | Sequence[float] | None = None,
    *,
    size: tuple[int, int] | None = None,
    model: str | os.PathLike | nn.Module | None = None,
    tile: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Any:
    """See :func:`clit_basicsr.upscale`."""
    if tile is not None:
        side = as_numbers(tile, operator.index)
        if len(side) != 1 or side[0] < 1:
            raise UserError(f'tile: the side of a tile is a whole number of pixels, at least 1; got {tile!r}.')
        tile = min(side[0], MAX_TILE)
    check_precision(precision, 'precision')
    where = None if device is None else choose_device(device)
    if isinstance(model, nn.Module):
        if not isinstance(model, ImplicitNet):
            raise UserError(
                f'{type(model).__name__} works at one scale only; use an arbitrary-scale network such as LIT or CLIT.'
            )
        net = model
    else:
        net = _read(model, where or choose_device())
    with reporting_full_memory('the picture', 'give a smaller size, or enlarge a part of it'):
        picture = _to_picture(image)
        lq_size = (picture.pixels.shape[0], picture.pixels.shape[1])
        factors = output_size(lq_size, size, scale)[1]
        with _borrowed(net, where):
            tiles = plan_tiles(net, lq_size, factors, tile)
            label = 'upscale' if progress else None
            out, _ = enlarge(net, picture, size, scale, tiles=tiles, precision=precision, label=label)
        return _like(image, out)


@contextmanager
def _borrowed(net: ImplicitNet, device: torch.device | None) -> Iterator[None]:
    """A network in evaluation mode, on the device if one is named; afterwards as it was, each of its modules."""
    own, training = device_of(net), {module: module.training for module in net.modules()}
    try:
        net.eval()
        if device is not None:
            check_double(net, device)
            net.to(device)
        yield
    finally:
        net.to(own)
        for module, mode in training.items():
            module.training = mode


def _to_picture(image: Any) -> Picture:
    if isinstance(image, (str, os.PathLike)):
        return files.read(os.fspath(image))
    if isinstance(image, Image.Image):
        if not min(image.size):
            raise UserError('the image has no pixels.')
        with files.reporting_damage('the picture'):
            picture = files.from_pillow(image)
        if picture.pixels.dtype == np.uint16 and picture.has_alpha:
            raise UserError(
                'Pillow has no grey of 16 bits with alpha to give back; give an array, or the path of a file.'
            )
        return picture
    try:
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu().resolve_conj().resolve_neg()
            image = image.float() if image.dtype == torch.bfloat16 else image
        pixels = np.asarray(image)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        raise UserError(f'an image is a path, a Pillow image or an array; got {type(image).__name__}.') from None
    pixels = pixels.astype(pixels.dtype.newbyteorder('='), copy=False)
    shape, dtype = pixels.shape, pixels.dtype
    if pixels.ndim not in (2, 3) or min(shape) < 1 or shape[2:] not in ((), (1,), (2,), (3,), (4,)):
        hint = ''
        if pixels.ndim in (3, 4) and shape[-3] in (1, 3, 4):
            hint = '; a tensor (3, h, w) is for net.upscale (clit_basicsr.load), or move its channels last'
        raise UserError(f'an image is an array of (H, W) or (H, W, 1 to 4); got {shape}{hint}.')
    if np.issubdtype(dtype, np.floating):
        # What is not a number fails here too.
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            bytes_ = 1 < pixels.max() <= 255 and pixels.min() >= 0
            hint = '; divide it by 255, or give it as uint8' if bytes_ else ''
            raise UserError(f'a floating-point image is in [0, 1]; got {pixels.min():g} to {pixels.max():g}{hint}.')
        pixels = pixels.astype(np.float32, copy=False)
    elif dtype not in (np.uint8, np.uint16):
        raise UserError(f'an image is uint8, uint16 or floating point in [0, 1]; got {dtype}.')
    return Picture(pixels.reshape(*shape[:2], -1))


def _like(image: Any, out: Picture) -> Any:
    if isinstance(image, Image.Image):
        result = Image.fromarray(out.pixels[..., 0] if out.pixels.shape[2] == 1 else out.pixels)
        if out.icc:
            result.info['icc_profile'] = out.icc
        if out.metadata.exif:
            result.info['exif'] = out.metadata.exif
        if out.metadata.dpi:
            result.info['dpi'] = out.metadata.dpi
        return result
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return out.pixels
    return out.pixels[..., 0] if out.pixels.shape[2] == 1 else out.pixels
