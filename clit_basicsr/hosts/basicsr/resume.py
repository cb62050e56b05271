"""Checkpoints that a kill cannot spoil, and finding them again.

What BasicSR does instead:

* It writes checkpoints in place, so that a kill leaves a truncated file of the right name.
* It looks for states in ./experiments whatever the root path is; where it finds none, it moves the old run aside and
  starts again.
* It loads them onto the current CUDA device, which a CPU run does not have.
* It answers any difference between a checkpoint and the network with a traceback of hundreds of lines.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clit_basicsr.base.checkpoints import (
    SAFETENSORS,
    check_finite,
    nonfinite,
    read_checkpoint,
    weights_in,
    write_checkpoint,
)
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import temporary_name
from clit_basicsr.base.messages import nearest
from clit_basicsr.base.option_types import plain
from clit_basicsr.hosts.basicsr.changes import check_changes, kept_options
from clit_basicsr.hosts.basicsr.plugin import complete_options
from clit_basicsr.hosts.basicsr.training_state import check_training_state

MOST_FAILED_SAVES = 3  # in a row: then the training ends rather than go on without a checkpoint
SMALLEST_FREE = 2**20  # bytes; with less, a write that failed has met a full disk


def save_atomically(content: dict, path: str | Path) -> str:
    """`torch.save` under a temporary name, then moved: there is never a partial file of that name.

    Three tries, as in the host, which continues training without the checkpoint when all of them fail.

    Returns:
        str: '' if it is saved, else why not.
    """
    for left in (2, 1, 0):
        try:
            with temporary_name(str(path)) as temporary:
                write_checkpoint(content, temporary)
                with open(temporary, 'rb+') as file:
                    os.fsync(file.fileno())
            return ''
        except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on a full disk
            reason = reason_of(error, Path(path))
            time.sleep(1 if left else 0)
    logging.getLogger('basicsr').error(f'{path} is not saved: {reason}')
    return reason


def reason_of(error: OSError | RuntimeError, path: Path) -> str:
    """Why a file cannot be written, in a few words; torch's writer says nothing of a full disk."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if path.parent.is_dir() and shutil.disk_usage(path.parent).free < SMALLEST_FREE:
        return os.strerror(errno.ENOSPC).lower()
    return str(error).splitlines()[0]


def save_network(
    self: Any, net: nn.Module | list, net_label: str, current_iter: int, param_key: str | list[str] = 'params'
) -> None:
    """`BaseModel.save_network`, atomic; the file holds the network's options too, so that it needs no option file."""
    if self.opt['rank'] != 0:
        return
    nets = net if isinstance(net, list) else [net]
    keys = param_key if isinstance(param_key, list) else [param_key]
    content = {
        key: {
            name.removeprefix('module.'): value.cpu() for name, value in self.get_bare_model(one).state_dict().items()
        }
        for one, key in zip(nets, keys, strict=True)
    }
    refuse_nonfinite(content, net_label, current_iter)
    options = net_label.replace('net_', 'network_', 1)
    if self.opt.get(options):
        content[options] = plain(self.opt[options])
    label = 'latest' if current_iter == -1 else current_iter
    path = Path(self.opt['path']['models']) / f'{net_label}_{label}.pth'
    reason = save_atomically(content, path)
    self.failed_saves = getattr(self, 'failed_saves', 0) + 1 if reason else 0
    if reason and (label == 'latest' or self.failed_saves == MOST_FAILED_SAVES):
        raise UserError(
            f'the trained network could not be saved as {path}: {reason}; make room and resume with --auto_resume'
        )


def refuse_nonfinite(content: dict[str, dict[str, Tensor]], net_label: str, iteration: int) -> None:
    """Raises UserError for weights that hold NaN or infinity: they would take the place of the last good ones."""
    for weights in content.values():
        if bad := nonfinite(weights):
            when = 'at the end' if iteration == -1 else f'at iteration {iteration:,}'
            raise UserError(
                f'{net_label} {when}: weight {next(iter(bad))} is not finite (NaN or infinite), so the network is not '
                'saved; lower the learning rate and resume from the last checkpoint (--auto_resume).'
            )


