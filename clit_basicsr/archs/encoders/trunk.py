"""What every encoder has in addition to the host's layers: normalisation, names elsewhere, and its registration."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clit_basicsr.archs.encoders.layouts import Layout
from clit_basicsr.base.errors import UserError

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
# Options of every encoder in addition to those of the host's network, see build_encoder; with their types.
COMMON_OPTIONS: dict[str, Any] = {
    'img_range': float,
    'rgb_mean': list,
    'feat_scale': float | None,
    'keep_normalization': bool,
    'frozen': bool,
}
ENCODERS: dict[str, type['Trunk']] = {}


class Normalization(NamedTuple):
    """How a network normalises its input: (x - mean) * img_range, x in [0, 1]."""

    img_range: float
    mean: Sequence[float]


class PaperEncoder(NamedTuple):
    """An encoder of the paper's tables: its name there, and its options; those not named have the host's defaults."""

    name: str
    options: dict[str, Any]


RAW = Normalization(1.0, (0.0, 0.0, 0.0))
# Buffers that are ours: saved with the weights, absent in everybody else's.
BUFFERS = ('input_mean', 'input_range', 'feat_scale')
# What an encoder's class must state; what does not exist is stated as None.
PARTS = ('host', 'layouts', 'normalization', 'published_layout', 'paper')


class Trunk(nn.Module):
    """Mixed into a network of the host: its layers without the upsampler, its own option and parameter names.

    Input (B, 3, h, w), RGB in [0, 1]; output (B, out_channels, h, w).

    Attributes:
        host: the host's class; its name is the encoder's ``type``.
        layouts: the names of the trunk's weights in checkpoints that ``pretrain_network_encoder`` reads, our own first.
        normalization: that of the networks in those checkpoints.
        mmagic_normalization: that of MMagic's network, where it differs.
        published_layout: the names in the published implicit networks (CLIT, LIIF, LTE); None: none has this encoder.
        paper: the encoder in the paper's tables; None: they do not have it.
        out_channels: C0.
        input_mean, input_range: the input is normalised by (x - mean) * range. Buffers, saved with the weights: a trunk
            that was trained at range 255 must never be run at another.
        feat_scale: a factor for the features, which the network applies: features of a trunk at range 255 are some 130
            times larger than those at range 2 and would saturate the head's softmax from the first step.
        frozen: the trunk keeps its weights during training.
        alignment: tiles have to begin and end at multiples of this many pixels to get the features of the whole image.
    """

    host: type[nn.Module]
    layouts: tuple[Layout, ...]
    normalization: Normalization
    mmagic_normalization: Normalization | None = None
    published_layout: Layout | None
    paper: PaperEncoder | None
    out_channels: int
    input_mean: Tensor
    input_range: Tensor
    feat_scale: Tensor
    frozen = False
    alignment = 1

    @classmethod
    def describe(cls, weights: dict[str, Tensor], hints: Mapping[str, Any]) -> dict[str, Any] | None:
        """The options, with ``type``, of the trunk that has these weights, as far as their shapes show them.

        Args:
            weights: under our keys.
            hints: what a published checkpoint says in addition: ``res_scale``.

        Returns:
            None if the weights are not those of this encoder.
        """
        raise NotImplementedError

    @classmethod
    def published_spec(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The published ``encoder_spec``, ``name`` and ``args``, from what :meth:`describe` returns.

        Raises:
            UserError: the published code does not have this configuration.
        """
        raise NotImplementedError

    @classmethod
    def published_unused(cls) -> dict[str, Tensor]:
        """Layers that the published encoder builds and never uses."""
        return {}

    @classmethod
    def checkpoint_normalization(cls, weights: dict[str, Tensor]) -> Normalization:
        """The normalisation of the network that was saved with these weights, under their own keys."""
        return cls.normalization

    @classmethod
    def channels_of(cls, options: Mapping[str, Any]) -> int:
        """C0 of a trunk with these options."""
        return options.get('num_feat', 64)

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


class MeanShiftTrunk(Trunk):
    """A trunk whose network in EDSR-PyTorch subtracts the mean in a layer, ``sub_mean``, and adds it at the end.

    The published encoders build these layers and never use them.
    """

    @classmethod
    def published_unused(cls) -> dict[str, Tensor]:
        layers = {}
        for prefix, sign in (('sub', -1), ('add', 1)):
            layers[f'{prefix}_mean.weight'] = torch.eye(3).view(3, 3, 1, 1)
            layers[f'{prefix}_mean.bias'] = sign * torch.tensor(DIV2K_MEAN)
        return layers

    @classmethod
    def checkpoint_normalization(cls, weights: dict[str, Tensor]) -> Normalization:
        if 'sub_mean.bias' not in weights:
            return cls.normalization
        # The layer's bias is -rgb_range * mean.
        return Normalization(round(-weights['sub_mean.bias'][0].item() / DIV2K_MEAN[0], 3), DIV2K_MEAN)


class RawPixels(nn.Module):
    """No encoder: the LR image itself is the feature map."""

    out_channels, alignment, feat_scale, reach = 3, 1, 1.0, 0

    def forward(self, x: Tensor) -> Tensor:
        return x

    def padded_size(self, h: int, w: int) -> tuple[int, int]:
        return h, w


def _accept_bare_weights(trunk: Trunk, state_dict, prefix, *_) -> None:
    """Lets weights without the buffers above load (the host's, the published ones): the options' values stay."""
    for name in BUFFERS:
        state_dict.setdefault(f'{prefix}{name}', getattr(trunk, name))


def register_encoder(cls: type[Trunk]) -> type[Trunk]:
    """Class decorator: makes an encoder known by the name of the host's network.

    Raises:
        UserError: a part of the class is missing.
    """
    missing = [part for part in PARTS if not hasattr(cls, part)]
    missing += ['describe'] if _is_inherited(cls, 'describe') else []
    if getattr(cls, 'published_layout', None) is not None and _is_inherited(cls, 'published_spec'):
        missing.append('published_spec')
    if missing:
        raise UserError(
            f'encoder {cls.__name__} does not define {", ".join(missing)} (see Trunk; published_layout and '
            'paper may be None).'
        )
    ENCODERS[cls.host.__name__] = cls
    return cls


def _is_inherited(cls: type[Trunk], method: str) -> bool:
    return getattr(cls, method).__func__ is getattr(Trunk, method).__func__
