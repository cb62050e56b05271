"""Meta-SR: the filter of every HR pixel is predicted from its position and its size."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.implicit import MAX_QUERIES, TORCH_QUERIES, ImplicitNet, expand_cell
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.archs.pixel_mlp import feature_layer, fewer_pixels, map_products, read_products
from clit_basicsr.ops.decoder import Layers, runs_compiled
from clit_basicsr.ops.geometry.coords import nearest_center
from clit_basicsr.ops.geometry.sampling import unfold_at


@ARCH_REGISTRY.register()
class MetaSR(ImplicitNet):
    """Meta-SR, as the LIIF repository has it: positions are those of the pixels' upper left corners.

    Paper: Meta-SR: A Magnification-Arbitrary Network for Super-Resolution (CVPR 2019).
    Ref git repo: https://github.com/yinboc/liif

    Args:
        encoder (dict): ``type`` and options of an encoder, e.g. ``{type: EDSR, num_feat: 64, num_block: 16}``.
        hidden_dims (list[int]): Widths of the hidden layers of the network that predicts filters. Default: (256,).
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    def __init__(self, encoder: dict, hidden_dims: Sequence[int] = (256,), upscale: float = 4) -> None:
        super().__init__(encoder, upscale)
        self.filter_net = build_mlp(3, hidden_dims, 9 * self.encoder.out_channels * 3)

    @property
    def reach(self) -> int:
        return 2  # the pixel of the corner is at most one away from that of the centre; the filter is 3 x 3

    def prepare_maps(self, feat: Features, scales) -> Tensor | None:
        """What the filters' last layer and the features around each pixel make together.

        A filter is W h + b, W (9 C0, 3, J), and the result z (W h + b) = (z W) h + z b: without gradients the kernel
        makes the 3 J + 3 numbers z W, z b once for each LR pixel, where a query costs 3 J operations, not 27 C0 J.
        """
        return map_products(self._shared_layer(), feat, 3) if runs_compiled(feat.z) else None

    def pays_to_prepare(self, feat: Features, coord: Tensor) -> bool:
        return fewer_pixels(feat, coord, 1)

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        feat = prepared.feat
        cell = expand_cell(cell, coord)
        corner = coord - cell / 2
        point = (corner + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
        inputs = []
        for axis, n in enumerate(feat.frame.size):
            center = nearest_center(point[..., axis], n)
            inputs.append((corner[..., axis] - (center - 1 / n)) * (n / 2))  # 0 ... 1 within the LR pixel
        inputs.append(cell[..., 0] * (feat.frame.size[0] / 2))  # the inverse of the scale
        position = torch.stack(inputs, dim=-1).to(feat.z.dtype)
        answer = self._kernel(prepared) if runs_compiled(feat.z) else partial(self._plain, feat)
        # A filter is large: 27 C0 numbers for every query.
        whole = torch.is_grad_enabled() or coord.device.type != 'cpu' or torch.compiler.is_compiling()
        step = max(1, (MAX_QUERIES if whole else TORCH_QUERIES) // coord.shape[0])
        parts = zip(point.split(step, dim=1), position.split(step, dim=1), strict=True)
        return torch.cat([answer(*part) for part in parts], dim=1)

    def _plain(self, feat: Features, point: Tensor, position: Tensor) -> Tensor:
        """Values (B, Q, 3) from the pixel nearest to each point and the inputs of the filters' network."""
        filters = self.filter_net(position).unflatten(-1, (-1, 3))  # (B, Q, 9 C0, 3)
        return torch.einsum('bqc,bqcd->bqd', unfold_at(feat.z, point, feat.frame, 3), filters)

    def _kernel(self, prepared: Prepared) -> Callable[[Tensor, Tensor], Tensor]:
        """The same from the products of :meth:`prepare_maps`."""
        shared, hidden = self._shared_layer(), self.filter_net[:-1]

        def answer(point: Tensor, position: Tensor) -> Tensor:
            h = hidden(position).unsqueeze(-2)  # (B, Q, 1, J)
            products, index = read_products(shared, prepared.feat, prepared.maps, point, 3)
            both = products[index]  # (B, Q, 3 J + 3)
            return (both[..., :-3].unflatten(-1, (3, -1)) * h).sum(dim=-1) + both[..., -3:]

        return answer

    def _shared_layer(self) -> Layers:
        """(3 J + 3, 9 C0), without a bias."""
        last = cast(nn.Linear, self.filter_net[-1])
        weight = last.weight.unflatten(0, (-1, 3)).permute(1, 2, 0).flatten(0, 1)  # (3 J, 9 C0)
        weight = torch.cat((weight, last.bias.unflatten(0, (-1, 3)).t()))
        return feature_layer(weight, weight.new_zeros(len(weight)), 3)
