"""Whole images and their LR versions at one scale, for validation and test."""

import math
from collections import Counter
from os import path as osp
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils import data

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import scale_text
from clit_basicsr.data.downsamplings import check_downsampling
from clit_basicsr.data.images import ImageSource
from clit_basicsr.data.pairs import fits, gt_size, make_pair
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
        check_downsampling(self.downsampling)
        self.protocol = opt.get('protocol', DEFAULT)
        find_protocol(self.protocol)
        io_backend = opt.get('io_backend')
        self.hr = ImageSource(opt['dataroot_gt'], io_backend, opt.get('meta_info_file'))
        self.lr: ImageSource | None = None
        self.lr_names = self.hr.names
        if opt.get('dataroot_lq'):
            folders = sorted({osp.dirname(self.hr.key(name)) for name in self.hr.names})
            self.lr = ImageSource(opt['dataroot_lq'], io_backend, option='dataroot_lq', folders=folders)
            self.lr_names = _partners(self.hr, self.lr, opt.get('filename_tmpl', '{}'))

    def __len__(self) -> int:
        return len(self.hr)

    def __getitem__(self, index: int) -> dict[str, Any]:
        hr_name, lr_name = self.hr.names[index], self.lr_names[index]
        label = self.hr.label(hr_name)
        hr = self.hr.decode(hr_name)
        if self.lr is None:
            try:
                hr, lr = make_pair(hr, self.scale, self.downsampling)
            except UserError as error:
                raise UserError(f'{label}: {error}; remove it.') from error
        else:
            lr = self.lr.decode(lr_name)
            self._check_pair(hr, lr, label, self.lr.label(lr_name))
            height, width = gt_size(lr.shape, self.scale)
            hr = hr[:height, :width]
        return {'lq': _to_tensor(lr), 'gt': _to_tensor(hr), 'lq_path': lr_name, 'gt_path': hr_name}

    def _check_pair(self, hr: np.ndarray, lr: np.ndarray, hr_label: str, lr_label: str) -> None:
        if not fits(hr.shape, lr.shape, self.scale):
            raise UserError(
                f'{lr_label} ({_size(lr)}) is not {hr_label} ({_size(hr)}) at scale {scale_text(self.scale)}; '
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
    """The LR image of every HR image: that of the same path below the folder (or key), whatever its format.

    Where HR images lie in sub-folders and LR images do not, their names alone count if no two are the same.

    Raises:
        UserError: an HR image has no LR image, or several; an LR image would serve two HR images.
    """
    if '{}' not in template:
        raise UserError(f"filename_tmpl: must hold {{}} for the HR image's name, got '{template}'.")
    by_key: dict[str, list[str]] = {}
    for name in lr.names:
        by_key.setdefault(lr.key(name), []).append(name)
    by_name = Counter(osp.basename(hr.key(name)) for name in hr.names)
    partners: dict[str, str] = {}
    for name in hr.names:
        key = hr.key(name)
        folder, base = osp.split(key)
        wanted = osp.join(folder, template.replace('{}', base))
        if wanted not in by_key and by_name[base] == 1:
            wanted = osp.basename(wanted)
        found = by_key.get(wanted, [])
        if len(found) > 1:  # in two formats: that of the HR image
            found = [one for one in found if osp.splitext(one)[1] == osp.splitext(name)[1]] or found
        if not found:
            raise UserError(
                f"{lr.root}: no LR image '{wanted}' for {hr.label(name)}; check dataroot_lq and filename_tmpl."
            )
        other = partners.setdefault(found[0], name)
        if len(found) > 1 or other != name:
            reason = f'{lr.label(found[1])} too' if len(found) > 1 else f'that of {hr.label(other)} too'
            raise UserError(
                f'{lr.label(found[0])} may be the LR image of {hr.label(name)}, and {reason}; rename or remove one.'
            )
    by_hr = {name: partner for partner, name in partners.items()}
    return [by_hr[name] for name in hr.names]


def _size(img: np.ndarray) -> str:
    return f'{img.shape[0]}x{img.shape[1]}'


def _to_tensor(img: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(img.transpose(2, 0, 1).astype(np.float32) / 255)
