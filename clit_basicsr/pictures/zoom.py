"""An animation that zooms smoothly into a point: the network computes every frame at the frame's own scale."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clit_basicsr.archs.implicit import PIECE, Features, ImplicitNet
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import replacing
from clit_basicsr.ops.geometry.coords import Frame
from clit_basicsr.pictures import files
from clit_basicsr.pictures.files import Picture
from clit_basicsr.pictures.formats import FILMS
from clit_basicsr.pictures.memory import Tiles, check_fits, device_of, plan_tiles

SLOWEST = 0.1  # frames per second
LONGEST = 600  # seconds
# Picture pixels around the first frame's window that the encoder sees as well.
MARGIN = 64
# A GIF has one palette, taken from the picture's own colours in this many windows along the way.
PALETTE_WINDOWS = 6


class Shot(NamedTuple):
    """What one frame shows.

    Attributes:
        scale: frame pixels per picture pixel.
        origin: (y, x) of the frame's upper left corner in picture pixels, not whole ones; (0, 0) is the picture's.
    """

    scale: float
    origin: tuple[float, float]


def check_film(path: str, frame_size: tuple[int, int], seconds: float, fps: float) -> int:
    """The number of frames, two at least.

    Raises:
        UserError: the file's format cannot hold the animation, or it would be too long.
    """
    film = FILMS[os.path.splitext(path)[1].lower()]
    if not SLOWEST <= fps <= film.fps:
        raise UserError(f'--fps: this format takes {SLOWEST:g} to {film.fps:g} frames per second; got {fps:g}.')
    if not 0 < seconds <= LONGEST:
        raise UserError(f'--seconds: an animation lasts more than 0 and at most {LONGEST} seconds; got {seconds:g}.')
    if max(frame_size) > film.longest_side:
        raise UserError(
            f'{path}: this format is limited to {film.longest_side} pixels a side; got '
            f'{frame_size[1]}x{frame_size[0]}. Give a smaller --width.'
        )
    return max(2, round(seconds * fps))


def plan_shots(
    lq_size: tuple[int, int], frame_size: tuple[int, int], at: tuple[float, float], to: float, num_frames: int
) -> list[Shot]:
    """The camera's path: the scale grows by the same factor from frame to frame, and one point of the picture is fixed.

    The first frame is at x1, or at the scale where it just shows the whole picture, whichever is larger; the last one
    has ``at`` in its middle, as far as the picture's edges allow. Both windows determine the fixed point.

    Args:
        lq_size, frame_size: (h, w) of the picture and (H, W) of the frames.
        at: (y, x) in picture pixels.
        to: scale of the last frame.

    Raises:
        UserError: the animation would not zoom in.
    """
    start = max(1.0, *(side / n for side, n in zip(frame_size, lq_size, strict=True)))
    if not start < to < math.inf:
        raise UserError(f'the zoom begins at x{start:.3g} and would end at x{to:.3g}; give a larger end (--to).')

    def corner(scale: float) -> list[float]:
        spans = [(side / scale, n) for side, n in zip(frame_size, lq_size, strict=True)]
        return [
            min(max(center - span / 2, 0.0), max(n - span, 0.0)) for center, (span, n) in zip(at, spans, strict=True)
        ]

    first, last = corner(start), corner(to)
    shots = []
    for i in range(num_frames):
        scale = start * (to / start) ** (i / (num_frames - 1))
        # The corner moves in proportion to the window's size: a zoom about a fixed point, always inside the picture.
        way = (1 / start - 1 / scale) / (1 / start - 1 / to)
        y, x = (a + (b - a) * way for a, b in zip(first, last, strict=True))
        shots.append(Shot(scale, (y, x)))
    return shots


@torch.no_grad()
def render(net: ImplicitNet, feat: Features, shot: Shot, frame_size: tuple[int, int]) -> Tensor:
    """One frame, (3, H, W) in [0, 1], not clamped; only what is seen is asked for.

    Args:
        feat: from ``net.encode``; the shot's origin counts from this image's corner.
    """
    axes = [
        (torch.arange(side, dtype=torch.float64) + 0.5) / shot.scale + start
        for side, start in zip(frame_size, shot.origin, strict=True)
    ]  # in LR pixels
    cell = feat.lq.new_tensor([[2 / (n * shot.scale) for n in feat.image_size]])
    scales = net.plan_scales((shot.scale, shot.scale))
    out = feat.lq.new_empty(3, *frame_size)
    side = max(frame_size) if net.uses_all_queries else PIECE  # a frame is one picture
    for y0, x0 in itertools.product(range(0, frame_size[0], side), range(0, frame_size[1], side)):
        y, x = axes[0][y0 : y0 + side], axes[1][x0 : x0 + side]
        # One pixel more than the reach: the nearest one is found from rounded coordinates.
        rows, cols = ((int(t[0]) - net.reach - 1, int(t[-1]) + net.reach + 2) for t in (y, x))
        grid = torch.meshgrid(y * (2 / feat.image_size[0]) - 1, x * (2 / feat.image_size[1]) - 1, indexing='ij')
        coord = torch.stack(grid, dim=-1).flatten(0, 1).unsqueeze(0).to(feat.lq)  # (1, num_rows * num_cols, 2)
        rgb = net.query(feat.crop(rows, cols), coord, cell, scales)
        out[:, y0 : y0 + side, x0 : x0 + side] = rgb[0].t().unflatten(1, (len(y), len(x)))
    return out


def cut_to_film(picture: Picture, shots: list[Shot], frame_size: tuple[int, int]) -> tuple[Picture, list[Shot]]:
    """The part of a picture that an animation shows, with some surroundings, and the same shots of it."""
    bounds = []
    for start, side, n in zip(shots[0].origin, frame_size, picture.pixels.shape[:2], strict=True):
        stop = math.ceil(start + side / shots[0].scale)
        bounds.append((max(int(start) - MARGIN, 0), min(stop + MARGIN, n)))
    (top, bottom), (left, right) = bounds
    moved = [Shot(scale, (y - top, x - left)) for scale, (y, x) in shots]
    return replace(picture, pixels=picture.pixels[top:bottom, left:right]), moved


def render_film(
    net: ImplicitNet, picture: Picture, shots: list[Shot], frame_size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The frames one by one, (H, W, 3), uint8.

    Raises:
        UserError: the features of all that is seen, or a frame, do not fit into the memory.
    """
    lq_size = (picture.pixels.shape[0], picture.pixels.shape[1])
    check_fits(frame_size, 2 * 3 * 4, 'a frame')
    check_fits(lq_size, 4 * (net.feature_channels + 3), 'what the network sees of a window')
    lq = torch.from_numpy(np.array(picture.rgb)).permute(2, 0, 1).unsqueeze(0).to(device_of(net))
    feat = encode(net, lq, plan_tiles(net, lq_size, (1.0, 1.0)))
    for shot in shots:
        frame = render(net, feat, shot, frame_size).mul_(255).round_().clamp_(0, 255)
        yield frame.byte().permute(1, 2, 0).cpu().numpy()


