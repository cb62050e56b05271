"""Names that become files and folders, and keys at the top of an option file."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest

LONGEST_NAME = 150  # bytes; what the host appends must fit as well
TOP_KEYS = (
    *('name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'datasets', 'network_g', 'path', 'train', 'val'),
    *('logger', 'dist_params', 'find_unused_parameters', 'paper_row'),
)
FREE = ('_', 'x-')  # for YAML anchors
LIKELY_A_TYPO = 0.7


def check_name(name: Any, where: str) -> None:
    """Raises UserError for a name that cannot be that of a folder, or would lead out of its own."""
    if not isinstance(name, str):
        raise UserError(f'{where} must be a word, got {name!r}')
    if not name.strip():
        raise UserError(f"{where} is empty; the run's folder is named after it")
    if name != name.strip() or name.startswith(('.', '-')):
        raise UserError(f'{where}: {name!r}: a name must not begin with . or -, nor begin or end with a space')
    if '/' in name or '\\' in name or any(not one.isprintable() for one in name):
        raise UserError(f'{where}: {name[:40]!r} names a folder, so it may hold no /, \\ or control characters')
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f'{where}: {name[:20]}... is longer than {LONGEST_NAME} bytes')


def check_top_keys(opt: dict, ours: bool) -> None:
    """Raises UserError for a key that is not known.

    Args:
        ours: whether the model is of this package; models of the host have keys of their own, so only what looks like
            a misspelt key is refused with them.
    """
    for key in opt:
        if not isinstance(key, str):
            raise UserError(f'{key!r} is not an option; keys are words')
        if key in TOP_KEYS or key.startswith((*FREE, 'network_')):
            continue
        near = nearest(key, TOP_KEYS, 0 if ours else LIKELY_A_TYPO)
        if near:
            raise UserError(
                f'{key} is not an option; the nearest one is {near} (keys that begin with _ or x- are free)'
            )


def check_sets(opt: dict) -> None:
    """Raises UserError for two sets of one name, whose figures and pictures would be mixed."""
    seen: dict[str, str] = {}
    for phase, dataset in opt['datasets'].items():
        check_name(dataset.get('name'), f'datasets:{phase}:name')
        if phase.split('_')[0] == 'train':
            continue
        if dataset['name'] in seen:
            raise UserError(
                f'datasets:{phase}:name: {dataset["name"]!r} is the name of datasets:{seen[dataset["name"]]} too; '
                'their figures and pictures would be mixed'
            )
        seen[dataset['name']] = phase


def check_place_of_file(opt: dict, file: str, resuming: bool) -> None:
    """Raises UserError for an option file inside the experiment that is about to be archived.

    Args:
        file: path of the option file.
        resuming: whether the run is resumed in its folder.
    """
    root = PurePath(opt['path']['experiments_root'])
    if not resuming and root in PurePath(file).parents:
        raise UserError(
            f'option file {file} lies in the folder of this experiment, which is archived before a new run; copy it to '
            'another place, or resume with --auto_resume'
        )
