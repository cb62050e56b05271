"""What the host's models do to options, devices, pictures and distributed processes."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest


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