def encode(net: ImplicitNet, lq: Tensor, tiles: Tiles) -> Features:
    """``net.encode`` of an image that may be too large for the encoder: tile by tile, put together.

    Args:
        lq: (1, 3, h, w), uint8 or uint16.
    """
    size = net.encoder.padded_size(*lq.shape[-2:])
    side = max(size) if tiles.whole else tiles.size
    z, window = (torch.empty(1, n, *size, device=lq.device) for n in (net.feature_channels, 3))
    for y, x in itertools.product(range(0, size[0], side), range(0, size[1], side)):
        part = net.encode_part(lq, (y, x), side, tiles.pad).crop((y, y + side), (x, x + side))
        z[..., y : y + side, x : x + side], window[..., y : y + side, x : x + side] = part.z, part.lq
    return Features(z, window, Frame(size, (0, 0)), (lq.shape[2], lq.shape[3]))


def shared_palette(picture: Picture, shots: list[Shot], frame_size: tuple[int, int]) -> Image.Image:
    """256 colours for all frames: those of the picture in windows along the camera's way, each counting the same."""
    image = Image.fromarray(files.eight_bit(picture.rgb))
    sheet = Image.new('RGB', (128, 128 * PALETTE_WINDOWS))
    for i in range(PALETTE_WINDOWS):
        shot = shots[round(i * (len(shots) - 1) / (PALETTE_WINDOWS - 1))]
        (y, x), (height, width) = shot.origin, (side / shot.scale for side in frame_size)
        box = (x, y, min(x + width, image.width), min(y + height, image.height))
        sheet.paste(image.resize((128, 128), Image.Resampling.BICUBIC, box=box), (0, 128 * i))
    return sheet.quantize(256, Image.Quantize.FASTOCTREE)  # median cut leaves bands in smooth areas


def gif_durations(num_frames: int, fps: float) -> list[int]:
    """Milliseconds of each frame of a GIF, whose clock knows hundredths of a second: no frame's end is off by more
    than half of one.
    """
    ends = [round(100 * i / fps) for i in range(num_frames + 1)]
    return [10 * (end - start) for start, end in itertools.pairwise(ends)]


def write_gif(path: str, frames: Iterable[np.ndarray], durations: list[int], palette: Image.Image) -> None:
    """An endless GIF; ``durations``: from :func:`gif_durations`."""
    images = (Image.fromarray(frame).quantize(palette=palette) for frame in frames)
    with replacing(path) as temporary:
        next(images).save(
            temporary,
            'GIF',
            save_all=True,
            append_images=images,
            duration=durations,
            loop=0,
            optimize=False,
        )


def write_mp4(path: str, frames: Iterable[np.ndarray], fps: float, frame_size: tuple[int, int]) -> None:
    """An MP4 (MPEG-4 part 2), whose sides have to be even.

    Raises:
        UserError: OpenCV cannot write it here.
    """
    with replacing(path) as temporary:
        writer = cv2.VideoWriter(temporary, cv2.VideoWriter.fourcc(*'mp4v'), fps, frame_size[::-1])
        try:
            if not writer.isOpened():
                raise UserError(f'{path}: the OpenCV that is installed writes no MP4; take .gif.')
            for frame in frames:
                writer.write(np.ascontiguousarray(frame[..., ::-1]))
        finally:
            writer.release()
        if not os.path.exists(temporary):
            raise UserError(f'{path}: the OpenCV that is installed writes no MP4; take .gif.')
