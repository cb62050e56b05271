"""Validation by the host's own models: on several ranks, with pictures by data set, and without a GT."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from clit_basicsr.base import ranks
from clit_basicsr.base.console import hides_bars
from clit_basicsr.base.errors import UserError

# Modules of the host whose `nondist_validation` takes one picture after the other.
BY_PICTURE = ('basicsr.models.sr_model', 'basicsr.models.realesrnet_model', 'basicsr.models.realesrgan_model')


def validation_of_a_set(method: Callable) -> Callable:
    """`nondist_validation` of the host's models, where it mixes pictures or measures without a GT.

    * The pictures it saves during training go to visualization/<dataset>/<image>/. The host leaves out the dataset, so
      that one image at several scales is overwritten by the next.
    * Where the data set has no GT, the metrics that compare with one are left out: the host would stop there.
    * A figure that is NaN is explained.
    """

    @functools.wraps(method)
    def wrapper(self: Any, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        from clit_basicsr.models.measurement import needs_gt  # not above: the host is being imported then

        paths, val, dataset = self.opt['path'], self.opt['val'], dataloader.dataset
        if self.opt['is_train']:  # in a test the host has the dataset in its paths
            folder = os.path.join(paths['visualization'], dataset.opt['name'])
            self.opt['path'] = {**paths, 'visualization': folder}
        metrics = val.get('metrics')
        if metrics and not has_gt(dataset):
            without = {name: block for name, block in metrics.items() if not needs_gt(block)}
            self.opt['val'] = {**val, 'metrics': without or None}
            self.metric_results = dict.fromkeys(without, 0)
            left_out = ', '.join(name for name in metrics if name not in without)
            say_once(dataset, f'there are no GT images for {left_out}, so there are no figures')
        try:
            method(self, dataloader, current_iter, tb_logger, save_img)
        finally:
            self.opt['path'], self.opt['val'] = paths, val
        for name, value in getattr(self, 'metric_results', {}).items():
            if math.isnan(value):
                remark = f'{name} is NaN: a picture is not finite, or smaller than crop_border or the window'
                say_once(dataset, remark)
                self.opt.setdefault('warnings', []).append(f'{dataset.opt["name"]}: {remark}.')

    return wrapper


def calculate_metric(data: dict, opt: dict) -> float:
    """The host's, NaN for a picture that is too small for the metric, where it may stop with a traceback."""
    from clit_basicsr.models.measurement import host_metric  # not above: the host is being imported then

    shapes = [data[key].shape[:2] for key in ('img', 'img2') if key in data]
    if len(set(shapes)) > 1:
        (h, w), (height, width) = shapes
        raise UserError(
            f'a result of {h}x{w} pixels cannot be compared with a GT image of {height}x{width}; check scale, '
            'network_g:upscale and dataroot_lq'
        )
    return host_metric(data, opt)[0]


def has_gt(dataset: Any) -> bool:
    """Whether the samples of a data set hold a GT image; one is read, once."""
    if not hasattr(dataset, 'has_gt'):
        dataset.has_gt = 'gt' in dataset[0]
    return dataset.has_gt


def say_once(dataset: Any, remark: str) -> None:
    """A warning about a data set in the log, once for the set."""
    said = dataset.__dict__.setdefault('remarks', set())
    if remark not in said:
        said.add(remark)
        logging.getLogger('basicsr').warning(f'{dataset.opt["name"]}: {remark}.')


def dist_validation(self: Any, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
    """`SRModel.dist_validation` with the pictures dealt out over the ranks, on the bare network.

    The host validates on rank 0 alone, and on the wrapped network. The other ranks wait, and a validation longer than
    the time-out of collectives (10 minutes with NCCL) ends the training; with buffers, rank 0 waits for them for ever.

    A model whose `nondist_validation` is neither one of `BY_PICTURE` nor meant for every rank (`shares_validation`) is
    validated on rank 0 alone, as before: it may need all pictures in one place.
    """
    wrapped, self.net_g = self.net_g, self.get_bare_model(self.net_g)
    try:
        ranks.copy_buffers_of_first_rank(self.net_g)
        if getattr(self, 'shares_validation', False):
            self.nondist_validation(dataloader, current_iter, tb_logger, save_img)
        elif type(self).nondist_validation.__module__ in BY_PICTURE:
            validate_by_picture(self, dataloader, current_iter, tb_logger, save_img)
        elif self.opt['rank'] == 0:
            self.nondist_validation(dataloader, current_iter, tb_logger, save_img)
    finally:
        self.net_g = wrapped


class OnePicture(NamedTuple):
    """A loader of one batch, for the host's `nondist_validation`."""

    dataset: Any
    batches: list

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def validate_by_picture(model: Any, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
    """The host's `nondist_validation` for each picture on one of the ranks, and the means as it computes them."""
    dataset, val = dataloader.dataset, model.opt['val']
    name = dataset.opt['name']

    def validate(batch: Any) -> dict[str, float]:
        model.nondist_validation(OnePicture(dataset, [batch]), current_iter, None, save_img)
        return dict(model.metric_results) if val.get('metrics') is not None else {}

    ranks.on_first_rank(lambda: None)  # which may still be moving the folder of an earlier run aside
    bar = val.get('pbar', False) and model.opt['rank'] == 0
    model.opt['val'] = {**val, 'pbar': False}
    # what a single picture gives is neither a record nor news
    model._update_best_metric_result = model._log_validation_metric_values = lambda *_: None
    try:
        with tqdm(total=len(dataloader), unit='image', desc=name, disable=not bar or hides_bars()) as progress:
            values = ranks.for_each_picture(dataloader, validate, progress.update)
    finally:
        model.opt['val'] = val
        del model._update_best_metric_result, model._log_validation_metric_values
    if val.get('metrics') is not None:
        model.metric_results = ranks.mean_values(values)
        for metric, value in model.metric_results.items():
            model._update_best_metric_result(name, metric, value, current_iter)
        ranks.on_first_rank(lambda: model._log_validation_metric_values(current_iter, name, tb_logger))
