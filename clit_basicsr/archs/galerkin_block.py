"""The block of SRNO and HIIF: Galerkin attention, linear in the number of queries."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clit_basicsr.archs.precision import at_least_single


class HeadNorm(nn.Module):
    """(t - mean) / (standard deviation + 1e-5) over the channels of a head, unbiased; one affine map for each head."""

    def __init__(self, num_heads: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(fill(num_heads, 1, width)) for fill in (torch.ones, torch.zeros))

    def forward(self, t: Tensor) -> Tensor:
        """(B, H, Q, d) -> the same."""
        centred = t - t.mean(dim=-1, keepdim=True)
        return centred / (t.std(dim=-1, keepdim=True) + 1e-5) * self.weight + self.bias

    @staticmethod
    def spread(t: Tensor) -> Tensor:
        """What centred channels (..., d) are divided by."""
        return torch.linalg.vector_norm(t, dim=-1, keepdim=True).div_((t.shape[-1] - 1) ** 0.5).add_(1e-5)


class LayerNorm(nn.LayerNorm):
    """torch's, over the channels of a head: one affine map for all heads."""

    def __init__(self, num_heads: int, width: int) -> None:
        super().__init__(width)

    @staticmethod
    def spread(t: Tensor) -> Tensor:
        """What centred channels (..., d) are divided by."""
        return torch.linalg.vector_norm(t, dim=-1, keepdim=True).square_().div_(t.shape[-1]).add_(1e-5).sqrt_()


class GalerkinBlock(nn.Module):
    """y = x + o2(GELU(o1(x + q KV))); no softmax, no division by sqrt(d), no positions.

    Args:
        dim: channels C of x.
        num_heads: H; a head has d = C / H channels.
        norm: of keys and values, :class:`HeadNorm` or :class:`LayerNorm`.
    """

    def __init__(self, dim: int, num_heads: int, norm: type[HeadNorm] | type[LayerNorm]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)  # head by head, each q, k, v
        self.k_norm, self.v_norm = norm(num_heads, dim // num_heads), norm(num_heads, dim // num_heads)
        self.out1, self.out2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def products(self, x: Tensor) -> Tensor:
        """Sum of k^T v over the queries x (B, Q, C): (B, H, d, d), in single precision at least."""
        _, k, v = self._heads(x)
        k, v = self.k_norm(k), self.v_norm(v)
        with torch.autocast(x.device.type, enabled=False):  # in half precision the sum overflows
            return at_least_single(k).transpose(2, 3) @ at_least_single(v)

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        """x (B, Q, C) and the mean (B, H, d, d) of :meth:`products` over all queries -> (B, Q, C)."""
        q = self._heads(x)[0]
        attended = (q @ mean.to(q.dtype)).transpose(1, 2).flatten(2)
        return x + self.out2(F.gelu(self.out1(x + attended)))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: (B, H, Q, d) each."""
        heads = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).transpose(1, 2)  # (B, H, Q, 3, d)
        return heads[..., 0, :], heads[..., 1, :], heads[..., 2, :]
