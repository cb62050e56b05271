"""What ``mmtrain`` and ``mmtest`` share: the command line is MMagic's, its config is checked here."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from typing import Any

from clit_basicsr.base.errors import UserError

NEEDED = ('mmagic', 'mmengine', 'mmcv')


def add_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """The config, and all that follows it for MMagic's own parser; ``what``: the help of the latter."""
    parser.add_argument('config', metavar='CONFIG', help='a config of MMagic, Python, YAML or JSON')
    parser.add_argument('arguments', metavar='...', nargs=argparse.REMAINDER, help=what)


def run(name: str, arguments: list[str]) -> None:
    """Runs MMagic's tool of that name.

    Raises:
        UserError: MMagic is not installed; the config cannot be read, or holds a mistake.
    """
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise UserError(f'{", ".join(missing)} is not installed; scripts/setup.sh --mmagic installs MMagic.')
    if not {'-h', '--help'} & set(arguments):
        check_files(name, arguments)
    from clit_basicsr.cli.check_mmagic import check_config
    from clit_basicsr.cli.orphans import end_with_launcher
    from clit_basicsr.hosts.mmagic.tools import run_tool

    def check(cfg: Any) -> None:
        check_config(cfg, training=name == 'train')
        if cfg.get('launcher', 'none') != 'none':
            end_with_launcher()

    run_tool(name, f'basicsr mm{name}', arguments, check)


def check_files(name: str, arguments: list[str]) -> None:
    """Raises UserError for a config or checkpoint that is not there, where these come first, as they should."""
    files = arguments[: 2 if name == 'test' else 1]
    for what, file in zip(('config', 'checkpoint'), files, strict=False):
        if file.startswith('-'):
            return
        if not os.path.isfile(os.path.expanduser(file)):
            reason = 'is a folder' if os.path.isdir(file) else 'does not exist'
            raise UserError(f'{what} {file} {reason}.')
