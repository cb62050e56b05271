"""What the benchmark measures, at the paper's size: LIT and CLIT over EDSR-baseline (C = 256, H = 8, G = 7), random
weights.
"""

import time
from typing import NamedTuple

import torch
import torch.nn.functional as F

from clit_basicsr.archs.clit_arch import CLIT, split_scale
from clit_basicsr.archs.precision import in_precision

EDSR_BASELINE = {'type': 'EDSR', 'num_feat': 64, 'num_block': 16, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}

# Millions of multiply-adds per LR pixel and per query, after the rewrites.
ENCODER, FIRST_CONV, QKV_CONVS = 1.218, 0.147, 1.769
FIRST_LAYER, SHARED_LAYER, DECODER, ATTENTION = 3.212, 0.1004, 0.197, 0.0125


class Dense(NamedTuple):
    """A whole picture: ``size`` x ``size`` LR pixels enlarged by ``scale``."""

    name: str
    size: int
    scale: float

    @property
    def floor(self) -> float:
        """Operations (two per multiply-add) that the rewrites leave."""
        pixels, queries = self.size**2, round(self.size * self.scale) ** 2
        total = pixels * (ENCODER + FIRST_CONV)
        product = 1.0
        for factor, _ in split_scale((self.scale, self.scale), 3):
            features = round(self.size * product) ** 2
            shared = features * FIRST_LAYER + queries * SHARED_LAYER
            total += pixels * QKV_CONVS + min(shared, queries * FIRST_LAYER) + queries * (DECODER + ATTENTION)
            product *= factor
        return total * 2e6


class Training(NamedTuple):
    """A training step: ``batch`` patches of 48 x 48 LR pixels, 2304 queries each, the branches' ``scales``."""

    name: str
    batch: int
    scales: tuple[float, ...]

    @property
    def floor(self) -> float:
        pixel = ENCODER + FIRST_CONV + len(self.scales) * QKV_CONVS
        query = len(self.scales) * (FIRST_LAYER + DECODER + ATTENTION)
        return 3 * self.batch * 2304 * (pixel + query) * 2e6  # a backward pass is twice the forward pass


DENSE = [
    Dense('LIT 64x64 x2', 64, 2),
    Dense('LIT 64x64 x2.5', 64, 2.5),
    Dense('LIT 64x64 x3', 64, 3),
    Dense('LIT 64x64 x3.4', 64, 3.4),
    Dense('LIT 64x64 x4', 64, 4),
    Dense('CLIT-2 32x32 x8', 32, 8),
    Dense('CLIT-2 32x32 x12', 32, 12),
    Dense('CLIT-3 24x24 x18', 24, 18),
]
TRAINING = [
    Training('LIT, batch 4, x2.5', 4, (2.5,)),
    Training('CLIT-2, batch 2, x2.5 x2.5', 2, (2.5, 2.5)),
    Training('CLIT-3, batch 2, x3 x3 x1.5', 2, (3, 3, 1.5)),
]


def network() -> CLIT:
    torch.manual_seed(0)
    return CLIT(encoder=EDSR_BASELINE, num_branches=3)


def training_step(net: CLIT, case: Training, side: int = 48, queries: int = 2304, precision: str | None = None):
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


def machine_rate() -> float:
    """Operations per second of a oneDNN 3 x 3 convolution 256 -> 256, the fastest single-precision code at hand."""
    x, weight = torch.randn(1, 256, 64, 64), torch.randn(256, 256, 3, 3)
    best = float('inf')
    with torch.no_grad():
        for _ in range(4):
            began = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            best = min(best, time.perf_counter() - began)
    return 2 * 256 * 256 * 9 * 64 * 64 / best
