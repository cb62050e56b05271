"""What every encoder has beside the host's layers: the normalisation of its input and the scale of its features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Trunk(nn.Module):
    """Mixed into a network of the host: its layers without the upsampler, its own option and parameter names.

    Input (B, 3, h, w), RGB in [0, 1]; output (B, out_channels, h, w).

    Attributes:
        host: the host's class.
        out_channels: C0.
        input_mean, input_range: the input is normalised by (x - mean) * range. Buffers, saved with the weights: a trunk
            that was trained at range 255 must never be run at another.
        feat_scale: a factor for the features, which the network applies: features of a trunk at range 255 are some 130
            times larger than those at range 2 and would saturate the head's softmax from the first step.
        frozen: the trunk keeps its weights during training.
        alignment: tiles have to begin and end at multiples of this many pixels to get the features of the whole image.
    """

    host: type[nn.Module]
    out_channels: int
    input_mean: Tensor
    input_range: Tensor
    feat_scale: Tensor
    frozen = False
    alignment = 1

    def set_up(self, removed: Sequence[str], img_range: float, rgb_mean: Sequence[float]) -> None:
        """Removes the layers behind the trunk, and turns the host's attributes for the normalisation into buffers."""
        for name in removed:
            delattr(self, name)
        for name in ('mean', 'img_range'):
            self.__dict__.pop(name, None)
        self.register_buffer('input_mean', torch.zeros(1, 3, 1, 1))
        self.register_buffer('input_range', torch.ones(()))
        self.register_buffer('feat_scale', torch.ones(()))
        self.set_normalization(img_range, rgb_mean)
        self.register_load_state_dict_pre_hook(_accept_bare_weights)

    def set_normalization(self, img_range: float, rgb_mean: Sequence[float], feat_scale: float | None = None) -> None:
        """Sets how the input is normalised; ``feat_scale`` follows from the range where it is not given."""
        self.input_range.fill_(img_range)
        self.input_mean.copy_(torch.tensor(rgb_mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.feat_scale.fill_(min(1.0, 2 / img_range) if feat_scale is None else feat_scale)

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.input_mean) * self.input_range

    def padded_size(self, h: int, w: int) -> tuple[int, int]:
        """The size to which an image has to be mirrored before it is encoded; features of the margin are kept."""
        return h, w

    @property
    def reach(self) -> int | None:
        """How many LR pixels beyond its own place a feature depends on, at most: parallel paths are added up.

        None: on the whole image, however large.
        """
        return sum(
            size // 2 * dilation
            for layer in self.modules()
            if isinstance(layer, nn.Conv2d)
            for size, dilation in [(max(layer.kernel_size), max(layer.dilation))]
        )

    def freeze(self) -> None:
        """Keeps the weights as they are, and the trunk in evaluation mode (no dropped paths)."""
        self.requires_grad_(False)
        self.frozen = True
        self.eval()

    def train(self, mode: bool = True) -> 'Trunk':
        return super().train(mode and not self.frozen)


class RawPixels(nn.Module):
    """No encoder: the LR image itself is the feature map."""

    out_channels, alignment, feat_scale, reach = 3, 1, 1.0, 0

    def forward(self, x: Tensor) -> Tensor:
        return x

    def padded_size(self, h: int, w: int) -> tuple[int, int]:
        return h, w


def _accept_bare_weights(trunk: Trunk, state_dict, prefix, *_) -> None:
    """Lets weights without the buffers above load (the host's, the published ones): the options' values stay."""
    for name in ('input_mean', 'input_range', 'feat_scale'):
        state_dict.setdefault(f'{prefix}{name}', getattr(trunk, name))
