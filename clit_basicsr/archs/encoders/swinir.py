"""SwinIR as a trunk, for images of any size."""

import math
from collections.abc import Mapping
from typing import Any

from basicsr.archs.swinir_arch import SwinIR, WindowAttention
from torch import Tensor, nn

from clit_basicsr.archs.encoders.layouts import SAME, count
from clit_basicsr.archs.encoders.trunk import DIV2K_MEAN, Normalization, PaperEncoder, Trunk, register_encoder
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.mirror import mirror_pad

# The one configuration of the papers and the published code.
PUBLISHED = {'embed_dim': 180, 'depths': [6] * 6, 'num_heads': [6] * 6, 'window_size': 8, 'mlp_ratio': 2.0}


@register_encoder
class SwinIREncoder(Trunk, SwinIR):
    """SwinIR up to its upsampler. Its attention works on windows, so images are mirrored up to whole windows.

    Args:
        conv_before_upsample (bool): End with the first layer behind the trunk, a convolution to 64 channels, as the
            published encoder does. Default: False.
        padding (str): 'window': up to the next multiple of the window; 'published': the authors' test code, which
            always adds between one pixel and a whole window; during training, whose patches are whole windows, nothing
            is added. Default: 'window'.
    """

    host = SwinIR
    layouts = (SAME,)
    normalization = Normalization(1, DIV2K_MEAN)
    published_layout = SAME
    paper = PaperEncoder('SwinIR', {**PUBLISHED, 'conv_before_upsample': True})

    def __init__(
        self,
        img_range: float = 1.0,
        rgb_mean=DIV2K_MEAN,
        conv_before_upsample: bool = False,
        padding: str = 'window',
        **opt,
    ) -> None:
        if padding not in ('window', 'published'):
            raise UserError(f"network_g:encoder:padding must be 'window' or 'published'; got {padding!r}.")
        if opt.get('ape'):
            raise UserError('network_g:encoder:ape binds SwinIR to one image size; an encoder cannot have it.')
        # Only the upsampler 'pixelshuffle' builds the convolution; without it the smallest upsampler is built and
        # removed.
        upsampler = 'pixelshuffle' if conv_before_upsample else ''
        super().__init__(in_chans=3, **{**opt, 'upsampler': upsampler, 'upscale': 1})
        self.set_up(('upsample', 'conv_last') if conv_before_upsample else ('conv_last',), img_range, rgb_mean)
        self.alignment = self.window_size = opt.get('window_size', 7)
        self.padding = padding
        self.out_channels = self.channels_of({**opt, 'conv_before_upsample': conv_before_upsample})
        if not conv_before_upsample:
            self.conv_before_upsample = None
        self.register_load_state_dict_pre_hook(keep_masks)

    @property
    def reach(self) -> int | None:
        # A layer of attention reads a window, plain or shifted.
        layers = sum(isinstance(module, WindowAttention) for module in self.modules())
        return (super().reach or 0) + layers * (self.window_size - 1)

    def padded_size(self, h: int, w: int) -> tuple[int, int]:
        n = self.window_size
        if self.padding == 'published' and not self.training:
            return (h // n + 1) * n, (w // n + 1) * n
        return -(-h // n) * n, -(-w // n) * n

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        n = self.window_size
        # Whoever keeps the features of the margin has padded already; a tile may still have any size.
        x = mirror_pad(self.normalize(x), (-(-h // n) * n, -(-w // n) * n))
        x = self.conv_first(x)
        x = self.conv_after_body(self.forward_features(x)) + x
        x = x if self.conv_before_upsample is None else self.conv_before_upsample(x)
        return x[..., :h, :w]

    @classmethod
    def channels_of(cls, options: Mapping[str, Any]) -> int:
        return 64 if options.get('conv_before_upsample') else options.get('embed_dim', 96)

    @classmethod
    def describe(cls, weights: dict[str, Tensor], hints: Mapping[str, Any]) -> dict[str, Any] | None:
        first = 'layers.0.residual_group.blocks.0'
        if 'patch_embed.norm.weight' not in weights and f'{first}.norm1.weight' not in weights:
            return None
        layers = range(count(weights, r'layers\.(\d+)\.'))
        dim, tables = weights['conv_first.weight'].shape[0], 'attn.relative_position_bias_table'
        window_size = (math.isqrt(weights[f'{first}.{tables}'].shape[0]) + 1) // 2
        options = {
            'type': 'SwinIR',
            'embed_dim': dim,
            'depths': [count(weights, rf'layers\.{i}\.residual_group\.blocks\.(\d+)\.') for i in layers],
            'num_heads': [weights[f'layers.{i}.residual_group.blocks.0.{tables}'].shape[1] for i in layers],
            'window_size': window_size,
            'mlp_ratio': weights[f'{first}.mlp.fc1.weight'].shape[0] / dim,
            'qkv_bias': f'{first}.attn.qkv.bias' in weights,
            'patch_norm': 'patch_embed.norm.weight' in weights,
            'resi_connection': '1conv' if 'conv_after_body.weight' in weights else '3conv',
            'conv_before_upsample': 'conv_before_upsample.0.weight' in weights,
        }
        mask = weights.get('layers.0.residual_group.blocks.1.attn_mask')
        if mask is not None:
            options['img_size'] = math.isqrt(mask.shape[0]) * window_size
        return options

    @classmethod
    def published_spec(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key, value in {**PUBLISHED, 'conv_before_upsample': True, 'img_size': 48}.items():
            if options.get(key) != value:
                raise UserError(f'the published SwinIR has {key}: {value}; this one has {options.get(key)}.')
        return {'name': 'swinir', 'args': {}}


def keep_masks(trunk: nn.Module, state_dict, prefix, *_) -> None:
    """Lets any file's attention masks pass: they follow from ``img_size`` alone and are made again for other sizes."""
    for key, value in trunk.named_buffers(prefix=prefix.rstrip('.')):
        if key.endswith(('attn_mask', 'relative_position_index')):
            state_dict[key] = value
