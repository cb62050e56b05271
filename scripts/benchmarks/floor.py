"""The arithmetic floor: operations that the exact rewrites leave, counted for the paper's size (C = 256, H = 8, G = 7,
decoder 12546-256-256-256-256-3, EDSR-baseline). The time is theirs at the rate of a oneDNN convolution on this machine.
"""

import math

from cases import QUERIES, SIDE, Dense, Training, Wide

from clit_basicsr.archs.clit_arch import split_scale

CHANNELS, HEADS, GRID = 256, 8, 7
HIDDEN = (256, 256, 256, 256)
FEATURES, BLOCKS = 64, 16
WINDOW = GRID**2

# Multiply-adds per LR pixel.
ENCODER = 9 * (3 * FEATURES + (2 * BLOCKS + 1) * FEATURES**2)
FIRST_CONV = 9 * FEATURES * CHANNELS
QKV_CONVS = 3 * 9 * CHANNELS**2
# Multiply-adds per query. The first layer's products, if made once per pixel for all of its queries, cost each query
# a sum over the positions and heads.
FIRST_LAYER = (WINDOW * CHANNELS + 2) * HIDDEN[0]
SHARED_LAYER = WINDOW * HEADS * HIDDEN[0]
DECODER = sum(a * b for a, b in zip(HIDDEN, (*HIDDEN[1:], 3), strict=True))
ATTENTION = WINDOW * CHANNELS

# Features upsampled bilinearly by an integer factor and convolved 3 x 3 are, within one LR cell, combinations of so
# many vectors whatever the factor: along an axis the two ends of a line, and the first and the last pixel, whose taps
# lie in the neighbouring cells.
RANK = 4**2
# Of them a pixel in the middle of the cell combines the four corners.
CORNERS = 4


def dense_operations(case: Dense | Wide, low_rank: bool = False) -> float:
    """Operations, two per multiply-add, of a picture of LIT or CLIT.

    Args:
        low_rank: also with the rewrite that makes the first layer's products for :data:`RANK` vectors of each LR cell,
            where it takes fewer operations.
    """
    pixels, queries = math.prod(case.size), math.prod(round(n * case.scale) for n in case.size)
    total = float(pixels * FIRST_CONV)
    if isinstance(case, Dense):
        total += pixels * ENCODER
    factor = 1.0
    for branch, _ in split_scale((case.scale, case.scale), 3):
        total += pixels * QKV_CONVS + queries * (DECODER + ATTENTION)
        total += first_layer(case.size, factor, queries, low_rank)
        factor *= branch
    return 2 * total


def first_layer(size: tuple[int, int], factor: float, queries: int, low_rank: bool) -> float:
    """Multiply-adds of the first layer on features of (h, w) upsampled by ``factor``: by the cheapest rewrite."""
    fine, shared = math.prod(round(n * factor) for n in size), queries * SHARED_LAYER
    ways = [queries * FIRST_LAYER, fine * FIRST_LAYER + shared]
    if low_rank and factor > 1 and factor == int(factor):
        ways.append(math.prod(size) * RANK * FIRST_LAYER + fine * CORNERS * SHARED_LAYER + shared)
    return min(ways)


def training_operations(case: Training) -> float:
    """Operations of a step; a backward pass takes twice those of the forward pass."""
    pixel = ENCODER + FIRST_CONV + len(case.scales) * QKV_CONVS
    query = len(case.scales) * (FIRST_LAYER + DECODER + ATTENTION)
    return 2 * 3 * case.batch * (SIDE**2 * pixel + QUERIES * query)


def operations(case: Dense | Wide | Training, low_rank: bool = False) -> float:
    """Of any workload of LIT or CLIT."""
    return training_operations(case) if isinstance(case, Training) else dense_operations(case, low_rank)


def not_counted(case: Dense | Wide | Training) -> tuple[int, int]:
    """GELUs and exponentials of the softmax per query, of all branches: the floor has neither."""
    scales = case.scales if isinstance(case, Training) else split_scale((case.scale, case.scale), 3)
    return len(scales) * sum(HIDDEN), len(scales) * WINDOW * HEADS
