"""A whole picture from LIT's branches by the fast backends, in bands, so that no map of C channels is ever whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from clit_basicsr.archs.implicit import Features
from clit_basicsr.ops.attention.dense import Maps, dense_first_layer
from clit_basicsr.ops.geometry.coords import numbers, upsample_bilinear
from clit_basicsr.ops.upsampled import Upsampling, narrowed

if TYPE_CHECKING:
    from clit_basicsr.archs.lit_arch import LITBase, LITBranch

# HR rows of the skip connection that are made at once.
SKIP_ROWS = 64

# Queries per thread that pass the decoder at once on a processor: they stay in its cache from layer to layer.
DECODER_QUERIES = 512


def fill(
    out: Tensor,
    feat: Features,
    size: tuple[int, int],
    rows: tuple[int, int],
    cols: tuple[int, int],
    net: LITBase,
    grids: list[Upsampling | None],
    backend: str,
) -> None:
    """Answers the HR pixels rows x cols into ``out``, branch by branch: equation (9) is summed up in the result itself.

    Args:
        out: (B, 3, rows, cols).
        feat: a window of features that holds all that these pixels read.
        size: (H, W).
        grids: for every active branch the grid that it works on, None for that of the features.
    """
    out.zero_()
    for module, grid in zip(net.branches, grids, strict=False):
        branch = cast('LITBranch', module)
        out *= net.residual
        for image in range(len(out)):
            part = feat._replace(z=feat.z[image : image + 1], lq=feat.lq[image : image + 1])
            _add_branch(out[image], part, size, rows, cols, net, branch, grid, backend)
    for start in range(*rows, SKIP_ROWS):
        stop = min(start + SKIP_ROWS, rows[1])
        skip = upsample_bilinear(feat.lq, feat.frame, size, (start, stop), cols, padding='border')
        out[..., start - rows[0] : stop - rows[0], :].mul_(0.5).add_(skip)


def _add_branch(
    out: Tensor,
    feat: Features,
    size: tuple[int, int],
    rows: tuple[int, int],
    cols: tuple[int, int],
    net: LITBase,
    branch: LITBranch,
    grid: Upsampling | None,
    backend: str,
) -> None:
    """Adds one branch's values to out (3, rows, cols)."""
    frame = feat.frame if grid is None else grid.target
    height, width = feat.z.shape[2:] if grid is None else grid.size
    first_layer = cast(nn.Linear, branch.decoder[0])
    weight: Tensor = first_layer.weight
    offset: Tensor = first_layer.bias
    if branch.cell:
        cell = numbers([2 / n for n in size], offset) * numbers(frame.size, offset)
        weight, offset = weight[:, :-2], offset + weight[:, -2:] @ cell

    def project(start: int, stop: int) -> Maps:
        if grid is None:
            low, high = max(start - 1, 0), min(stop + 1, height)
            maps = branch.project(_conv_rows(net.conv_in, feat.z, low, high), None, backend)
            q, k, v = (cast(Tensor, t)[:, :, start - low : stop - low] for t in maps)
            return q, k, v
        narrow, (first, last) = narrowed(grid, (start, stop), feat.z.shape[2])
        return cast(Maps, branch.project(_conv_rows(net.conv_in, feat.z, first, last), narrow, backend))

    blocks = dense_first_layer(
        project,
        frame,
        (height, width),
        size,
        rows,
        cols,
        weight,
        offset,
        num_heads=branch.num_heads,
        grid_size=branch.grid_size,
        bias=net._bias(),
        backend=backend,
    )
    for y, x, first in blocks:
        part = out[:, y.start - rows[0] : y.stop - rows[0], x.start - cols[0] : x.stop - cols[0]]
        part += _decode(cast(nn.Sequential, branch.decoder[1:]), first).permute(2, 0, 1)


def _decode(layers: nn.Sequential, first: Tensor) -> Tensor:
    """The decoder behind its first layer: (R, S, O) -> (R, S, 3). ``first`` is overwritten."""
    step = DECODER_QUERIES * torch.get_num_threads() if first.device.type == 'cpu' else first.shape[:2].numel()
    parts = []
    for part in first.flatten(0, 1).split(step):
        for layer in layers:
            part = torch.ops.aten.gelu_(part) if isinstance(layer, nn.GELU) else layer(part)
        parts.append(part)
    return torch.cat(parts).view(*first.shape[:2], -1)


def _conv_rows(conv: nn.Module, z: Tensor, start: int, stop: int) -> Tensor:
    """Rows start ... stop - 1 of a 3 x 3 convolution's output, channels last in memory."""
    low = max(start - 1, 0)
    part = z[:, :, low : stop + 1].contiguous(memory_format=torch.channels_last)
    return conv(part)[:, :, start - low : stop - low]
