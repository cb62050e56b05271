"""Whole images and their LR versions at one scale, for validation and test."""

import math
from os import path as osp
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils import data

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.images import ImageSource, decode
from clit_basicsr.data.resize import check_kind, downsample
from clit_basicsr.metrics.protocols import DEFAULT, find_protocol


@DATASET_REGISTRY.register()
class ScaledPairDataset(data.Dataset):
    """HR images with LR images that are given, or made at any scale.

    Args:
        opt (dict): Config of the data set. It contains the following keys:
            dataroot_gt (str): Folder of the HR images, or an LMDB folder.
            dataroot_lq (str): The same of the LR images. Default: they are made from the HR images.
            filename_tmpl (str): Name of an LR image, without its extension, by that of the HR image. Default: '{}'.
            io_backend (dict): ``{type: disk}`` (default) or ``{type: lmdb}``, for both folders.
            meta_info_file (str): List of the HR images to use. Default: all of the folder.
            scale (float | list): HR pixels per LR pixel, a number or [y, x], each >= 1.
            downsampling (str): How 8-bit LR images are made, 'pil' or 'matlab'. Default: 'pil'.
            protocol (str): How the papers measure on this data set, 'div2k' or 'benchmark'; read by the metrics.
                Default: 'div2k'.

    A sample is a dict of
        lq: (3, h, w), float32, RGB in [0, 1].
        gt: (3, H, W), float32, RGB in [0, 1], the HR image cut at the bottom and right to round((h, w) * scale).
        lq_path, gt_path: paths of the images (of the HR image twice where the LR image is made), or keys in the LMDB.

    Attributes:
        scale: (y, x).
        protocol: as in the options.

    Raises:
        UserError: a wrong option, missing or damaged data, images that do not fit the scale.
    """

    OPTIONS = {
        'name': str,
        'type': str,
        'phase': str,
        'dataroot_gt': str,
        'dataroot_lq': (str, type(None)),
        'filename_tmpl': str,
        'io_backend': dict,
        'meta_info_file': (str, type(None)),
        'scale': (int, float, list),
        'downsampling': str,
        'protocol': str,
        'pin_memory': bool,
        'persistent_workers': bool,
        'prefetch_mode': (str, type(None)),
        'num_prefetch_queue': int,
    }

    def __init__(self, opt: dict[str, Any]):
        super().__init__()
        self.opt = opt
        self.scale = parse_scale(opt['scale'])
        self.downsampling = opt.get('downsampling', 'pil')
        check_kind(self.downsampling)
        self.protocol = opt.get('protocol', DEFAULT)
        find_protocol(self.protocol)
        io_backend = opt.get('io_backend')
        self.hr = ImageSource(opt['dataroot_gt'], io_backend, opt.get('meta_info_file'))
        self.lr: ImageSource | None = None
        self.lr_names = self.hr.names
        if opt.get('dataroot_lq'):
            self.lr = ImageSource(opt['dataroot_lq'], io_backend, option='dataroot_lq')
            self.lr_names = _partners(self.hr, self.lr, opt.get('filename_tmpl', '{}'))

    def __len__(self) -> int:
        return len(self.hr)

    def __getitem__(self, index: int) -> dict[str, Any]:
        hr_name, lr_name = self.hr.names[index], self.lr_names[index]
        label = self.hr.label(hr_name)
        hr = decode(self.hr.read(hr_name), label)
        if self.lr is None:
            size = self._lr_size(hr, label)
            hr = self._cut(hr, size)
            lr = downsample(hr, size, self.downsampling)
        else:
            lr = decode(self.lr.read(lr_name), self.lr.label(lr_name))
            self._check_pair(hr, lr, label, self.lr.label(lr_name))
            hr = self._cut(hr, lr.shape[:2])
        return {'lq': _to_tensor(lr), 'gt': _to_tensor(hr), 'lq_path': lr_name, 'gt_path': hr_name}

    def _lr_size(self, hr: np.ndarray, label: str) -> tuple[int, int]:
        height, width = (math.floor(side / s + 1e-9) for side, s in zip(hr.shape[:2], self.scale, strict=True))
        if min(height, width) < 1:
            raise UserError(f'{label}: {_size(hr)} pixels are too few for scale {_factor(self.scale)}; remove it.')
        return height, width

    def _cut(self, hr: np.ndarray, lr_size: tuple[int, ...]) -> np.ndarray:
        height, width = _scaled(lr_size, self.scale)
        return hr[:height, :width]

    def _check_pair(self, hr: np.ndarray, lr: np.ndarray, hr_label: str, lr_label: str) -> None:
        # The HR image may have a rim, because LR images are made after cutting it to a multiple; a tenth is no rim.
        for side, needed in zip(hr.shape[:2], _scaled(lr.shape[:2], self.scale), strict=True):
            if not needed <= side <= 1.1 * needed + max(self.scale):
                raise UserError(
                    f'{lr_label} ({_size(lr)}) is not {hr_label} ({_size(hr)}) at scale {_factor(self.scale)}; '
                    'check dataroot_lq, filename_tmpl and scale.'
                )


def parse_scale(scale: Any) -> tuple[float, float]:
    """Checks an option ``scale``, a number or [y, x].

    Raises:
        UserError: it is neither, or below 1.
    """
    pair = scale if isinstance(scale, (list, tuple)) else (scale, scale)
    numbers = [value for value in pair if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(pair) != 2 or len(numbers) != 2 or not all(1 <= value < math.inf for value in numbers):
        raise UserError(f'scale: must be a number of at least 1, or two of them [y, x], got {scale!r}.')
    return float(pair[0]), float(pair[1])


def _partners(hr: ImageSource, lr: ImageSource, template: str) -> list[str]:
    """The LR image of every HR image, whatever its extension."""
    if '{}' not in template:
        raise UserError(f"filename_tmpl: must hold {{}} for the HR image's name, got '{template}'.")
    by_stem = {_stem(name): name for name in lr.names}
    partners = []
    for name in hr.names:
        wanted = template.replace('{}', _stem(name))
        if wanted not in by_stem:
            raise UserError(
                f"{lr.root}: no LR image '{wanted}' for {hr.label(name)}; check dataroot_lq and filename_tmpl."
            )
        partners.append(by_stem[wanted])
    return partners


def _stem(name: str) -> str:
    return osp.splitext(osp.basename(name))[0]


def _scaled(size: tuple[int, ...], scale: tuple[float, float]) -> tuple[int, int]:
    return round(size[0] * scale[0]), round(size[1] * scale[1])


def _size(img: np.ndarray) -> str:
    return f'{img.shape[0]}x{img.shape[1]}'


def _factor(scale: tuple[float, float]) -> str:
    return f'{scale[0]:g}' if scale[0] == scale[1] else f'{scale[0]:g}x{scale[1]:g}'


def _to_tensor(img: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(img.transpose(2, 0, 1).astype(np.float32) / 255)
