"""A 3 x 3 convolution over a bilinearly upsampled map in plain torch, without upsampling it.

Convolution and upsampling commute: tap by tap the products are made at the resolution of the map below, then every axis
is interpolated and summed over its three taps by products with narrow matrices.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Pixels of the map below that one interpolation matrix spans: few make it dense, many make it large. A GPU rather
# multiplies by zeros than waits for small products.
BLOCK, GPU_BLOCK = 8, 64

Taps = tuple[Tensor, Tensor]


def _interpolations(taps: Taps, length: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """The interpolation of an axis in blocks: (fine pixels, pixels of the map below, matrix (n, 3 * m), taps slow)."""
    index, weight = taps
    block = BLOCK if index.device.type == 'cpu' else GPU_BLOCK
    step = max(1, -(-block * len(index) // length))
    places = index.cpu()  # all together: reading single numbers from a GPU is slow
    for start in range(0, len(index), step):
        fine = slice(start, min(start + step, len(index)))
        low, high = int(places[fine].min()), int(places[fine].max()) + 1
        matrix = weight.new_zeros(fine.stop - start, 3, high - low)
        matrix.scatter_add_(2, index[fine] - low, weight[fine])
        yield fine, slice(low, high), matrix.flatten(1)


def taps_matrix(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (C, 3 * 3 * O), y tap slow."""
    return weight.permute(1, 2, 3, 0).flatten(1)


def upsampled_conv(z: Tensor, weight: Tensor, bias: Tensor, rows: Taps, cols: Taps) -> Tensor:
    """conv3x3(upsample(z)) on the fine pixels rows x cols."""
    batch, height, width, _ = z.shape
    channels, num_cols = len(weight), len(cols[0])
    out = z.new_empty(batch, len(rows[0]), num_cols, channels)
    matrix = taps_matrix(weight)
    offset = bias.repeat(num_cols)
    across, down = list(_interpolations(cols, width)), list(_interpolations(rows, height))
    for b in range(batch):
        product = torch.mm(z[b].flatten(0, 1), matrix).view(height, width, 3, 3, channels)
        product = product.permute(3, 1, 2, 0, 4).reshape(3, width, -1)  # tx, w, (ty, h, O)
        wide = z.new_empty(3, height, num_cols, channels)
        for fine, coarse, interpolation in across:
            part = torch.mm(interpolation, product[:, coarse].flatten(0, 1))  # (S', ty * h * O)
            wide[:, :, fine] = part.view(-1, 3, height, channels).permute(1, 2, 0, 3)
        for fine, coarse, interpolation in down:
            part = wide[:, coarse].flatten(0, 1).flatten(1)  # (ty * h', S * O)
            torch.addmm(offset, interpolation, part, out=out[b, fine].flatten(1))
    return out


def upsampled_conv_backward(
    grad: Tensor, z: Tensor, weight: Tensor, rows: Taps, cols: Taps
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`upsampled_conv` with respect to z, weight and bias."""
    batch, height, width, channels_in = z.shape
    num_cols, channels = grad.shape[2:]
    matrix = taps_matrix(weight)
    grad_matrix = torch.zeros_like(matrix)
    grad_z = torch.empty_like(z, memory_format=torch.contiguous_format)
    across, down = list(_interpolations(cols, width)), list(_interpolations(rows, height))
    for b in range(batch):
        wide = grad.new_zeros(3, height, num_cols * channels)
        for fine, coarse, interpolation in down:
            wide[:, coarse] += torch.mm(interpolation.t(), grad[b, fine].flatten(1)).unflatten(0, (3, -1))
        wide = wide.view(3, height, num_cols, channels).permute(2, 0, 1, 3).reshape(num_cols, -1)  # S, (ty, h, O)
        product = grad.new_zeros(3, width, wide.shape[1])
        for fine, coarse, interpolation in across:
            product[:, coarse] += torch.mm(interpolation.t(), wide[fine]).unflatten(0, (3, -1))
        product = product.view(3, width, 3, height, channels).permute(3, 1, 2, 0, 4).reshape(height * width, -1)
        torch.mm(product, matrix.t(), out=grad_z[b].flatten(0, 1))
        grad_matrix.addmm_(z[b].flatten(0, 1).t(), product)
    grad_weight = grad_matrix.view(channels_in, 3, 3, channels).permute(3, 0, 1, 2).contiguous()
    return grad_z, grad_weight, grad.sum((0, 1, 2))
