"""Training pairs at random scales: one plan of scale factors per batch, HR pixels sampled as queries."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils import data

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.degradation import Degradation
from clit_basicsr.data.downsamplings import check_downsampling
from clit_basicsr.data.images import DecodedImage, EncodedImage, ImageSource
from clit_basicsr.data.pairs import downsample
from clit_basicsr.data.raw import RawImage
from clit_basicsr.data.schedule import ScaleSchedule, TrainingPlan, clip_scales, parse_scales
from clit_basicsr.ops.geometry.coords import pixel_centers

# First words of the seeds, so that the streams of random numbers are apart.
_ORDER, _PLAN, _SAMPLE, _OTHERS, _DEGRADATION = range(5)
Opened = EncodedImage | DecodedImage | RawImage


@DATASET_REGISTRY.register()
class RandomScaleDataset(data.Dataset):
    """HR crops, their LR images and sampled HR pixels; the training data of LIT and CLIT (section 4.1 of the paper).

    A batch is asked for with ``[(batch_number, 0), (batch_number, 1), ...]``, as torch's fetcher does through
    ``__getitems__`` inside the worker. All its samples share one plan of scale factors, unless images have their own.
    Every draw is a function of (manual_seed, rank, batch number), so neither the number of workers nor a resume changes
    a batch. Plain integers are taken too: image ``index % len(self)``, the first one being the batch number.

    Args:
        opt (dict): Config of the data set. It contains the following keys:
            dataroot_gt (str): Folder of the HR images, or an LMDB folder.
            io_backend (dict): ``{type: disk}`` (default) or ``{type: lmdb}``, which reads BasicSR's LMDBs of encoded
                images and the raw ones of ``basicsr prepare``.
            cache_bytes (int): Memory that each worker may use to keep decoded images; 0: none is kept. Not for raw
                LMDBs, which decode nothing. Default: 0.
            meta_info_file (str): List of the images to use. Default: all of the folder.
            lq_size (int): Side of the LR patch in pixels, where the stage has none of its own. Default: 48.
            num_queries (int): HR pixels sampled per patch, without replacement; all of them where the HR crop has
                fewer. Default: 2304.
            downsampling (str): How the 8-bit LR image is made, 'pil' or 'matlab'. Default: 'pil'.
            degradation (dict): Noise and JPEG compression of the LR patches, see
                :class:`clit_basicsr.data.degradation.Degradation`; the HR crops and queries stay as they are. Default:
                none.
            use_hflip (bool): Horizontal flips. Default: True.
            use_rot (bool): Vertical flips and transposition. Default: True.
            scales (list): Alternatives between which the batches alternate, where there are no stages, each a list of
                ranges [lo, hi], one per branch. Default: [[[1, 4]]].
            scale_per_image (bool): Every image has scales of its own, as in the published training of SRNO, HIIF and
                Thera; num_queries must not be above lq_size^2. Default: False.
            shrink (float): Half of the HR crops are first made smaller, by a factor from 1 to this (Pillow's bicubic),
                as in the published training of Thera; 1: none. Default: 1.
            stages (list), start_stage (int), manual_seed (int): ``train.stages``, the number of the first stage to
                train and the run's seed, passed on by the option parser.

    A sample is a dict of
        lq: (3, lq_size, lq_size), float32, RGB in [0, 1], made from the HR crop.
        gt: (Q, 3), float32, RGB in [0, 1], the HR crop at the sampled pixels.
        coord: (Q, 2), float32, (y, x) centres of those pixels in [-1, 1].
        cell: (2,), float32, height and width of an HR pixel in that unit.
        scales: (n, 2), float64, the (y, x) factors of the n active branches.
        drawn: (n,), float64, these factors before they were reduced to fit the batch's smallest image.
        lq_path, gt_path: path of the HR image, or its key in the LMDB.

    Raises:
        UserError: a wrong option, missing or damaged data, an image smaller than ``lq_size``.
    """

    takes_batch_numbers = True
    OPTIONS = {
        'name': str,
        'type': str,
        'phase': str,
        'dataroot_gt': str,
        'io_backend': dict,
        'cache_bytes': int,
        'meta_info_file': (str, type(None)),
        'lq_size': int,
        'num_queries': int,
        'downsampling': str,
        'degradation': (dict, type(None)),
        'use_hflip': bool,
        'use_rot': bool,
        'scales': list,
        'scale_per_image': bool,
        'shrink': float,
        'stages': (list, type(None)),
        'start_stage': (int, type(None)),
        'manual_seed': (int, type(None)),
        'batch_size_per_gpu': int,
        'num_worker_per_gpu': int,
        'dataset_enlarge_ratio': (int, float),
        'prefetch_mode': (str, type(None)),
        'num_prefetch_queue': int,
        'pin_memory': bool,
        'persistent_workers': bool,
    }

    def __init__(self, opt: dict[str, Any]):
        super().__init__()
        self.opt = opt
        cache = _whole(opt, 'cache_bytes', 0, least=0)
        source = (opt['dataroot_gt'], opt.get('io_backend'), opt.get('meta_info_file'))
        self.source = ImageSource(*source, cache_bytes=cache)
        self.lq_size = _whole(opt, 'lq_size', 48)
        self.num_queries = _whole(opt, 'num_queries', 2304)
        self.downsampling = opt.get('downsampling', 'pil')
        check_downsampling(self.downsampling)
        self.degradation = Degradation(opt['degradation']) if opt.get('degradation') is not None else None
        self.use_hflip = opt.get('use_hflip', True)
        self.use_rot = opt.get('use_rot', True)
        self.scale_per_image = opt.get('scale_per_image', False)
        self.shrink = float(opt.get('shrink', 1))
        if not self.shrink >= 1:
            raise UserError(f'shrink: must be a number of at least 1, got {opt["shrink"]!r}.')
        if opt.get('stages') is not None:
            self.schedule = TrainingPlan.parse(opt).schedule
        else:
            self.schedule = ScaleSchedule.constant(parse_scales(opt.get('scales', [[[1, 4]]])))
        smallest = min(stage.lq_size or self.lq_size for stage in self.schedule.stages)
        if self.scale_per_image and self.num_queries > smallest**2:
            raise UserError(
                f'num_queries: with scale_per_image an HR crop may have {smallest**2} pixels only (scale 1), so at '
                f'most that many queries; got {self.num_queries}.'
            )
        self._sides: dict[int, int] = {}  # of the images that have been looked at
        self.seed = opt.get('manual_seed') or 0
        self.rank, self.world_size = get_dist_info()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list) -> list[dict[str, Any]]:
        """The samples of one batch: ``(batch_number, position)`` for each position, or plain integers."""
        if isinstance(indices[0], tuple):
            batch = indices[0][0]
            if indices != [(batch, position) for position in range(len(indices))]:
                raise ValueError(f'a batch needs its number with positions 0, 1, 2, ..., got {indices}.')
            images = self._images_of(batch, len(indices))
        else:
            batch = indices[0]
            images = [index % len(self) for index in indices]
        stage = self.schedule.stages[self.schedule.stage_of(batch)[0]]
        lq_size = stage.lq_size or self.lq_size
        images = self._large_enough(batch, images, stage.min_size)
        names = [self.source.names[image] for image in images]
        # Encoded images are held until the clip rule knows the smallest; decoded ones would take many times the memory.
        opened = [self.source.open(name) for name in names]
        groups = [[i] for i in range(len(names))] if self.scale_per_image else [list(range(len(names)))]
        samples = []
        for group in groups:
            rng = self._rng(_PLAN, self.rank, batch, *(group if self.scale_per_image else ()))
            own = [opened[i] for i in group]
            drawn, scales = self._plan(batch, rng, [names[i] for i in group], own, lq_size)
            shared = {
                'scales': torch.tensor(scales, dtype=torch.float64).unsqueeze(1).repeat(1, 2),
                'drawn': torch.tensor(drawn, dtype=torch.float64),
            }
            sides = round(lq_size * float(np.prod(scales))), lq_size
            samples += [self._sample(names[i], opened[i], sides, (self.rank, batch, i)) | shared for i in group]
        return samples

    def _rng(self, purpose: int, *key: int) -> np.random.Generator:
        return np.random.default_rng([purpose, self.seed, *key])

    def _images_of(self, batch: int, batch_size: int) -> list[int]:
        """Indices of a batch's images: the ranks take turns in an endless row of shuffled passes over all of them."""
        first = (batch * self.world_size + self.rank) * batch_size
        passes: dict[int, np.ndarray] = {}
        images = []
        for number in range(first, first + batch_size):
            turn, position = divmod(number, len(self))
            if turn not in passes:
                passes[turn] = self._rng(_ORDER, turn).permutation(len(self))
            images.append(int(passes[turn][position]))
        return images

    def _large_enough(self, batch: int, images: list[int], min_size: int) -> list[int]:
        """A batch's images, those with a side below ``min_size`` replaced by others, drawn from all that are not."""
        if not min_size:
            return images
        chosen = []
        for position, image in enumerate(images):
            others: Iterable[int] = ()
            if self._smallest_side(image) < min_size:
                others = self._rng(_OTHERS, self.rank, batch, position).permutation(len(self)).tolist()
            found = (one for one in (image, *others) if self._smallest_side(one) >= min_size)
            chosen.append(next(found, -1))
        if -1 in chosen:
            raise UserError(
                f'{self.source.root}: no image has a smaller side of at least {min_size} pixels (min_size of a '
                'stage); lower min_size or add larger images.'
            )
        return chosen

    def _smallest_side(self, image: int) -> int:
        if image not in self._sides:
            self._sides[image] = self.source.open(self.source.names[image]).smallest_side
        return self._sides[image]

    def _plan(
        self, batch: int, rng: np.random.Generator, names: list[str], opened: Sequence[Opened], lq_size: int
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Scale factors of some images as drawn, and clipped so that the HR crop fits into the smallest of them."""
        sides = []
        for name, image in zip(names, opened, strict=True):
            sides.append(image.smallest_side)
            if sides[-1] < lq_size:
                raise UserError(
                    f'{self.source.label(name)}: its smaller side of {sides[-1]} pixels is below the LR patch '
                    f'(lq_size: {lq_size}); remove it or lower lq_size.'
                )
        scales = self.schedule.draw(batch, rng)
        return scales, clip_scales(scales, lq_size, min(sides))

    def _sample(self, name: str, image: Opened, sides: tuple[int, int], key: tuple[int, ...]) -> dict[str, Any]:
        """What differs between the samples of a plan.

        Args:
            sides: of the HR crop and the LR patch, in pixels.
            key: rank, batch number and position in the batch, from which all is drawn.
        """
        rng = self._rng(_SAMPLE, *key)
        hr = self._hr_crop(image, *sides, rng)
        size, lq_size = len(hr), sides[1]
        lq = downsample(hr, (lq_size, lq_size), self.downsampling)
        if self.degradation is not None:
            lq = self.degradation(lq, self._rng(_DEGRADATION, *key))
        y, x = sample_pixels(size, self.num_queries, rng)
        centers = _centers(size)
        return {
            'lq': torch.from_numpy(lq.transpose(2, 0, 1).astype(np.float32) / 255),
            'gt': torch.from_numpy(hr.reshape(-1, 3).take(y * size + x, axis=0).astype(np.float32) / 255),
            'coord': torch.from_numpy(np.stack([centers[y], centers[x]], axis=-1)),
            'cell': torch.full((2,), 2 / size),
            'lq_path': name,
            'gt_path': name,
        }

    def _hr_crop(self, image: Opened, size: int, lq_size: int, rng: np.random.Generator) -> np.ndarray:
        factor = float(rng.uniform(1, self.shrink)) if self.shrink > 1 and rng.random() < 0.5 else 1.0
        crop = min(round(size * factor), image.smallest_side)
        hr = self._augmented_crop(image.pixels(), crop, rng)
        side = max(int(crop / factor), lq_size)
        return hr if side == crop else downsample(hr, (side, side), 'pil')

    def _augmented_crop(self, img: np.ndarray | RawImage, size: int, rng: np.random.Generator) -> np.ndarray:
        top, left = (int(rng.integers(side - size + 1)) for side in img.shape[:2])
        hflip, vflip, transpose = rng.random(3) < 0.5
        crop = img[top : top + size, left : left + size]
        if self.use_hflip and hflip:
            crop = crop[:, ::-1]
        if self.use_rot and vflip:
            crop = crop[::-1]
        if self.use_rot and transpose:
            crop = crop.transpose(1, 0, 2)
        return np.ascontiguousarray(crop)


def sample_pixels(size: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of ``count`` different pixels of a ``size`` x ``size`` image; of all if there are fewer."""
    area = size * size
    # Without shuffling, numpy's cost is that of the draws; with it, or by a permutation, that of the area.
    index = rng.choice(area, min(count, area), replace=False, shuffle=False)
    return np.divmod(index, size)


@lru_cache(maxsize=1)  # the images of a batch, if they share a plan, have one size
def _centers(size: int) -> np.ndarray:
    return pixel_centers(size).numpy()


def _whole(opt: dict[str, Any], key: str, default: int, least: int = 1) -> int:
    value = opt.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f'{key}: must be a whole number of at least {least}, got {value!r}.')
    return value