def save_training_state(self: Any, epoch: int, current_iter: int) -> None:
    """`BaseModel.save_training_state`, atomic."""
    if self.opt['rank'] != 0 or current_iter == -1:
        return
    state = {
        'epoch': epoch,
        'iter': current_iter,
        'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
        'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
        'options': kept_options(self.opt),
    }
    path = Path(self.opt['path']['training_states']) / f'{current_iter}.state'
    if not save_atomically(state, path):
        self.last_state = path


def load_network(
    self: Any, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
) -> None:
    """`BaseModel.load_network`, with one line about a file that cannot be read or does not fit.

    Raises:
        UserError: The file is missing, unreadable or of another architecture (the last only when `strict`).
    """
    net = self.get_bare_model(net)
    content, param_key, weights = weights_of(load_path, param_key)
    logging.getLogger('basicsr').info(
        f'Loading {type(net).__name__} model from {load_path}, with param key: [{param_key}].'
    )
    report_other_options(self.opt, content, load_path)
    if not strict:
        report_partial_weights(self.opt, net, weights, load_path)
        self._print_different_keys_loading(net, weights, strict)
    load_weights(net, weights, load_path, strict)


def weights_of(path: str, param_key: str | None) -> tuple[dict, str | None, dict[str, Tensor]]:
    """The content of a checkpoint, the key of the weights in it that a network takes, and these weights.

    Raises:
        UserError: the file cannot be read, has no such key, or its weights are not finite.
    """
    content = read_checkpoint(path)
    if param_key is None and str(path).endswith(SAFETENSORS):
        param_key = 'params'  # such a file holds the weights alone
    if param_key is not None:
        if param_key == 'params_ema' and param_key not in content and 'params' in content:
            param_key = 'params'
        if param_key not in content:
            raise UserError(f'{path} has no {param_key!r}{remedy(param_key, content)}')
    weights = {key.removeprefix('module.'): value for key, value in weights_in(content, param_key, path).items()}
    check_finite(weights, f'the weights in {path}')
    return content, param_key, weights


def load_weights(net: nn.Module, weights: dict[str, Tensor], source: str, strict: bool = True) -> None:
    """`load_state_dict`, with one line about weights that do not fit.

    Args:
        source: where they are from, for the message.

    Raises:
        UserError: they are those of another architecture; some may have been loaded.
    """
    try:
        net.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        difference = differences(net.state_dict(), weights)
        raise UserError(f'{source} does not fit the network {type(net).__name__}: {difference}') from error


def remedy(param_key: str, content: dict) -> str:
    """What to do about a file without the weights of that key; the end of a sentence."""
    if 'optimizers' in content:
        return ': it is a training state; give the network saved with it, models/net_g_<iteration>.pth'
    held = [
        key
        for key, value in content.items()
        if isinstance(value, dict) and any(isinstance(one, Tensor) for one in value.values())
    ]
    if not held:
        return f', only {shorten(list(content))}, none of which holds weights'
    return f', only {shorten(held)}; set path:param_key_g: {nearest(param_key, held)}'


def report_other_options(opt: dict, content: dict, path: str) -> None:
    """Says in which options that no weight shows the network of a file was another one, in a test above its table.

    Options that are in no weight, such as ``num_heads`` and ``residual_weight``, fit any file and change results.
    """
    from clit_basicsr.archs.network_options import differing_options  # imports the host, whose fixes these are

    for key in list(opt):
        if not key.startswith('network_') or not isinstance(content.get(key), dict):
            continue
        if differing := differing_options(opt[key], content[key]):
            line = f'{key} is not that of {path}, which may change the results: {"; ".join(differing)}.'
            lines = opt.setdefault('warnings', [])
            if line not in lines:  # an averaged network is loaded as well
                lines.append(line)


def report_partial_weights(opt: dict, net: nn.Module, weights: dict, path: str) -> None:
    """With ``strict_load: false``, what stays random is said, in a test above its table too.

    Raises:
        UserError: nothing in the file fits.
    """
    own = net.state_dict()
    missing = [key for key, value in own.items() if key not in weights or weights[key].shape != value.shape]
    if own and len(missing) == len(own):
        raise UserError(f'{path} holds no weight of {type(net).__name__}, so there is nothing to load')
    if missing:
        opt.setdefault('warnings', []).append(
            f'{len(missing)} of {len(own)} weights of {type(net).__name__} are not in {path} and stay random: '
            f'{shorten(missing)}.'
        )


