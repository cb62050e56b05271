"""CLIT, the cascade: one model for every scale from 1 to 30 and beyond."""

import math
from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from clit_basicsr.archs.features import Features
from clit_basicsr.archs.lit_arch import LITBase
from clit_basicsr.archs.lit_branch import HeadSpec
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.coords import Frame
from clit_basicsr.ops.upsampled import Upsampling

# Scales of one branch, (y, x).
Factors = tuple[tuple[float, float], ...]


def split_scale(scale: tuple[float, float], num_branches: int, largest: float = 4) -> Factors:
    """Splits an enlargement into the branches' factors: 4, 4, ..., remainder.

    The larger axis decides the number of branches; each axis takes min(4, remainder), at least 1. If more branches
    would be needed than there are, the last one takes the whole remainder.

    Args:
        scale: (y, x).

    Returns:
        tuple: one (y, x) pair for each active branch.
    """
    factors = []
    rest = scale
    for branch in range(num_branches):
        last = branch == num_branches - 1 or max(rest) <= largest
        factor = tuple(max(r if last else min(r, largest), 1.0) for r in rest)
        factors.append((factor[0], factor[1]))
        if last:
            break
        rest = (rest[0] / factor[0], rest[1] / factor[1])
    return tuple(factors)


def parse_factors(scales) -> Factors:
    """The branches' factors as (y, x) pairs, from numbers, pairs, or a tensor (n,), (n, 2), (B, n, 2)."""
    if isinstance(scales, Tensor):
        scales = (scales[0] if scales.dim() == 3 else scales).tolist()
    pairs = tuple((float(s), float(s)) if isinstance(s, (int, float)) else (float(s[0]), float(s[1])) for s in scales)
    if not pairs or not all(math.isfinite(v) and v > 0 for pair in pairs for v in pair):
        raise UserError(f'scales must hold a positive factor for each active branch; got {scales}.')
    return pairs


@ARCH_REGISTRY.register()
class CLIT(LITBase):
    """Cascaded Local Implicit Transformer: branches on ever finer features, each correcting the one before.

    Paper: Cascaded Local Implicit Transformer for Arbitrary-Scale Super-Resolution (CVPR 2023), equations (8) and (9).

    Args:
        encoder (dict): ``type`` and options of a network of the host, e.g. ``{type: EDSR, num_block: 16}``.
        num_branches (int): Number N of branches. Default: 3.
        dim, num_heads, grid_size, hidden_dims, position_encoding, local_attention, cell, aggregation, upscale: See
            :class:`clit_basicsr.archs.lit_arch.LIT`.
        upsampling_padding (str): 'zeros' or 'border': what the upsampling of features sees outside the image. Default:
            'zeros', the authors' code.
        residual_weight (float): Weight of the sum of the earlier branches in equation (9), in (0, 1]. With 1, a new
            branch whose values are 0 changes nothing (a stage with ``init: zero``). Default: 0.75, the paper's.
    """

    cascaded = True
    trained_branches: Tensor

    def __init__(
        self,
        encoder: dict,
        num_branches: int = 3,
        dim: int = 256,
        num_heads: int = 8,
        grid_size: int = 7,
        hidden_dims: Sequence[int] = (256, 256, 256, 256),
        position_encoding: str | dict | None = 'paper',
        local_attention: bool = True,
        cell: bool = True,
        aggregation: str = 'flatten',
        upsampling_padding: str = 'zeros',
        residual_weight: float = 0.75,
        upscale: float = 4,
    ) -> None:
        spec = HeadSpec(
            dim=dim,
            num_heads=num_heads,
            grid_size=grid_size,
            hidden_dims=hidden_dims,
            position_encoding=position_encoding,
            local_attention=local_attention,
            cell=cell,
            aggregation=aggregation,
        )
        super().__init__(encoder, spec, num_branches, upscale)
        if upsampling_padding not in ('zeros', 'border'):
            raise UserError(f"upsampling_padding must be 'zeros' or 'border'; got {upsampling_padding!r}.")
        if not 0 < residual_weight <= 1:
            raise UserError(f'residual_weight must be above 0 and at most 1; got {residual_weight}.')
        self.upsampling_padding, self.residual_weight = upsampling_padding, residual_weight
        if num_branches > 1:
            # Saved with the weights: a checkpoint from an early stage of cumulative training must not answer with
            # branches that have not been trained yet. A network of one branch has no such buffer: its keys are those of
            # a LIT.
            self.register_buffer('trained_branches', torch.tensor(num_branches))
        self.register_load_state_dict_pre_hook(_accept_fewer_branches)

    @property
    def num_trained_branches(self) -> int:
        return int(self.trained_branches) if len(self.branches) > 1 else 1

    def plan_scales(self, scale: tuple[float, float]) -> Factors:
        return split_scale(scale, self.num_trained_branches)

    def _grids(self, feat: Features, scales) -> list[Upsampling | None]:
        factors = parse_factors(scales)
        if len(factors) > len(self.branches):
            raise ValueError(f'{len(factors)} scale factors for a network of {len(self.branches)} branches')
        grids: list[Upsampling | None] = [None]
        product = (1.0, 1.0)
        for factor in factors[:-1]:
            product = (product[0] * factor[0], product[1] * factor[1])
            grids.append(self._upsampling(feat, product))
        return grids

    def _upsampling(self, feat: Features, product: tuple[float, float]) -> Upsampling:
        """Equation (8): the window of the grid finer by s_1 ... s_(i-1) at whose pixel centres Z_1 is read."""
        size, bounds = [], []
        for axis in (0, 1):
            n, start, length = feat.frame.size[axis], feat.frame.origin[axis], feat.z.shape[2 + axis]
            fine = round(n * product[axis])
            size.append(fine)
            # Where the window ends inside the image, its last pixel has no neighbour to interpolate towards.
            first = 0 if start == 0 else math.ceil((start + 0.5) * fine / n)
            stop = fine if start + length >= n else math.floor((start + length - 0.5) * fine / n)
            bounds.append((first, stop))
        target = Frame((size[0], size[1]), (bounds[0][0], bounds[1][0]))
        window = (bounds[0][1] - bounds[0][0], bounds[1][1] - bounds[1][0])
        return Upsampling(feat.frame, target, window, self.upsampling_padding)


def _accept_fewer_branches(net: CLIT, state_dict, prefix, *_) -> None:
    """Lets a checkpoint of fewer branches (LIT, a smaller CLIT) load: the branches that it lacks keep their values."""
    loaded = {
        key.removeprefix(f'{prefix}branches.').split('.')[0]
        for key in state_dict
        if key.startswith(f'{prefix}branches.')
    }
    count = len(loaded)
    if 0 < count <= len(net.branches) and len(net.branches) > 1:
        for key, value in net.branches.state_dict(prefix=f'{prefix}branches.').items():
            if int(key.removeprefix(f'{prefix}branches.').split('.')[0]) >= count:
                state_dict[key] = value
        state_dict.setdefault(f'{prefix}trained_branches', torch.tensor(count))
