"""Test sets that are not on this machine: named and left out, so that the others are measured."""

from __future__ import annotations

from os import path as osp

from clit_basicsr.base.errors import UserError


def leave_out_missing_sets(opt: dict) -> dict[str, list[str]]:
    """Takes test sets out of the options whose folder is not there.

    A folder that is there and holds the wrong images is an error still, see `check_options`.

    Args:
        opt: Options with their paths expanded; changed in place.

    Returns:
        The names of the sets that were taken out, by the folder that they lack.

    Raises:
        UserError: No set is left.
    """
    missing: dict[str, list[str]] = {}
    for phase, dataset in list(opt['datasets'].items()):
        roots = (dataset.get(key) for key in ('dataroot_gt', 'dataroot_lq'))
        absent = [root for root in roots if isinstance(root, str) and not osp.isdir(root)]
        if absent:
            missing.setdefault(absent[0], []).append(dataset['name'])
            del opt['datasets'][phase]
    if missing and not opt['datasets']:
        folders = list(missing)
        more = f' and {len(folders) - 4} more' if len(folders) > 4 else ''
        raise UserError(
            f'none of the test sets exists: missing {", ".join(folders[:4])}{more}; put the images there, or name '
            'their folders in the option file (dataroot_gt, dataroot_lq)'
        )
    return missing


def describe(missing: dict[str, list[str]]) -> list[str]:
    """One line for each folder that is not there."""
    return [
        f'skipped {", ".join(names)}: {what_is_wrong(folder)}; put the images there, or name their folder in '
        'the option file (dataroot_gt, dataroot_lq)'
        for folder, names in missing.items()
    ]


def what_is_wrong(folder: str) -> str:
    """What to say of a path that is not a folder."""
    return f'{folder} is a file, not a folder' if osp.exists(folder) else f'folder {folder} does not exist'
