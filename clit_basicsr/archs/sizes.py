"""Sizes of pictures and tiles, and which pixels of one grid belong to which of another."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.coords import Bounds, nearest_index, pixel_centers

# Pixels of a result; no machine holds more, and their number stays exact.
LARGEST = 2**53


class Tiling(NamedTuple):
    """How a picture is cut for the encoder, in LR pixels.

    Attributes:
        size: side of a tile.
        pad: what the encoder sees around a tile as well.
    """

    size: int
    pad: int


def image_size(lq: Tensor, net: nn.Module) -> tuple[int, int]:
    """Size (h, w) of the LR images (B, 3, h, w) that a network gets.

    Raises:
        UserError: something else is given, or images of another device or of a precision that does not fit.
    """
    if not isinstance(lq, Tensor):
        raise UserError(
            f'lq must be a tensor (B, 3, h, w), got {type(lq).__name__}; clit_basicsr.upscale takes arrays, Pillow '
            'images and files.'
        )
    if lq.layout != torch.strided or lq.is_nested:
        raise UserError('lq must be an ordinary dense tensor (B, 3, h, w).')
    if lq.dim() != 4 or lq.shape[1] != 3 or not lq.numel():
        hint = '; lq[None] is a batch of one image' if lq.dim() == 3 and lq.shape[0] == 3 else ''
        raise UserError(f'lq must be (B, 3, h, w), got {tuple(lq.shape)}{hint}.')
    if lq.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.uint16):
        raise UserError(f'lq must be floating point in [0, 1], uint8 or uint16; got {lq.dtype}.')
    like = next(net.parameters(), None)
    if like is not None and lq.device != like.device:
        raise UserError(f'lq is on {lq.device}, the network on {like.device}; use lq.to({str(like.device)!r}).')
    if like is not None and lq.dtype == torch.float64 != like.dtype:
        raise UserError(f'lq is in double precision, the network in {like.dtype}; use lq.float().')
    if like is not None and {lq.dtype, like.dtype} == {torch.float16, torch.bfloat16}:
        raise UserError(f'lq is in {lq.dtype}, the network in {like.dtype}; use lq.float().')
    return lq.shape[2], lq.shape[3]


def output_size(
    lq_size: tuple[int, int], size: tuple[int, int] | None, scale: float | Sequence[float] | None
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Size (H, W) of an enlarged picture and its factor per axis, from one of the two; numpy's and torch's numbers too.

    Raises:
        UserError: neither or both are given, the result would be smaller than the LR image, or infinitely large.
    """
    if (size is None) == (scale is None):
        raise UserError('give the scale or the size of the result, one of the two.')
    h, w = lq_size
    if size is None:
        given = as_numbers(scale, float)
        pair = given * 2 if len(given) == 1 else given
        if len(pair) != 2 or not all(math.isfinite(s) and s >= 1 for s in pair):
            raise UserError(f'scale must be a number, or a pair (y, x), of at least 1; got {scale}.')
        if h * pair[0] * (w * pair[1]) > LARGEST:
            raise UserError(f'scale {scale} is too large for a picture of {h} rows and {w} columns.')
        return (round(h * pair[0]), round(w * pair[1])), (pair[0], pair[1])
    sides = as_numbers(size, operator.index)
    if len(sides) != 2 or sides[0] < h or sides[1] < w:
        raise UserError(
            f'size must be a pair (H, W) of whole numbers, at least those of the LR image {lq_size}; got {size}.'
        )
    if sides[0] * sides[1] > LARGEST:
        raise UserError(f'size {size} is too large.')
    return (sides[0], sides[1]), (sides[0] / h, sides[1] / w)


def as_numbers(value: Any, convert: Callable[[Any], Any]) -> tuple:
    """One or several numbers, numpy's and torch's too, in a tuple; () for anything else."""
    try:
        several = () if isinstance(value, (str, bytes, bytearray, dict, set)) else tuple(value)
    except TypeError:
        several = (value,)
    try:
        return () if any(isinstance(number, str) for number in several) else tuple(convert(one) for one in several)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last one is torch's, of tensors with axes
        return ()


def parse_tile(tile: dict | None, longest: int, reach: int) -> Tiling:
    """The option ``tile: {tile_size, tile_pad}``; None: one tile of ``longest`` LR pixels.

    Raises:
        UserError: the tile has no pixels, or its padding is less than ``reach``.
    """
    if tile is None:
        return Tiling(longest, longest)
    if not isinstance(tile, dict) or not tile.keys() <= {'tile_size', 'tile_pad'}:
        raise UserError(f'tile must be a dict with tile_size and tile_pad; got {tile!r}.')
    numbers = as_numbers((tile.get('tile_size', 0), tile.get('tile_pad', 32)), operator.index)
    tile_size, tile_pad = numbers or (0, 0)
    if tile_size < 1 or tile_pad < reach:
        raise UserError(
            f'tile_size must be at least 1 and tile_pad at least {reach} for this network; got {dict(tile)}.'
        )
    return Tiling(tile_size, tile_pad)


def hr_range(n_hr: int, n_lr: int, start: int, stop: int) -> Bounds:
    """HR pixels whose nearest LR pixel lies in start ... stop - 1, along one axis."""
    nearest = nearest_index(pixel_centers(n_hr), n_lr)
    first, last = torch.searchsorted(nearest, torch.tensor([start, stop])).tolist()
    return first, last


def lr_range(n_lr: int, n_hr: int, start: int, stop: int, reach: int) -> Bounds:
    """LR pixels that the HR pixels start ... stop - 1 read, along one axis; may go beyond the image."""
    edge = pixel_centers(n_hr, start, stop)[[0, -1]]
    first, last = nearest_index(edge, n_lr).tolist()
    return first - reach, last + reach + 1
