"""Arguments that several commands share, with the same letters and the same help."""

import argparse

from clit_basicsr.base import devices
from clit_basicsr.pictures import networks


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', help=networks.HELP)


def add_device_and_force(parser: argparse.ArgumentParser, what: str) -> None:
    """``what``: what --force overwrites, in the words of the help."""
    parser.add_argument('--device', help=devices.HELP)
    add_force(parser, what)


def add_force(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument('-f', '--force', action='store_true', help=f'overwrite {what}')
