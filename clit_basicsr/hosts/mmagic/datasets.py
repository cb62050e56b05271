"""The data sets in MMagic's registry DATASETS, under their names in BasicSR: the same samples, packed as MMagic's.

Pixels are handed over as 0 ... 255, RGB; ``DataPreprocessor`` with mean 0 and std 255 gives back the very values that
BasicSR's models are fed with, x / 255 in single precision.
"""

from __future__ import annotations

import re
from typing import Any

from mmagic.registry import DATASETS
from mmagic.structures import DataSample
from torch import Tensor

from clit_basicsr.base.messages import scale_text
from clit_basicsr.base.option_types import check_block
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset
from clit_basicsr.data.scaled_pair_dataset import ScaledPairDataset
from clit_basicsr.models.measurement import picture_names

# Options that only BasicSR's data loader has.
LOADER = (
    *('phase', 'batch_size_per_gpu', 'num_worker_per_gpu', 'dataset_enlarge_ratio', 'prefetch_mode'),
    *('num_prefetch_queue', 'pin_memory', 'persistent_workers'),
)
RGB = {'img_channel_order': 'RGB', 'gt_channel_order': 'RGB'}


def own_options(cls: type) -> dict[str, Any]:
    """The options that a data set takes here, with their types."""
    return {key: kind for key, kind in cls.OPTIONS.items() if key not in (*LOADER, 'type')}  # type: ignore[attr-defined]


def to_255(image: Tensor) -> Tensor:
    """An 8-bit image in [0, 1] in the range 0 ... 255: whole numbers, float32."""
    return image.mul(255).round()


@DATASETS.register_module(name='RandomScaleDataset')
class PackedRandomScaleDataset(RandomScaleDataset):
    """Training data; the options of :class:`RandomScaleDataset` as keyword arguments.

    A sample is ``{inputs, data_samples}``: inputs (3, h, w); a DataSample with ``gt_img`` (Q, 3) and ``coord`` (Q, 2),
    and in its metainfo ``cell``, ``scales`` and ``drawn`` as lists (a tensor more costs a file descriptor more between
    worker and training), ``img_path`` and ``gt_path``. ``CumulativeTrainLoop`` fills in ``stages``, ``start_stage`` and
    ``manual_seed``.

    Raises:
        UserError: see there; also an option that is not known.
    """

    metainfo = {'dataset_type': 'random_scale', 'task_name': 'sisr'}

    def __init__(self, **opt: Any) -> None:
        check_block(opt, 'dataset', own_options(RandomScaleDataset), ['dataroot_gt'])
        super().__init__(opt)

    def __getitems__(self, indices: list) -> list[dict[str, Any]]:
        return [self._pack(sample) for sample in super().__getitems__(indices)]

    def _pack(self, sample: dict[str, Any]) -> dict[str, Any]:
        numbers = {name: sample[name].tolist() for name in ('cell', 'scales', 'drawn')}
        packed = DataSample(metainfo={**RGB, **numbers, 'img_path': sample['lq_path'], 'gt_path': sample['gt_path']})
        packed.set_tensor_data({'gt_img': to_255(sample['gt']), 'coord': sample['coord']})
        return {'inputs': to_255(sample['lq']), 'data_samples': packed}


@DATASETS.register_module(name='ScaledPairDataset')
class PackedScaledPairDataset(ScaledPairDataset):
    """Whole images for validation and test; the options of :class:`ScaledPairDataset` as keyword arguments.

    A sample is ``{inputs, data_samples}``: inputs (3, h, w); a DataSample with ``gt_img`` (3, H, W), and of what is not
    a tensor ``scale`` (y, x), ``protocol``, ``img_path``, ``gt_path`` and ``vis_name``, a name for the visualizer:
    ``<picture>_<name of the data set>``, without dots. Option ``name`` is 'x3.4' for scale 3.4 by default; sets with
    the same pictures and scale need different ones.

    Raises:
        UserError: see there; also an option that is not known.
    """

    metainfo = {'dataset_type': 'scaled_pairs', 'task_name': 'sisr'}

    def __init__(self, **opt: Any) -> None:
        check_block(opt, 'dataset', own_options(ScaledPairDataset), ['dataroot_gt', 'scale'])
        super().__init__(opt)
        self.opt.setdefault('name', f'x{scale_text(self.scale)}')
        self.names = picture_names(self)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        name = f'{self.names[self.lr_names[index]]}_{self.opt["name"]}'
        packed = DataSample(
            metainfo={
                **RGB,
                'img_path': sample['lq_path'],
                'gt_path': sample['gt_path'],
                'scale': self.scale,
                'protocol': self.protocol,
                'vis_name': re.sub(r'[ /\\.]', '_', name),
            }
        )
        packed.set_tensor_data({'gt_img': to_255(sample['gt'])})
        return {'inputs': to_255(sample['lq']), 'data_samples': packed}
