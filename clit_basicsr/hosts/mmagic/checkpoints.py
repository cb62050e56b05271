"""Checkpoints between the hosts: what MMagic saves needs no trust to be read, and what BasicSR saved is read too.

mmengine keeps objects with the weights that only code could restore (HistoryBuffer, numpy's numbers): its files do not
load with ``weights_only=True``, torch's default.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from mmagic.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local
from torch import Tensor

from clit_basicsr.archs.network_options import differing_options
from clit_basicsr.base.checkpoints import GENERATOR, read_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.option_types import plain
from clit_basicsr.hosts.basicsr.resume import remedy
from clit_basicsr.hosts.mmagic.resume import OPTIONS, check_resumable


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Makes a checkpoint plain before it is saved, and adds ``network_g``, from which the commands know the network,
    and the options that a resumed training may not change.

    ``CumulativeTrainLoop`` and ``basicsr mmtrain`` register it; elsewhere it goes into ``custom_hooks``. The log's
    history is left out: the averages that a resumed run logs start again.
    """

    priority = 'LOWEST'

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        hub = checkpoint['message_hub']
        info = plain(hub['runtime_info'], _tensor_or_plain)
        hub.clear()
        hub.update(log_scalars={}, runtime_info=info, resumed_keys=dict.fromkeys(info, True))
        checkpoint['meta'] = plain(checkpoint['meta'], _tensor_or_plain)
        model = bare_model(runner)
        if hasattr(model, 'network_g'):
            checkpoint['network_g'] = model.network_g
        options = getattr(runner.train_loop, 'training_options', None)
        if options is not None:
            checkpoint[OPTIONS] = options()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Raises UserError for what a training cannot be resumed from, see :mod:`.resume`; warns where a test, or a
        training that begins with weights, has another network than these were trained in.
        """
        if not runner._resume:
            own, held = getattr(bare_model(runner), 'network_g', None), checkpoint.get('network_g')
            if own and isinstance(held, dict) and (lines := differing_options(own, held)):
                runner.logger.warning(
                    f'model:generator is not that of the checkpoint, which may change the results: {"; ".join(lines)}.'
                )
            return
        check_resumable(checkpoint)
        check = getattr(runner.train_loop, 'check_resume', None)
        if check is not None:
            check(checkpoint)


def bare_model(runner: Any) -> Any:
    """A runner's model, without the wrapper of a distributed run."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def add_plain_checkpoints(runner: Any) -> None:
    """Registers the hook in a runner, once."""
    if not any(isinstance(hook, PlainCheckpointHook) for hook in runner.hooks):
        runner.register_hook(PlainCheckpointHook())


def _tensor_or_plain(value: Any) -> Any:
    """What becomes of values that are not plain: tensors stay, numpy's and sets are made plain, the rest text."""
    if isinstance(value, (set, frozenset)):
        return plain(list(value), _tensor_or_plain)
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist(), _tensor_or_plain)
    return value if isinstance(value, Tensor) else str(value)


def load_file(filename: str, map_location: Any = None) -> dict:
    """mmengine's loader of local files, for those of BasicSR too.

    Raises:
        UserError: the file cannot be read, with the reason.
    """
    if not filename:  # mmengine writes the name into that file in place
        raise UserError('last_checkpoint in the work_dir is empty; name a checkpoint: --cfg-options load_from=...')
    filename = os.path.expanduser(filename)
    try:
        content = load_from_local(filename, map_location)
    except Exception as error:
        read_checkpoint(filename)  # says what is wrong with it
        raise UserError(f'{filename} cannot be read ({" ".join(str(error).split())[:150]})') from error
    if not isinstance(content, dict):
        raise UserError(f'{filename} is not a checkpoint: it holds a {type(content).__name__}')
    if 'optimizers' in content:
        raise UserError(f'{filename} has no weights{remedy("params", content)}')
    return of_mmagic(content)


def of_mmagic(content: dict) -> dict:
    """A checkpoint as MMagic has it; of one of BasicSR, the weights that answer: the average, if there is one."""
    key = next((key for key in ('params_ema', 'params') if isinstance(content.get(key), dict)), None)
    if key is None or 'state_dict' in content:
        return content
    weights = {f'{GENERATOR}{name.removeprefix("module.")}': value for name, value in content[key].items()}
    return {'state_dict': weights, **{name: content[name] for name in ('network_g',) if name in content}}


CheckpointLoader.register_scheme(prefixes='', loader=load_file, force=True)
