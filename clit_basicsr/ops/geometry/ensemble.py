"""The local ensemble: one answer from each of the four LR pixels around a query, averaged by area."""

from typing import NamedTuple

from torch import Tensor

from clit_basicsr.ops.geometry.coords import Frame, nearest_center, nearest_index, numbers, relative_coord

# Decides to which side a query halfway between two pixels goes: a third of all at x3.
NUDGE = 1e-6


class Neighbor(NamedTuple):
    """One of the pixels that answer a query.

    Attributes:
        coord: (B, Q, 2), a point (y, x) in [-1, 1] to which this pixel is the nearest.
        dx: (B, Q, 2), from the pixel to the query; one pixel is 2, or ``pixel`` of :func:`ensemble_neighbors`.
        weight: (B, Q, 1), its share of the answer; the shares of all neighbours add up to 1.
    """

    coord: Tensor
    dx: Tensor
    weight: Tensor


class AxisNeighbor(NamedTuple):
    """One axis of the pixels on one side of some queries.

    Attributes:
        nearest: (n,), the pixel.
        dx: (n,), from its centre to the query.
    """

    nearest: Tensor
    dx: Tensor


def axis_neighbors(coord: Tensor, n: int, pixel: float = 2) -> tuple[AxisNeighbor, AxisNeighbor]:
    """:func:`ensemble_neighbors` along one axis of n pixels, to the bit: the pixels below and above coord (n_queries,).

    Args:
        pixel: length of a pixel in ``dx``.
    """
    sides = []
    for side in (-1, 1):
        point = (coord + (side / n + NUDGE)).clamp(-1 + 1e-6, 1 - 1e-6)
        sides.append(AxisNeighbor(nearest_index(point, n), (coord - nearest_center(point, n)) * (n * pixel / 2)))
    return sides[0], sides[1]


def opposite_areas(y: tuple[Tensor, Tensor], x: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Shares of the four pixels: (low, low), (low, high), (high, low), (high, high), y first.

    Args:
        y, x: distances to the lower and to the higher pixel along each axis; they broadcast.
    """
    areas = [(dy * dx).abs() + 1e-9 for dy in y for dx in x]
    total = areas[0] + areas[1] + areas[2] + areas[3]
    return [area / total for area in reversed(areas)]


def ensemble_neighbors(coord: Tensor, frame: Frame, ensemble: bool = True, pixel: float = 2) -> list[Neighbor]:
    """The pixels that answer each query: four with the local ensemble, the nearest alone without it.

    Source: LIIF, Learning Continuous Image Representation with Local Implicit Image Function (CVPR 2021), equation (4),
    and its published code: a pixel's share is the area between the query and the pixel diagonally opposite. LTE and LIT
    do the same.

    Args:
        coord: (B, Q, 2), (y, x) in [-1, 1].
        frame: the LR grid.
        pixel: length of a pixel in ``dx``. Shares of queries on the centre of a pixel at the image's edge depend on it,
            as 1e-9 is added to the areas.
    """
    if not ensemble:
        return [Neighbor(coord, relative_coord(coord, frame, 1).squeeze(2), coord.new_ones(()))]
    points, dxs = [], []
    for vy in (-1, 1):
        for vx in (-1, 1):
            shift = numbers((vy / frame.size[0] + NUDGE, vx / frame.size[1] + NUDGE), coord)
            points.append((coord + shift).clamp(-1 + 1e-6, 1 - 1e-6))
            dxs.append(relative_coord(coord, frame, 1, points[-1]).squeeze(2) * (pixel / 2))
    y, x = (dxs[0][..., 0], dxs[2][..., 0]), (dxs[0][..., 1], dxs[1][..., 1])
    shares = opposite_areas(y, x)
    return [Neighbor(p, dx, share.unsqueeze(-1)) for p, dx, share in zip(points, dxs, shares, strict=True)]
