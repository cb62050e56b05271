"""Which network answers: that of a checkpoint, of an experiment, or of the only experiment there is."""

from __future__ import annotations

import os
import re
from os import path as osp
from typing import TYPE_CHECKING

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.file_kinds import SUFFIXES
from clit_basicsr.base.files import names_in

if TYPE_CHECKING:
    import torch

    from clit_basicsr.archs.implicit import ImplicitNet

ROOT = 'experiments'
HELP = f'a checkpoint, or the name of an experiment in {ROOT}/; default: the only trained one there'


def find_checkpoint(model: str | None = None) -> str:
    """The file that ``model`` means.

    Args:
        model: a checkpoint; or the name of an experiment below the working directory, whose ``net_g_latest.pth`` is
            taken, or the one with the highest iteration; None: the only experiment that has one.

    Raises:
        UserError: none is found, or several for None; or a folder cannot be read.
    """
    if model is not None and osp.isfile(model):
        return model
    if model is not None and (found := _newest_checkpoint(model)):
        return found  # whatever the other folders are like
    trained = _trained_experiments()
    names = f'trained here: {", ".join(trained)}' if trained else f'no experiment in {ROOT}/ is trained'
    if model is not None:
        if osp.isdir(model):
            inside = [name for name in names_in(model) if name.endswith(SUFFIXES)]
            example = f'such as {osp.join(model, inside[0])}' if inside else 'or train it first'
            raise UserError(
                f'--model: {model} is a folder and not that of a trained experiment (no models/net_g_*.pth); give a '
                f'checkpoint, {example}; {names}.'
            )
        raise UserError(f'--model: {model} is neither a checkpoint nor a trained experiment; {names}.')
    if len(trained) != 1:
        remedy = '' if trained else ' Train one first: scripts/quickstart.sh takes minutes.'
        raise UserError(f'which network? Give --model, a checkpoint (.pth) or an experiment; {names}.{remedy}')
    return next(iter(trained.values()))


def load_network(path: str, device: torch.device) -> ImplicitNet:
    """The network of a checkpoint, on the device, in evaluation mode.

    Raises:
        UserError: see :func:`load_checkpoint`; or the network has one fixed scale.
    """
    from clit_basicsr.archs import load_checkpoint
    from clit_basicsr.archs.implicit import ImplicitNet

    net = load_checkpoint(path)
    if not isinstance(net, ImplicitNet):
        raise UserError(f'{path} is a {type(net).__name__}, which works at one scale only; use LIT, CLIT or a peer.')
    return net.to(device)


def _trained_experiments() -> dict[str, str]:
    """Name -> checkpoint."""
    names = names_in(ROOT) if osp.isdir(ROOT) else []
    return {name: found for name in names if (found := _newest_checkpoint(name))}


def _newest_checkpoint(experiment: str) -> str | None:
    """Of an experiment's name, or its folder."""
    folder = osp.join(ROOT, experiment.removeprefix(f'{ROOT}{os.sep}'), 'models')
    entries = names_in(folder) if osp.isdir(folder) else []
    saved = {int(match[1]): match[0] for entry in entries if (match := re.fullmatch(r'net_g_(\d+)\.pth', entry))}
    if 'net_g_latest.pth' in entries:
        return osp.join(folder, 'net_g_latest.pth')
    return osp.join(folder, saved[max(saved)]) if saved else None


def name_of(path: str) -> str:
    """What people call a checkpoint: its experiment, or the file's name without its ending."""
    stem, folder = osp.splitext(osp.basename(path))[0], osp.dirname(osp.abspath(path))
    if stem.startswith('net_g_') and osp.basename(folder) == 'models':
        return osp.basename(osp.dirname(folder))
    return stem
