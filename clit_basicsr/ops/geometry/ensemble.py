"""The local ensemble: one answer from each of the four LR pixels around a query, averaged by area."""

from typing import NamedTuple

from torch import Tensor

from clit_basicsr.ops.geometry.coords import Frame, numbers, relative_coord


class Neighbor(NamedTuple):
    """One of the pixels that answer a query.

    Attributes:
        coord: (B, Q, 2), a point (y, x) in [-1, 1] to which this pixel is the nearest.
        dx: (B, Q, 2), from the pixel to the query in units of half a pixel (one pixel is 2).
        weight: (B, Q, 1), its share of the answer; the shares of all neighbours add up to 1.
    """

    coord: Tensor
    dx: Tensor
    weight: Tensor


def ensemble_neighbors(coord: Tensor, frame: Frame, ensemble: bool = True) -> list[Neighbor]:
    """The pixels that answer each query: four with the local ensemble, the nearest alone without it.

    Source: LIIF, Learning Continuous Image Representation with Local Implicit Image Function (CVPR 2021), equation (4),
    and its published code: a pixel's share is the area between the query and the pixel diagonally opposite. LTE and LIT
    do the same.

    Args:
        coord: (B, Q, 2), (y, x) in [-1, 1].
        frame: the LR grid.
    """
    if not ensemble:
        return [Neighbor(coord, relative_coord(coord, frame, 1).squeeze(2), coord.new_ones(()))]
    points, dxs, areas = [], [], []
    for vy in (-1, 1):
        for vx in (-1, 1):
            # The 1e-6 decides to which side a query halfway between two pixels goes: a third of all at x3.
            shift = numbers((vy / frame.size[0] + 1e-6, vx / frame.size[1] + 1e-6), coord)
            point = (coord + shift).clamp(-1 + 1e-6, 1 - 1e-6)
            dx = relative_coord(coord, frame, 1, point).squeeze(2)
            points.append(point)
            dxs.append(dx)
            areas.append((dx[..., 0] * dx[..., 1]).abs() + 1e-9)
    total = areas[0] + areas[1] + areas[2] + areas[3]
    return [Neighbor(p, dx, (a / total).unsqueeze(-1)) for p, dx, a in zip(points, dxs, reversed(areas), strict=True)]
