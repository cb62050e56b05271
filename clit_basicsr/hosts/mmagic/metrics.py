"""PSNR and SSIM as the papers measure them, in MMagic's registry METRICS; its own are rounded and on RGB alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmagic.evaluation.metrics.base_sample_wise_metric import BaseSampleWiseMetric
from mmagic.registry import METRICS
from torch import Tensor

from clit_basicsr.base.errors import UserError
from clit_basicsr.metrics.protocols import DEFAULT, find_protocol
from clit_basicsr.metrics.psnr_ssim_float import calculate_psnr_float, calculate_ssim_float


class FloatMetric(BaseSampleWiseMetric):
    """A metric of :mod:`clit_basicsr.metrics` on each picture; the figure of a set is their mean.

    Args:
        protocol (str): 'div2k' or 'benchmark'. Default: what the data set says, or else 'div2k'.
        prefix (str): Of the figure's name: 'Set5x2' gives Set5x2/PSNR. Default: none.
        collect_device (str): As in mmengine.
    """

    measure: Callable[..., float]

    def __init__(self, protocol: str | None = None, prefix: str | None = None, collect_device: str = 'cpu') -> None:
        super().__init__(prefix=prefix, collect_device=collect_device)
        if protocol is not None:
            find_protocol(protocol)
        self.protocol = protocol

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Measures predicted samples: ``gt_img`` (3, H, W) in 0 ... 255, BGR, ``scale``, and ``output`` as ImplicitSR
        gives it, or that of any model of MMagic.

        Raises:
            UserError: a picture cannot be measured.
        """
        for sample in data_samples:
            gt = unit_rgb(sample['gt_img'])
            output = sample['output']
            image = output['pred_float'] if 'pred_float' in output else unit_rgb(output['pred_img'])
            protocol = self.protocol or sample.get('protocol') or DEFAULT
            scale = sample.get('scale') or tuple(
                large / small for large, small in zip(image.shape[-2:], sample['input'].shape[-2:], strict=True)
            )
            try:
                value = type(self).measure(image[None].cpu(), gt[None].cpu(), protocol=protocol, scale=scale)
            except UserError as error:
                raise UserError(f'{sample.get("img_path", "a picture")}: {error}') from error
            self.results.append({self.metric: value})


@METRICS.register_module()
class PSNRFloat(FloatMetric):
    """:func:`calculate_psnr_float`, in dB."""

    metric = 'PSNR'
    measure = staticmethod(calculate_psnr_float)


@METRICS.register_module()
class SSIMFloat(FloatMetric):
    """:func:`calculate_ssim_float`."""

    metric = 'SSIM'
    measure = staticmethod(calculate_ssim_float)


def unit_rgb(image: Tensor) -> Tensor:
    """An image (3, H, W), BGR in 0 ... 255, as RGB in [0, 1], float32."""
    return (image.float() / 255).flip(0)
