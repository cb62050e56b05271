"""One axis of the queries: all that the fast paths know of a dense grid is a small table per HR row and column."""

from typing import NamedTuple

import torch
from torch import Tensor

from clit_basicsr.ops.attention.reference import PositionalBias
from clit_basicsr.ops.geometry.coords import Frame, nearest_index, pixel_centers, relative_axis
from clit_basicsr.ops.geometry.sampling import bilinear_taps, sampling_position


class Axis(NamedTuple):
    """n queries along one axis of a window of a feature map.

    Attributes:
        nearest: (n,), pixel of the window whose centre is nearest; ascending. Always on the CPU, as it says how to cut
            up the work.
        taps: (n, 2), the two pixels of the window on either side of each query.
        weights: (n, 2), their bilinear weights; 0 outside the image.
        bias: (n, G, H), the axis' share of the positional bias; not in half precision.
    """

    nearest: Tensor
    taps: Tensor
    weights: Tensor
    bias: Tensor


def axis_bias(distance: Tensor, params: PositionalBias, axis: int) -> Tensor:
    """One axis' share of the positional bias: gamma treats y and x apart and FC is linear, so B(i, j) = By(i) + Bx(j).

    Args:
        distance: (..., G), the coordinates dx of the local grid along the axis.
        axis: 0 for y, which also takes the layer's bias, or 1 for x.

    Returns:
        Tensor: (..., G, H), in single precision where that is the type of the distance, under autocast too: half
            precision would change a logit by up to 0.04 before the softmax.
    """
    with torch.autocast(distance.device.type, enabled=False):
        angle = distance.unsqueeze(-1) * params.freqs  # (..., G, F)
        sin_y, sin_x, cos_y, cos_x = params.weight.to(angle.dtype).chunk(4, dim=1)  # (H, F) each
        sin, cos = (sin_y, cos_y) if axis == 0 else (sin_x, cos_x)
        out = angle.sin() @ sin.t() + angle.cos() @ cos.t()
        return out + params.bias.to(out.dtype) if axis == 0 else out


def make_axis(
    axis: int,
    frame: Frame,
    length: int,
    n_hr: int,
    bounds: tuple[int, int],
    grid_size: int,
    num_heads: int,
    bias: PositionalBias | None,
    like: Tensor,
) -> Axis:
    """The HR pixels bounds[0] ... bounds[1] - 1 of an axis of n_hr pixels, over a window of ``length`` feature pixels.

    Args:
        axis: 0 for y, 1 for x.
        frame: the window's place in the feature grid.
        like: gives the other tables' device, and their dtype but for the bias.
    """
    # Made on the CPU, whatever the device: so little costs a GPU more launches than work, and nobody waits for it.
    coord = pixel_centers(n_hr, *bounds)
    (low, w0), (high, w1) = bilinear_taps(coord, frame, axis, length, 'zeros')
    nearest = nearest_index(coord, frame.size[axis]) - frame.origin[axis]
    if bias is None:
        table = like.new_zeros(len(coord), grid_size, num_heads)
    else:
        distance = relative_axis(coord, frame, grid_size, axis).to(like.device, non_blocking=True)
        single = like.dtype if like.dtype == torch.float64 else torch.float32
        table = axis_bias(distance, bias, axis).to(single)
    return Axis(nearest, *_moved_to(like, torch.stack((low, high), dim=1), torch.stack((w0, w1), dim=1)), table)


def _moved_to(like: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Taps on the device of ``like``, the weights in its dtype."""
    return index.to(like.device, non_blocking=True), weight.to(like, non_blocking=True)


def convolution_taps(
    axis: int, frame: Frame, length: int, n_fine: int, bounds: tuple[int, int], padding: str, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Where a 3-tap convolution over an upsampled axis reads the map below: (index, weight), each (n, 3, 2).

    Fine pixel i = bounds[0] ... bounds[1] - 1, convolution tap t reads the fine pixel i + t - 1 (0 outside the n_fine
    pixels), which is a mean of two pixels of the map.

    Args:
        axis: 0 for y, 1 for x.
        frame, length: the window of the map below and its length along the axis.
        like: gives the tables' device and dtype.
    """
    fine = torch.arange(bounds[0], bounds[1]).unsqueeze(1) + torch.arange(-1, 2)
    return _moved_to(like, *upsampling_taps(fine, axis, frame, length, n_fine, padding))


def affine_runs(axis: int, frame: Frame, n_fine: int, bounds: tuple[int, int], padding: str) -> Tensor:
    """Which pixels of an upsampled axis are a run, on which a 3-tap convolution of the upsampled map is affine.

    Between two neighbouring pixels of the map below, the upsampled map is affine in the fine pixel. So is the
    convolution, as long as each of its taps stays between the same two pixels from one fine pixel to the next: with s
    fine pixels to one below, on s - 2 of s.

    Args:
        axis, frame, n_fine, bounds, padding: see :func:`convolution_taps`.

    Returns:
        Tensor: (n,), int64: neighbours with equal numbers are of one run.
    """
    taps = torch.arange(bounds[0], bounds[1]).unsqueeze(1) + torch.arange(-1, 2)
    position = sampling_position(taps.to(torch.float32) * (2 / n_fine) + (-1 + 1 / n_fine), frame.size[axis])
    piece = position.floor().long()
    if padding == 'border':  # constant before the first and behind the last pixel
        piece = piece.clamp(-1, frame.size[axis] - 1)
    piece[(taps < 0) | (taps >= n_fine)] = -2  # zero padding of the convolution
    changes = (piece[1:] != piece[:-1]).any(dim=1)
    return torch.cat((changes.new_zeros(1), changes)).cumsum(0)


def upsampling_taps(
    fine: Tensor, axis: int, frame: Frame, length: int, n_fine: int, padding: str
) -> tuple[Tensor, Tensor]:
    """Where pixels of an upsampled axis read the map below: fine (...) -> (index, weight), each (..., 2).

    Args:
        fine: pixels of the fine grid of ``n_fine``; those outside it get weight 0.
        axis, frame, length, padding: see :func:`convolution_taps`.
    """
    coord = fine.to(torch.float32) * (2 / n_fine) + (-1 + 1 / n_fine)
    (low, w0), (high, w1) = bilinear_taps(coord, frame, axis, length, padding)
    weight = torch.stack((w0, w1), dim=-1) * ((fine >= 0) & (fine < n_fine)).unsqueeze(-1)
    return torch.stack((low, high), dim=-1), weight