def differences(expected: dict, given: dict) -> str:
    """What keeps one state dict from being loaded in place of another, in a few words; empty if nothing does."""
    missing = [key for key in expected if key not in given]
    unknown = [key for key in given if key not in expected]
    sizes = [
        f'{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}'
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    parts = [('missing', missing), ('unknown', unknown), ('of another size', sizes)]
    return '; '.join(f'{len(found)} {what} ({shorten(found)})' for what, found in parts if found)


def shorten(names: list[str], most: int = 2) -> str:
    """The first few names."""
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')


def load_resume_state(opt: dict) -> dict | None:
    """The state to resume from, on the CPU (the optimizers move it to where their parameters are), or None.

    With `auto_resume` the newest state of this experiment that can be read, and the networks saved with it too.
    Sets `opt['path']['resume_state']`, what the host derives from it, and `opt['resumed'] = {epoch, iter}`.

    Raises:
        UserError: The state named by `path.resume_state`, or a network saved with it, is missing or unreadable.
    """
    from basicsr.utils import check_resume

    if opt['auto_resume']:
        path, state = newest_usable_state(opt)
    else:
        path = opt['path'].get('resume_state')
        state = read_state(opt, Path(path)) if path else None
    if state is None:
        return None
    if state.get('options'):  # states of earlier versions have none
        keep_drawn_seed(opt, state['options'])
        opt['changed_options'] = check_changes(state['options'], opt, state['iter'])
    opt['path']['resume_state'] = str(path)
    opt['resumed'] = {'epoch': state['epoch'], 'iter': state['iter']}
    check_resume(opt, state['iter'])
    return state


def keep_drawn_seed(opt: dict, saved: dict) -> None:
    """A seed that the option file does not name is that of the run so far."""
    if not opt.get('seed_drawn') or saved.get('manual_seed') is None:
        return
    from basicsr.utils import set_random_seed

    opt['manual_seed'] = saved['manual_seed']
    set_random_seed(opt['manual_seed'] + opt['rank'])
    complete_options(opt)


def newest_usable_state(opt: dict) -> tuple[Path | None, dict | None]:
    """The newest complete checkpoint of the experiment; what had to be skipped is reported.

    Raises:
        UserError: there are states or networks, but no state can be used: starting anew would move them aside.
    """
    folder, models = Path(opt['path']['training_states']), Path(opt['path']['models'])
    states = [file for file in folder.glob('*.state') if file.stem.isdigit()]
    reason = ''
    for file in sorted(states, key=lambda file: int(file.stem), reverse=True):
        try:
            return file, read_state(opt, file)
        except UserError as error:
            reason = reason or str(error)
            print(f'auto_resume: {file.name} is skipped: {error}', flush=True)
    networks = list(models.glob('net_*.pth'))
    if states or networks:
        found = f'none of the {len(states)} training states can be used ({reason})' if states else 'there is none'
        raise UserError(
            f'--auto_resume: {found} in {folder}; restore one, or start anew without --auto_resume, which moves the '
            'experiment aside'
        )
    return None, None


def read_state(opt: dict, path: Path) -> dict:
    """A training state whose networks can be read as well.

    Raises:
        UserError: it, or a network, is missing, damaged or something else.
    """
    if path.is_dir():
        raise UserError(f'{path} is a folder, not a training state; name a file in training_states')
    state = read_checkpoint(path)
    check_training_state(state, path)
    for network in saved_networks(opt, state['iter']):
        read_checkpoint(network)
    return state


def saved_networks(opt: dict, iteration: int) -> list[Path]:
    """The files in which the host will look for this experiment's networks when it resumes."""
    ignored = opt['path'].get('ignore_resume_networks') or []
    names = [key for key in opt if key.startswith('network_') and key not in ignored]
    return [Path(opt['path']['models']) / f'net_{name.removeprefix("network_")}_{iteration}.pth' for name in names]
