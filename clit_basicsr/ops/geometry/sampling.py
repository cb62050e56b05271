"""How a feature map is read: at pixels, between them, and on local grids."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.ops.geometry.coords import Frame, exact, nearest_index, pixel_centers


def sampling_position(coord: Tensor, n: int) -> Tensor:
    """Position of coord on the pixel axis of a grid of n: 0 is the first centre, n - 1 the last.

    One fused multiply-add, as in torch's vectorised ``grid_sample``: unfused, the position is off by 1e-4 at n = 200.
    """
    return (exact(coord + 1) * (n / 2) - 0.5).to(coord)


def read_pixels(feat: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Reads a map (B, C, h, w) at integer pixels y, x (B, ...), which broadcast -> (B, ..., C).

    Nothing is copied where the map is channels last in memory.
    """
    height, width = feat.shape[-2:]
    batch = torch.arange(feat.shape[0], device=feat.device).view(-1, *[1] * (y.dim() - 1))
    index = (batch * height + y) * width + x
    # An embedding reads rows and adds into rows on the way back: deterministic and fast, which indexing is not.
    return F.embedding(index, feat.flatten(2).transpose(1, 2).flatten(0, 1))


def bilinear_taps(coord: Tensor, frame: Frame, axis: int, length: int, padding: str) -> list[tuple[Tensor, Tensor]]:
    """The two pixels on either side of each coordinate along one axis, as (index into the window, weight) pairs."""
    n, start = frame.size[axis], frame.origin[axis]
    position = sampling_position(coord, n)
    if padding == 'border':
        position = position.clamp(0, n - 1)
    low = position.floor()
    pairs = []
    for index, weight in ((low.long(), low + 1 - position), (low.long() + 1, position - low)):
        weight = weight * ((index >= 0) & (index < n))
        # Only taps of weight 0 lie outside the window; the clamp keeps their read legal.
        pairs.append(((index - start).clamp(0, length - 1), weight))
    return pairs


def sample_bilinear(feat: Tensor, coord: Tensor, frame: Frame, padding: str = 'zeros') -> Tensor:
    """Reads a map between its pixels.

    Args:
        feat: (B, C, h, w), the window of the grid that ``frame`` describes; it must hold every pixel that is read.
        coord: (B, Q, 2), (y, x) in [-1, 1].
        padding: 'zeros': taps outside the grid count as 0 (weights are not renormalised); 'border': they repeat the
            edge.

    Returns:
        Tensor: (B, Q, C).
    """
    rows = bilinear_taps(coord[..., 0], frame, 0, feat.shape[2], padding)
    cols = bilinear_taps(coord[..., 1], frame, 1, feat.shape[3], padding)
    out = torch.zeros((), dtype=feat.dtype, device=feat.device)
    for y, wy in rows:
        for x, wx in cols:
            out = out + (wy * wx).unsqueeze(-1).to(feat.dtype) * read_pixels(feat, y, x)
    return out


def upsample_bilinear(
    feat: Tensor, frame: Frame, size: tuple[int, int], rows=(0, None), cols=(0, None), padding: str = 'zeros'
) -> Tensor:
    """Reads a map at the pixel centres rows x cols of a finer grid: :func:`sample_bilinear`, one axis at a time.

    Args:
        feat: (B, C, h, w), the window of the grid that ``frame`` describes.

    Returns:
        Tensor: (B, C, num_rows, num_cols).
    """
    for axis, bounds in ((0, rows), (1, cols)):
        centers = pixel_centers(size[axis], *bounds, device=feat.device, dtype=torch.float32)
        out = torch.zeros((), dtype=feat.dtype, device=feat.device)
        for index, weight in bilinear_taps(centers, frame, axis, feat.shape[2 + axis], padding):
            shape = (-1, 1) if axis == 0 else (-1,)
            out = out + weight.to(feat.dtype).view(shape) * feat.index_select(2 + axis, index)
        feat = out
    return feat


def gather_grid(feat: Tensor, coord: Tensor, frame: Frame, grid_size: int) -> Tensor:
    """Reads the local grid around the pixel nearest to each query; pixels outside the image read as 0.

    Args:
        feat: (B, C, h, w), the window of the grid that ``frame`` describes; it must hold every pixel of the local
            grids.
        coord: (B, Q, 2), (y, x) in [-1, 1].
        grid_size: G, odd: side of the local grid in pixels.

    Returns:
        Tensor: (B, Q, G * G, C), y slow and x fast.
    """
    r = grid_size // 2
    padded = F.pad(feat, (r, r, r, r)) if r else feat
    offset = torch.arange(grid_size, device=feat.device)
    y = nearest_index(coord[..., 0], frame.size[0]).unsqueeze(-1) + offset - frame.origin[0]  # (B, Q, G)
    x = nearest_index(coord[..., 1], frame.size[1]).unsqueeze(-1) + offset - frame.origin[1]
    return read_pixels(padded, y.unsqueeze(-1), x.unsqueeze(-2)).flatten(2, 3)


def unfold_at(feat: Tensor, coord: Tensor, frame: Frame, grid_size: int) -> Tensor:
    """:func:`gather_grid` with the positions in the order of torch's ``unfold``: channel slow, position fast.

    Returns:
        Tensor: (B, Q, C * G * G).
    """
    return gather_grid(feat, coord, frame, grid_size).transpose(2, 3).flatten(2)
