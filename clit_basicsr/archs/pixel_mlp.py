"""The MLP of LIIF and its kin, whose first layer sees the features around an LR pixel and a position.

The first layer is linear: W (z, p) + b = (W_z z + b) + W_p p. Its products with the features, W_z z + b, are the same
for all queries that a pixel answers. Without gradients the kernel of :mod:`clit_basicsr.ops.decoder` makes them once
for each LR pixel where that is cheaper, and a query costs the positions' few columns and the layers behind.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clit_basicsr.archs.features import Features
from clit_basicsr.ops.decoder import Layers, pack, runs_compiled
from clit_basicsr.ops.geometry.coords import nearest_index
from clit_basicsr.ops.geometry.sampling import gather_grid, read_pixels, unfold_at

# Pixels whose unfolded features are copied together: bounds the memory.
PIXELS = 1024
# (point, position) -> values, see feature_mlp
Answer = Callable[[Tensor, Tensor], Tensor]


def feature_layer(weight: Tensor, bias: Tensor, grid_size: int) -> Layers:
    """A linear layer of unfolded features, (O, C * G * G) and (O,), for rows whose positions are slow and whose
    channels are fast, as :func:`~clit_basicsr.ops.geometry.sampling.gather_grid` reads them.
    """
    return pack([weight.unflatten(1, (-1, grid_size**2)).transpose(1, 2).flatten(1)], [bias])


def map_products(layer: Layers, feat: Features, grid_size: int) -> Tensor:
    """The products of ``layer`` with the features around each pixel of the window, (B * h * w, O)."""
    (batch, _, h, w), r = feat.z.shape, grid_size // 2
    padded = F.pad(feat.z, (r, r, r, r)).contiguous(memory_format=torch.channels_last)
    offset = torch.arange(grid_size, device=padded.device)
    out = []
    for b in range(batch):
        for pixels in torch.arange(h * w, device=padded.device).split(PIXELS):
            y = (pixels // w).view(1, -1, 1, 1) + offset.view(-1, 1)
            x = (pixels % w).view(1, -1, 1, 1) + offset
            out.append(layer(read_pixels(padded[b : b + 1], y, x).flatten(2).squeeze(0)))
    return torch.cat(out)


def query_products(layer: Layers, feat: Features, point: Tensor, grid_size: int) -> Tensor:
    """The same products, bit for bit, for the pixels nearest to points (B, Q, 2): (B * Q, O)."""
    return layer(gather_grid(feat.z, point, feat.frame, grid_size).flatten(2)).flatten(0, 1)


def map_index(feat: Features, point: Tensor) -> Tensor:
    """Which row of :func:`map_products` belongs to the pixel nearest to each point (B, Q, 2): (B, Q)."""
    h, w = feat.z.shape[-2:]
    y, x = (nearest_index(point[..., axis], n) - feat.frame.origin[axis] for axis, n in enumerate(feat.frame.size))
    return (torch.arange(len(point), device=point.device).unsqueeze(1) * h + y) * w + x


def read_products(layer: Layers, feat: Features, maps: Tensor | None, point: Tensor, grid_size: int):
    """Rows of products and which of them belongs to each point: (M, O), (B, Q). maps: from :func:`map_products`."""
    if maps is not None:
        return maps, map_index(feat, point)
    products = query_products(layer, feat, point, grid_size)
    return products, torch.arange(len(products), device=point.device).view(point.shape[:2])


def fewer_pixels(feat: Features, coord: Tensor, neighbors: int) -> bool:
    """Whether the window has fewer pixels than are read: products for each pixel cost less than for each query."""
    return feat.z.shape[2] * feat.z.shape[3] <= neighbors * coord.shape[1]


def first_products(first: nn.Module, feat: Features, grid_size: int) -> Tensor | None:
    """``maps`` of :func:`feature_mlp` from its first layer; None where plain torch computes."""
    return map_products(_feature_part(first, feat, grid_size), feat, grid_size) if runs_compiled(feat.z) else None


def feature_mlp(
    layers: Sequence[nn.Module],
    feat: Features,
    maps: Tensor | None,
    grid_size: int,
    plain: Callable[..., Tensor],
    residual: bool = False,
) -> Answer:
    """The fastest function that computes an MLP over features and positions.

    Args:
        layers: the linear layers, ReLU between them; the first sees C * G * G unfolded features and the position.
        maps: from :func:`first_products`; None: the products are made for each query.
        plain: the module, (unfolded features, position) -> values, which computes where the kernel does not.
        residual: see :class:`clit_basicsr.ops.decoder.Layers`.

    Returns:
        A function of point (B, Q, 2), whose nearest pixel answers, and position (B, Q, P): values (B, Q, 3).
    """
    if not runs_compiled(feat.z):
        return lambda point, position: plain(unfold_at(feat.z, point, feat.frame, grid_size), position)
    linear = [cast(nn.Linear, layer) for layer in layers]
    features = feat.z.shape[1] * grid_size**2
    rest = pack(
        [linear[0].weight[:, features:], *(layer.weight for layer in linear[1:])],
        [None, *(layer.bias for layer in linear[1:])],
        residual=residual,
    )
    first = _feature_part(linear[0], feat, grid_size) if maps is None else rest

    def answer(point: Tensor, position: Tensor) -> Tensor:
        return rest(position.to(feat.z.dtype), *read_products(first, feat, maps, point, grid_size))

    return answer


def _feature_part(first: nn.Module, feat: Features, grid_size: int) -> Layers:
    layer = cast(nn.Linear, first)
    return feature_layer(layer.weight[:, : feat.z.shape[1] * grid_size**2], layer.bias, grid_size)
