"""What the benchmarks run, at the paper's size: LIT and CLIT (C = 256, H = 8, G = 7), their peers, EDSR-baseline,
random weights. Only the package's public interface is used, so that an older checkout runs the same workloads.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clit_basicsr import archs
from clit_basicsr.archs import CLIT, LIIF, LTE
from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.archs.precision import in_precision
from clit_basicsr.pictures.memory import plan_tiles

EDSR_BASELINE = {'type': 'EDSR', 'num_feat': 64, 'num_block': 16, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
# Of a training patch: its side in LR pixels, and its queries.
SIDE, QUERIES = 48, 2304


class Dense(NamedTuple):
    """A whole picture, encoder included.

    Attributes:
        system: what answers: LIT, CLIT-2 and CLIT-3 are the branches that one CLIT uses at that scale; LIIF, LTE.
        size: (h, w) in LR pixels.
    """

    system: str
    size: tuple[int, int]
    scale: float

    @property
    def name(self) -> str:
        return f'{self.system} {describe(self.size, self.scale)}'


class Wide(NamedTuple):
    """A picture of LIT from given features (h, w): without the encoder, whole or in the command's tiles."""

    size: tuple[int, int]
    scale: float
    tiled: bool

    @property
    def name(self) -> str:
        return f'wide {describe(self.size, self.scale)}, {"tiles" if self.tiled else "untiled"}'


class Training(NamedTuple):
    """A training step: ``batch`` patches of 48 x 48 LR pixels, 2304 queries each, the branches' ``scales``."""

    name: str
    batch: int
    scales: tuple[float, ...]


def describe(size: tuple[int, int], scale: float) -> str:
    """Width x height and the scale."""
    return f'{size[1]}x{size[0]} x{scale:g}'


DENSE = [
    Dense('LIT', (48, 48), 1.3),
    *(Dense('LIT', (64, 64), scale) for scale in (2, 2.5, 3, 3.4, 4)),
    Dense('CLIT-2', (32, 32), 8),
    Dense('CLIT-2', (32, 32), 12),
    Dense('CLIT-3', (24, 24), 18),
    Dense('CLIT-3', (16, 16), 30),
]
# Each picture answered by our own network, LIIF and LTE.
PEERS = [
    Dense(system, (side, side), scale)
    for own, side, scale in (
        ('LIT', 48, 2),
        ('LIT', 48, 3),
        ('LIT', 48, 4),
        ('CLIT-2', 48, 12),
        ('CLIT-3', 24, 18),
        ('CLIT-3', 16, 30),
    )
    for system in (own, 'LIIF', 'LTE')
]
# One picture by every decoder.
DECODERS = [
    Dense(system, (64, 64), scale)
    for scale in (2, 4)
    for system in ('LIT', 'LIIF', 'LTE', 'SRNO', 'HIIF', 'Thera air', 'Thera plus')
]
WIDE = [Wide(size, 2, tiled) for size in ((96, 1020), (339, 510), (64, 64)) for tiled in (False, True)]
TRAINING = [
    Training('LIT, batch 4, x2.5', 4, (2.5,)),
    Training('CLIT-2, batch 2, x2.5 x2.5', 2, (2.5, 2.5)),
    Training('CLIT-3, batch 2, x3 x3 x1.5', 2, (3, 3, 1.5)),
]


class GivenFeatures(nn.Module):
    """In place of an encoder: features at hand. What is measured with it is the rest of the network."""

    alignment, feat_scale = 1, 1.0

    def __init__(self, encoder: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.out_channels, self.reach = encoder.out_channels, encoder.reach
        self.features = torch.rand(1, self.out_channels, *size, generator=torch.Generator().manual_seed(1))

    def padded_size(self, h: int, w: int) -> tuple[int, int]:
        return h, w

    def forward(self, x: Tensor) -> Tensor:
        return self.features[..., : x.shape[2], : x.shape[3]]


def network(system: str = 'CLIT-3') -> ImplicitNet:
    """The network that answers for a ``system`` of :class:`Dense`."""
    torch.manual_seed(0)
    peers = {'LIIF': LIIF, 'LTE': LTE}
    if system in peers:
        return peers[system](encoder=EDSR_BASELINE)
    if system.startswith('Thera'):
        return archs.Thera(encoder=EDSR_BASELINE, variant=system.partition(' ')[2])
    if system in ('SRNO', 'HIIF'):  # which an older checkout lacks
        return getattr(archs, system)(encoder=EDSR_BASELINE)
    return CLIT(encoder=EDSR_BASELINE, num_branches=3)


def dense_call(net: ImplicitNet, case: Dense) -> Callable[[], Tensor]:
    """A function that makes the picture."""
    return partial(net.eval().upscale, picture(case.size), scale=case.scale)


def wide_call(net: ImplicitNet, case: Wide) -> Callable[[], Tensor]:
    """A function that makes the picture; the network loses its encoder."""
    lq, tile = picture(case.size), None
    if case.tiled:
        tiles = plan_tiles(net, case.size, (case.scale, case.scale))
        tile = {'tile_size': tiles.size, 'tile_pad': max(tiles.pad, net.reach)}  # as ``enlarge`` hands them on
    net.encoder = GivenFeatures(net.encoder, case.size)
    return partial(net.eval().upscale, lq, scale=case.scale, tile=tile)


def picture(size: tuple[int, int]) -> Tensor:
    """(1, 3, h, w), noise in [0, 1]."""
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


def training_step(
    net: ImplicitNet, case: Training, side: int = SIDE, queries: int = QUERIES, precision: str | None = None
) -> Callable[[], None]:
    """A function that makes one step's forward and backward pass where the network is, in a precision."""
    device, gen = next(net.parameters()).device, torch.Generator().manual_seed(0)
    size = round(side * torch.tensor(case.scales, dtype=torch.float64).prod().item())
    lq, gt = (torch.rand(case.batch, *shape, generator=gen).to(device) for shape in ((3, side, side), (queries, 3)))
    pixel = torch.randint(0, size, (case.batch, queries, 2), generator=gen).to(device)
    coord, cell = -1 + 1 / size + 2 / size * pixel.float(), torch.full((case.batch, 2), 2 / size, device=device)

    def step() -> None:
        net.zero_grad(set_to_none=True)
        with in_precision(precision, device):
            out = net(lq, coord, cell, case.scales)
            with torch.autocast(device.type, enabled=False):
                F.l1_loss(out.float(), gt).backward()

    return step
