"""What stands between encoder and heat field in the larger versions of Thera: ConvNeXt blocks, or SwinIR's body.

A tail is a module with ``out_channels``, ``reach``, the LR pixels that a feature depends on beyond its own place, and
``alignment``: tiles begin at multiples of it.
"""

from collections.abc import Sequence

import torch
from basicsr.archs.swinir_arch import RSTB, SwinTransformerBlock
from torch import Tensor, nn

from clit_basicsr.archs.encoders.swinir import keep_masks
from clit_basicsr.base.errors import UserError

# Widths of the blocks of Thera Plus, as in the authors' code (appendix D of the paper has 6 and 7).
PLUS_WIDTHS = (64,) * 6 + (96,) * 7 + (128,) * 3
WINDOW = 8


class NoTail(nn.Module):
    """Thera Air."""

    reach, alignment = 0, 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, z: Tensor) -> Tensor:
        return z


class ConvNeXtBlock(nn.Module):
    """y + [depthwise 3 x 3, LayerNorm, d -> 4 d, GELU (tanh), 4 d -> d](y); no layer scale, no drop path."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.act = nn.GELU('tanh')

    def forward(self, z: Tensor) -> Tensor:
        y = self.depthwise(z).permute(0, 2, 3, 1)  # (B, h, w, d)
        return z + self.fc2(self.act(self.fc1(self.norm(y)))).permute(0, 3, 1, 2)


class Widening(nn.Module):
    """LayerNorm over the channels and a 1 x 1 convolution to another width."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.layer_norm, self.fc = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, out_dim)

    def forward(self, z: Tensor) -> Tensor:
        return self.fc(self.layer_norm(z.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class ConvNeXtTail(nn.Module):
    """Thera Plus.

    Args:
        channels: of the encoder.
        widths: of each block; where the width changes, a :class:`Widening` comes first.
    """

    alignment = 1

    def __init__(self, channels: int, widths: Sequence[int] = PLUS_WIDTHS) -> None:
        super().__init__()
        check_counts(widths=widths)
        layers: list[nn.Module] = []
        for before, width in zip((channels, *widths), widths, strict=False):
            layers += ([] if before == width else [Widening(before, width)]) + [ConvNeXtBlock(width)]
        self.layers = nn.Sequential(*layers)
        self.out_channels, self.reach = widths[-1] if widths else channels, len(widths)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class TailBlock(SwinTransformerBlock):
    """The host's block with the tanh approximation of GELU, and with masks that are made where the features are, as
    nothing has to wait for their copies then.
    """

    @classmethod
    def adopt(cls, block: SwinTransformerBlock) -> None:
        """Makes one of a block of the host."""
        block.__class__ = cls
        block.mlp.act = nn.GELU('tanh')

    def calculate_mask(self, x_size: tuple[int, int]) -> Tensor:
        with self.norm1.weight.device:
            return super().calculate_mask(x_size)


class SwinTail(nn.Module):
    """Thera Pro: the body of SwinIR, of the host's own blocks, with the tanh approximation of GELU.

    Args:
        channels: of the encoder; the result has as many.
        embed_dim, depths, num_heads: of the blocks.
        drop_path_rate: of the last block in training; it rises from 0.
    """

    alignment = WINDOW

    def __init__(
        self,
        channels: int,
        embed_dim: int = 180,
        depths: Sequence[int] = (7, 6),
        num_heads: Sequence[int] = (6, 6),
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        check_counts(embed_dim=[embed_dim], depths=depths, num_heads=num_heads)
        if len(depths) != len(num_heads) or any(embed_dim % heads for heads in num_heads):
            raise UserError('tail of Thera: num_heads must have one divisor of embed_dim for each entry of depths.')
        if not 0 <= drop_path_rate < 1:
            raise UserError(f'tail of Thera: drop_path_rate must be at least 0 and below 1; got {drop_path_rate}.')
        rates = [drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        self.conv_first = nn.Conv2d(channels, embed_dim, 3, 1, 1)
        self.norm_first, self.norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.groups = nn.ModuleList(
            RSTB(
                embed_dim,
                # The training's patches; above one window, or the host would not shift the windows.
                input_resolution=(6 * WINDOW, 6 * WINDOW),
                depth=depth,
                num_heads=heads,
                window_size=WINDOW,
                mlp_ratio=2.0,
                drop_path=rates[sum(depths[:i]) : sum(depths[: i + 1])],
                img_size=6 * WINDOW,
                patch_size=1,
            )
            for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True))
        )
        for group in self.groups:
            for block in group.residual_group.blocks:
                TailBlock.adopt(block)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, 1, 1)
        self.conv_last = nn.Conv2d(embed_dim, channels, 3, 1, 1)
        self.act = nn.LeakyReLU(0.01)
        self.register_load_state_dict_pre_hook(keep_masks)
        self.out_channels = channels
        # A block reads a window, plain or shifted; a 3 x 3 convolution closes each group, three stand around them.
        self.reach = sum(depths) * (WINDOW - 1) + len(depths) + 3

    def forward(self, z: Tensor) -> Tensor:
        h, w = z.shape[-2:]
        for axis, n in ((-2, h), (-1, w)):
            z = z.index_select(axis, reflected(-(-n // WINDOW) * WINDOW, n).to(z.device, non_blocking=True))
        r, size = self.conv_first(z), (z.shape[-2], z.shape[-1])
        x = self.norm_first(r.flatten(2).transpose(1, 2))  # (B, h * w, embed_dim)
        for group in self.groups:
            x = group(x, size)
        x = self.norm(x).transpose(1, 2).unflatten(2, size)
        return self.act(self.conv_last(self.conv_after_body(x) + r))[..., :h, :w]


TAILS: dict[str, type[NoTail] | type[ConvNeXtTail] | type[SwinTail]] = {
    'air': NoTail,
    'plus': ConvNeXtTail,
    'pro': SwinTail,
}


def reflected(length: int, n: int) -> Tensor:
    """Which of n pixels stands at places 0 ... length - 1, mirrored without repeating the edge: 0 1 2 | 1 0 1 2 ..."""
    index = torch.arange(length) % max(2 * n - 2, 1)
    return torch.where(index < n, index, 2 * n - 2 - index)


def check_counts(**options: Sequence[int]) -> None:
    """Raises UserError for widths and depths that are not whole numbers of at least 1."""
    for key, numbers in options.items():
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UserError(f'tail of Thera: {key} must be whole numbers of at least 1; got {number!r}.')


def build_tail(variant: str, channels: int, options: dict | None) -> NoTail | ConvNeXtTail | SwinTail:
    """The tail of 'air', 'plus' or 'pro'; ``options``: arguments of its class that are not the paper's.

    Raises:
        UserError: the variant is not known, or an option is not one of its tail.
    """
    if variant not in TAILS:
        raise UserError(f'variant must be one of {", ".join(TAILS)}; got {variant!r}.')
    try:
        return TAILS[variant](channels, **(options or {}))
    except TypeError as error:
        raise UserError(f'tail does not fit Thera {variant}: {error}.') from error
