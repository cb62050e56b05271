"""Networks that answer at any point as a model of MMagic: training on sampled queries, prediction at any scale."""

from __future__ import annotations

from typing import Any

import torch
from mmagic.models.base_models import BaseEditModel
from mmagic.registry import MODELS
from mmagic.structures import DataSample
from mmengine.logging import print_log
from torch import Tensor

from clit_basicsr.archs.encoders import load_pretrained
from clit_basicsr.archs.encoders.trunk import Trunk
from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.archs.precision import in_precision
from clit_basicsr.base.checkpoints import GENERATOR, check_finite
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.option_types import check_keys, check_number, check_type
from clit_basicsr.base.precisions import check_precision
from clit_basicsr.hosts.basicsr.resume import load_weights
from clit_basicsr.hosts.mmagic.networks import network_g
from clit_basicsr.models.clipped_scales import ClippedScales
from clit_basicsr.models.implicit_sr_model import self_ensemble

TRAIN_OPTIONS = ('variation_weight',)
TEST_OPTIONS = ('scale', 'tile', 'self_ensemble', 'precision')
# Networks take RGB in [0, 1], and normalise as their encoder was trained.
PREPROCESSOR = {'type': 'DataPreprocessor', 'mean': [0.0] * 3, 'std': [255.0] * 3, 'output_channel_order': 'RGB'}


