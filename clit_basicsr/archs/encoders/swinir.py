"""SwinIR as a trunk, for images of any size."""

from basicsr.archs.swinir_arch import SwinIR, WindowAttention
from torch import Tensor

from clit_basicsr.archs.encoders.cnn import DIV2K_MEAN
from clit_basicsr.archs.encoders.trunk import Trunk
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.mirror import mirror_pad


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
        self.out_channels = 64 if conv_before_upsample else opt.get('embed_dim', 96)
        if not conv_before_upsample:
            self.conv_before_upsample = None
        self.register_load_state_dict_pre_hook(_keep_masks)

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


def _keep_masks(trunk: SwinIREncoder, state_dict, prefix, *_) -> None:
    """Lets any file's attention masks pass: they follow from ``img_size`` alone and are made anew for other sizes."""
    for key, value in trunk.named_buffers(prefix=prefix.rstrip('.')):
        if key.endswith(('attn_mask', 'relative_position_index')):
            state_dict[key] = value
