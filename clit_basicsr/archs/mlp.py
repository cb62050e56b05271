"""The decoders' multi-layer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def build_mlp(
    in_dim: int, hidden_dims: Sequence[int], out_dim: int = 3, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear layers in_dim -> hidden_dims -> out_dim with the activation between them."""
    dims = [in_dim, *hidden_dims]
    layers: list[nn.Module] = []
    for a, b in pairwise(dims):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers, nn.Linear(dims[-1], out_dim))