@MODELS.register_module()
class ImplicitSR(BaseEditModel):
    """The counterpart of BasicSR's ``ImplicitSRModel``; ``CumulativeTrainLoop`` trains it in stages.

    Args:
        generator (dict): A network of this package: ``CLITNet``, ``LITNet``, ``LIIFNet``, ..., with the options of
            ``network_g`` in an option file.
        pixel_loss (dict): A loss of MMagic. Default: ``L1Loss``.
        pretrained_encoder (str): A checkpoint that the encoder starts from, see
            :func:`clit_basicsr.archs.encoders.load_pretrained`. Default: none.
        train_cfg (dict): ``variation_weight``, as in the block ``train`` of BasicSR's ``ImplicitSRModel`` (Thera).
        test_cfg (dict): How pictures are enlarged: ``scale``, a number or [y, x], where the samples name none (default:
            the network's ``upscale``); ``tile``, ``self_ensemble`` and ``precision`` as in the block ``val`` of
            BasicSR's ``ImplicitSRModel``.
        init_cfg (dict): As in mmengine.
        data_preprocessor (dict): Default: ``DataPreprocessor`` with mean 0 and std 255, to RGB; other numbers are
            refused, because the encoder normalises its input itself.

    Attributes:
        network_g: type and options of the network, for checkpoints.
        loss_options: those of the loss.

    Raises:
        UserError: an option cannot be used, with the reason.
    """

    def __init__(
        self,
        generator: dict,
        pixel_loss: dict | None = None,
        pretrained_encoder: str | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
    ) -> None:
        loss = pixel_loss or {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
        preprocessor = dict(PREPROCESSOR) if data_preprocessor is None else data_preprocessor
        super().__init__(generator, loss, train_cfg, test_cfg, init_cfg, preprocessor)
        if not isinstance(self.generator, ImplicitNet):
            raise UserError(
                f'model:generator:type {type(self.generator).__name__} cannot answer at single points, which '
                'ImplicitSR needs; take CLITNet or LITNet, for example.'
            )
        check_normalization(self.data_preprocessor)
        self.train_options = dict(train_cfg or {})
        check_train_options(self.train_options)
        self.test_options = dict(test_cfg or {})
        check_keys(self.test_options, 'model:test_cfg', TEST_OPTIONS)
        check_precision(self.test_options.get('precision'), 'model:test_cfg:precision')
        self.network_g = network_g(self.generator, generator)
        self.loss_options = dict(loss)
        self.clipped_scales = ClippedScales()
        if pretrained_encoder is not None:
            if not isinstance(self.generator.encoder, Trunk):
                raise UserError('model:pretrained_encoder: the generator has no encoder; leave it out.')
            loaded = load_pretrained(self.generator.encoder, self.network_g['encoder'], pretrained_encoder)
            self.network_g['encoder'] = loaded.options  # with the normalisation that came with the weights
            print_log(loaded.message, 'current')

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        """Refuses a checkpoint that does not fit: mmengine would go on with random weights after a warning.

        Parts are loaded into ``generator`` itself, with ``strict=False``.

        Raises:
            UserError: the generator's weights are not all there, or are of another network, or not finite.
        """
        start = prefix + GENERATOR
        given = {name.removeprefix(start): value for name, value in state_dict.items() if name.startswith(start)}
        if not given and self.generator.state_dict():
            kind = type(self.generator).__name__
            raise UserError(f'the checkpoint holds no weights of a generator, so there is nothing to load into {kind}')
        check_finite(given, 'the weights of the checkpoint')
        load_weights(self.generator, given, 'the checkpoint')
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward_train(self, inputs: Tensor, data_samples: DataSample, **kwargs: Any) -> dict[str, Tensor]:
        """The loss at the sampled pixels of a batch of RandomScaleDataset.

        Args:
            inputs: (B, 3, h, w), RGB in [0, 1].
            data_samples: stacked: ``gt_img`` (B, Q, 3) in [0, 1], ``coord`` (B, Q, 2); ``cell`` (B, 2), ``scales``
                (B, n, 2), one plan for the whole batch, and ``drawn`` (B, n) as lists.
        """
        scales = data_samples.scales[0]
        remark = self.clipped_scales.add(data_samples.drawn[0], [scale[0] for scale in scales])
        if remark:
            print_log(remark, 'current')
        cell = inputs.new_tensor(data_samples.cell)
        queries = (inputs, data_samples.coord, cell, scales)
        weight = self.train_options.get('variation_weight')
        output, variation = self.generator(*queries, variation=True) if weight else (self.generator(*queries), None)
        with torch.autocast(inputs.device.type, enabled=False):
            loss = self.pixel_loss(output.float(), data_samples.gt_img)
            if variation is None:
                return {'loss': loss}
            variation = variation.float().mean()
            return {'loss': loss + weight * variation, 'variation': variation.detach()}

    @torch.no_grad()
    def forward_tensor(self, inputs: Tensor, data_samples: DataSample | None = None, **kwargs: Any) -> Tensor:
        """Enlarged pictures (B, 3, H, W), RGB, not clamped.

        Args:
            inputs: (B, 3, h, w), RGB in [0, 1].
            data_samples: stacked; ``target_size`` (H, W), or else ``scale``, a number or (y, x), in their metainfo say
                how large the results are, the same for all of them; else see ``test_cfg``.

        Raises:
            UserError: they differ, or the images had to be padded to one size.
        """
        check_not_padded(data_samples)
        size = common(data_samples, 'target_size')
        scale = common(data_samples, 'scale')
        if scale is None:
            scale = self.test_options.get('scale') or self.generator.default_scale
        if size is not None:
            scale = [large / small for large, small in zip(size, inputs.shape[-2:], strict=True)]
        elif not isinstance(scale, (list, tuple)):
            scale = (scale, scale)
        tile = self.test_options.get('tile')
        with in_precision(self.test_options.get('precision'), inputs.device):
            if ensemble := self.test_options.get('self_ensemble'):
                rotations = ensemble == 'rotations'
                return self_ensemble(self.generator, inputs, (scale[0], scale[1]), tile, rotations).float()
            target = {'scale': tuple(scale)} if size is None else {'size': tuple(size)}
            return self.generator.upscale(inputs, **target, tile=tile).float()

    def forward_inference(self, inputs: Tensor, data_samples: DataSample | None = None, **kwargs: Any) -> DataSample:
        """The same as a DataSample: ``pred_img`` in 0 ... 255, BGR as MMagic has it, and ``pred_float``, RGB as the
        network answered, which PSNRFloat and SSIMFloat measure.
        """
        rgb = self.forward_tensor(inputs, data_samples)
        image = self.data_preprocessor.destruct(rgb, data_samples)
        return DataSample(pred_img=image.cpu(), pred_float=rgb.cpu())


def check_train_options(options: Any) -> None:
    """Raises UserError for a ``train_cfg`` that cannot be used."""
    check_type(options, 'model:train_cfg', dict)
    check_keys(options, 'model:train_cfg', TRAIN_OPTIONS)
    if options.get('variation_weight') is not None:
        check_number(options['variation_weight'], 'model:train_cfg:variation_weight', 0)


def check_normalization(preprocessor: Any) -> None:
    """Raises UserError unless a preprocessor hands over RGB in [0, 1]."""
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None or mean.flatten().tolist() != [0.0] * 3 or std.flatten().tolist() != [255.0] * 3:
        raise UserError(
            'model:data_preprocessor: mean must be [0, 0, 0] and std [255, 255, 255]: the encoder normalises its input '
            'itself, by img_range and rgb_mean.'
        )


def check_not_padded(data_samples: DataSample | None) -> None:
    """Raises UserError for a batch of images of several sizes, which the preprocessor has padded to the largest."""
    sizes = None if data_samples is None else data_samples.metainfo.get('padding_size')
    sizes = sizes if isinstance(sizes, (list, tuple)) else [sizes]
    if any(one is not None and bool((torch.as_tensor(one) != 0).any()) for one in sizes):
        raise UserError('a batch holds images of several sizes; set batch_size to 1 for validation and test.')


def common(data_samples: DataSample | None, key: str) -> Any:
    """What all stacked samples have under that key of their metainfo; None if they do not have it.

    Raises:
        UserError: they differ.
    """
    values = None if data_samples is None else data_samples.metainfo.get(key)
    if not isinstance(values, list) or len(values) != len(data_samples):  # type: ignore[arg-type]
        return values
    if any(value != values[0] for value in values):
        raise UserError(f'the samples of a batch have different values of {key}; set batch_size to 1.')
    return values[0]
