"""What the host's models do to options, devices, pictures and distributed processes."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from tqdm import tqdm

from clit_basicsr.base import ranks
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest

# Modules of the host whose `nondist_validation` takes one picture after the other.
BY_PICTURE = ('basicsr.models.sr_model', 'basicsr.models.realesrnet_model', 'basicsr.models.realesrgan_model')


def get_optimizer(self: Any, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
    """`BaseModel.get_optimizer` for every optimizer of torch.optim; the host of PyPI knows Adam alone.

    Raises:
        UserError: the optimizer is not known, or does not have an option.
    """
    return find_optimizer(optim_type, kwargs)(params, lr=lr, **kwargs)


def find_optimizer(optim_type: str, options: dict) -> Callable[..., torch.optim.Optimizer]:
    """The class of that name in torch.optim; see :func:`get_optimizer`."""
    known = {name: cls for name, cls in vars(torch.optim).items() if is_optimizer(cls)}
    if optim_type not in known:
        near = nearest(optim_type, known, likeness=0.4)
        raise UserError(
            f'unknown optimizer {optim_type!r}' + (f', did you mean {near}?' if near else f' (one of {list(known)})')
        )
    accepted = [name for name in inspect.signature(known[optim_type]).parameters if name != 'params']
    for name in options:
        if name not in accepted:
            raise UserError(f'optimizer {optim_type} has no option {name!r} (it has {", ".join(accepted)})')
    return known[optim_type]


def is_optimizer(thing: Any) -> bool:
    # LBFGS evaluates the loss itself, which no model of the host allows
    return (
        isinstance(thing, type)
        and issubclass(thing, torch.optim.Optimizer)
        and thing not in (torch.optim.Optimizer, torch.optim.LBFGS)
    )


def without_popping(method: Callable) -> Callable:
    """`setup_optimizers`, `setup_schedulers`: they pop `type` out of the options, so that a second call would fail."""

    @functools.wraps(method)
    def wrapper(self: Any) -> None:
        kept, self.opt['train'] = self.opt['train'], copy.deepcopy(self.opt['train'])
        try:
            method(self)
        finally:
            self.opt['train'] = kept

    return wrapper


def pictures_by_dataset(method: Callable) -> Callable:
    """`nondist_validation`: the pictures it saves during training go to visualization/<dataset>/<image>/.

    The host leaves out the dataset, so that one image at several scales is overwritten by the next.
    """

    @functools.wraps(method)
    def wrapper(self: Any, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        paths = self.opt['path']
        if not self.opt['is_train']:  # in a test the host has the dataset in its paths
            method(self, dataloader, current_iter, tb_logger, save_img)
            return
        folder = os.path.join(paths['visualization'], dataloader.dataset.opt['name'])
        self.opt['path'] = {**paths, 'visualization': folder}
        try:
            method(self, dataloader, current_iter, tb_logger, save_img)
        finally:
            self.opt['path'] = paths

    return wrapper


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
        with tqdm(total=len(dataloader), unit='image', desc=name, disable=not bar) as progress:
            values = ranks.for_each_picture(dataloader, validate, progress.update)
    finally:
        model.opt['val'] = val
        del model._update_best_metric_result, model._log_validation_metric_values
    if val.get('metrics') is not None:
        model.metric_results = ranks.mean_values(values)
        for metric, value in model.metric_results.items():
            model._update_best_metric_result(name, metric, value, current_iter)
        ranks.on_first_rank(lambda: model._log_validation_metric_values(current_iter, name, tb_logger))


def model_to_device(self: Any, net: nn.Module) -> nn.Module:
    """`BaseModel.model_to_device`, on the CPU too, where DistributedDataParallel takes no device_ids."""
    net = net.to(self.device)
    if self.opt['dist'] and any(parameter.requires_grad for parameter in net.parameters()):
        device_ids = None if self.device.type == 'cpu' else [torch.cuda.current_device()]
        find_unused = self.opt.get('find_unused_parameters', False)
        return DistributedDataParallel(net, device_ids=device_ids, find_unused_parameters=find_unused)
    if not self.opt['dist'] and self.opt['num_gpu'] > 1:
        return DataParallel(net)
    return net


def init_dist_pytorch(original: Callable) -> Callable:
    """`_init_dist_pytorch` where there is no GPU: gloo, and no division by the number of GPUs."""

    @functools.wraps(original)
    def wrapper(backend: str, **kwargs: Any) -> None:
        if torch.cuda.device_count():
            original(backend, **kwargs)
        else:
            torch.distributed.init_process_group(backend='gloo', **kwargs)

    return wrapper
