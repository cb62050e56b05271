"""Arguments that several commands share, with the same letters and the same help."""

import argparse
from typing import Any, NoReturn

from clit_basicsr.base import devices
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.messages import nearest
from clit_basicsr.pictures import networks


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one line, as every other mistake is; argparse's own error prints the usage above it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what is not known here, by the command's own name; argparse leaves that to the parser above."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = nearest(unknown[0].partition('=')[0], self._option_string_actions, likeness=0.6)
            self.error(f'unrecognized arguments: {" ".join(unknown)}' + (f', did you mean {near}?' if near else ''))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; `{self.prog} --help` lists the options')


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-m', '--model', help=networks.HELP)


def add_loudness(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument('-q', '--quiet', action='store_true', help='print only errors, warnings and results')
    group.add_argument(
        '-v', '--verbose', action='store_true', help='print versions first, and a traceback with an error'
    )


def add_device_and_force(parser: argparse.ArgumentParser, what: str) -> None:
    """``what``: what --force overwrites, in the words of the help."""
    parser.add_argument('--device', help=devices.HELP)
    add_force(parser, what)


def add_force(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument('-f', '--force', action='store_true', help=f'overwrite {what}')


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """BasicSR's own flags, of train and test."""
    parser.add_argument('-opt', '--opt', required=True, metavar='FILE', help='option file, YAML')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument(
        '--auto_resume', action='store_true', help='train: resume from the newest state of this experiment'
    )
    parser.add_argument(
        '--debug', action='store_true', help='run as debug_NAME; train: validate, save and log every few iterations'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='given by the launcher')
    parser.add_argument(
        '--force_yml',
        nargs='+',
        metavar='KEY=VALUE',
        help='override options of the file: train:ema_decay=0.999 train:stages:0:lr=1e-4',
    )
