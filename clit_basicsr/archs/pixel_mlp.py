"""The MLP of LIIF and related networks, whose first layer sees the features around an LR pixel and a position.

The first layer is linear: W (z, p) + b = (W_z z + b) + W_p p. Its products with the features, W_z z + b, are the same
for all queries that a pixel answers. Without gradients the kernel of :mod:`clit_basicsr.ops.decoder` makes them once
for each LR pixel where that is cheaper, and a query costs the positions' few columns and the layers behind.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.implicit import ImplicitNet, in_pieces, relative_cell
from clit_basicsr.ops.decoder import Layers, pack, runs_compiled
from clit_basicsr.ops.geometry.coords import nearest_index
from clit_basicsr.ops.geometry.ensemble import ensemble_neighbors
from clit_basicsr.ops.geometry.sampling import gather_grid, read_pixels, unfold_at

# Pixels whose unfolded features are copied together: bounds the memory.
PIXELS = 1024
# (point, position) -> values, see feature_mlp
Answer = Callable[[Tensor, Tensor], Tensor]


class FeatureMLPNet(ImplicitNet):
    """What LIIF and those built on it share: an MLP over the unfolded features of an LR pixel and a position.

    The values of the pixels around a query, four with ``local_ensemble``, are averaged by area. A network sets
    ``decoder`` and defines ``position``; ``linear_layers`` and ``values`` where the decoder is not a plain MLP.

    Args:
        encoder (dict): ``type`` and options of an encoder.
        local_ensemble (bool): Average the answers of the four LR pixels around a query.
        feat_unfold (bool): A feature is the 3 x 3 features around its pixel.
        upscale (float): The scale at which a plain ``net(lq)`` answers.
    """

    # Whether hidden layers see the position too and, but for the first, add their input: ``residual`` of Layers.
    residual = False
    decoder: nn.Module

    def __init__(self, encoder: dict, local_ensemble: bool, feat_unfold: bool, upscale: float) -> None:
        super().__init__(encoder, upscale)
        self.local_ensemble = local_ensemble
        self.grid_size = 3 if feat_unfold else 1

    @property
    def feature_dim(self) -> int:
        """Numbers of an unfolded feature, C0 * G * G."""
        return self.encoder.out_channels * self.grid_size**2

    @property
    def reach(self) -> int:
        return 2  # the neighbour of the ensemble, and the neighbour that unfolding adds

    def linear_layers(self) -> list[nn.Module]:
        """The decoder's linear layers in order; the first sees unfolded features and the position."""
        return list(cast(nn.Sequential, self.decoder))[::2]

    def position(self, dx: Tensor, size: Tensor) -> Tensor:
        """What the decoder sees beside the feature: (B, Q, P).

        Args:
            dx: (B, Q, 2), from the LR pixel's centre to the query, in units of half an LR pixel.
            size: (B, Q, 2), the HR pixel's size in the same units.
        """
        raise NotImplementedError

    def values(self, z: Tensor, position: Tensor) -> Tensor:
        """The decoder's values (B, Q, 3) in plain torch."""
        return self.decoder(torch.cat((z, position), dim=-1))

    def prepare_maps(self, feat: Features, scales) -> Tensor | None:
        return first_products(self.linear_layers()[0], feat, self.grid_size)

    def pays_to_prepare(self, feat: Features, coord: Tensor) -> bool:
        return fewer_pixels(feat, coord, 4 if self.local_ensemble else 1)

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        feat = prepared.feat
        mlp = feature_mlp(self.linear_layers(), feat, prepared.maps, self.grid_size, self.values, self.residual)

        def answer(coord: Tensor, cell: Tensor) -> Tensor:
            size = relative_cell(cell, coord, feat.frame)
            out = torch.zeros_like(coord[..., :1])
            for point, dx, weight in ensemble_neighbors(coord, feat.frame, self.local_ensemble):
                out = out + weight * mlp(point, self.position(dx, size))
            return out

        return in_pieces(answer, coord, cell, feat)


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
