"""Which network answers: that of a checkpoint, of an experiment, or one that comes with the package."""

from __future__ import annotations

import os
import re
from os import path as osp
from typing import TYPE_CHECKING

from clit_basicsr import weights
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.file_kinds import SUFFIXES
from clit_basicsr.base.files import names_in

if TYPE_CHECKING:
    import torch

    from clit_basicsr.archs.implicit import ImplicitNet

ROOT = 'experiments'
HELP = (
    f'a checkpoint; the name of an experiment in {ROOT}/; or a network that comes with the package (basicsr info lists '
    f'them); looked for in this order; default: {weights.DEFAULT} of the package'
)


def find_checkpoint(model: str | None = None) -> str:
    """The file that ``model`` means.

    Args:
        model: a checkpoint; or the name of an experiment below the working directory, whose ``net_g_latest.pth`` is
            taken, or the one with the highest iteration; or a network in the package; None: the package's own
            ``clit-light``, whatever there is in the working directory.

    Raises:
        UserError: none is found, with what there is; a folder cannot be read; or the package's file is damaged.
    """
    if model is None:
        return _default()
    if not isinstance(model, str):
        raise UserError(f'model: give a network, the path of a checkpoint, or a name; got {type(model).__name__}.')
    if osp.isfile(model):
        if weights.holds(model):  # by its path: verified all the same
            weights.file_of(osp.splitext(osp.basename(model))[0])
        return model
    if found := _newest_checkpoint(model):
        return found  # whatever the other folders are like
    if model in weights.names():
        return str(weights.file_of(model))
    if osp.isdir(model):
        inside = [name for name in names_in(model) if name.endswith(SUFFIXES)]
        example = f'such as {osp.join(model, inside[0])}' if inside else 'or train it first'
        raise UserError(
            f'model: {model!r} is a folder and not that of a trained experiment (no models/net_g_*.pth); give a '
            f'checkpoint, {example}; {_what_there_is()}.'
        )
    raise UserError(
        f'model: {model!r} is neither a checkpoint, nor a trained experiment, nor a network of the package; '
        f'{_what_there_is()}.'
    )


def _default() -> str:
    if weights.DEFAULT in weights.names():
        return str(weights.file_of(weights.DEFAULT))
    raise UserError(
        f'which network? {weights.DEFAULT}, the default, does not come with this version of the package; name one, '
        f'a checkpoint (.pth) or an experiment; {_what_there_is()}. To train one: scripts/quickstart.sh takes minutes.'
    )


def _what_there_is() -> str:
    """For a message: the networks that can be named here."""
    trained = _trained_experiments()
    here = f'trained here: {", ".join(trained)}' if trained else f'no experiment in {ROOT}/ is trained'
    return f'{here}; {weights.describe()}'


def load_network(path: str, device: torch.device) -> ImplicitNet:
    """The network of a checkpoint, on the device, in evaluation mode.

    Raises:
        UserError: see :func:`load_checkpoint` and :func:`check_double`; or the network has one fixed scale.
    """
    from clit_basicsr.archs import load_checkpoint
    from clit_basicsr.archs.implicit import ImplicitNet
    from clit_basicsr.archs.precision import check_double

    net = load_checkpoint(path)
    if not isinstance(net, ImplicitNet):
        raise UserError(
            f'{path} is a {type(net).__name__}, which works at one scale only; use an arbitrary-scale network such as '
            'LIT or CLIT.'
        )
    check_double(net, device)
    return net.to(device)


def _trained_experiments() -> dict[str, str]:
    """Name -> checkpoint."""
    names = names_in(ROOT) if osp.isdir(ROOT) else []
    return {name: found for name in names if (found := _newest_checkpoint(name))}


def _newest_checkpoint(experiment: str) -> str | None:
    """Of an experiment's name, or its folder."""
    roots = (ROOT, '') if os.sep in experiment else (ROOT,)  # a path may begin elsewhere
    folders = (osp.join(root, experiment, 'models') for root in roots)
    folder = next((one for one in folders if osp.isdir(one)), None)
    if folder is None:
        return None
    entries = names_in(folder)
    saved = {int(match[1]): match[0] for entry in entries if (match := re.fullmatch(r'net_g_(\d+)\.pth', entry))}
    if 'net_g_latest.pth' in entries:
        return osp.join(folder, 'net_g_latest.pth')
    return osp.join(folder, saved[max(saved)]) if saved else None


def label_of(path: str) -> str:
    """How a checkpoint is named in what a command prints: by its path, one of the package by its name."""
    return name_of(path) if weights.holds(path) else path


def name_of(path: str) -> str:
    """What people call a checkpoint: its experiment, or the file's name without its ending."""
    stem, folder = osp.splitext(osp.basename(path))[0], osp.dirname(osp.abspath(path))
    if stem.startswith('net_g_') and osp.basename(folder) == 'models':
        return osp.basename(osp.dirname(folder))
    return stem
