"""``basicsr mmtrain``: MMagic's tools/train.py, on a config checked here."""

from __future__ import annotations

import argparse

from clit_basicsr.cli import mmagic_tool

HELP = 'Train with MMagic as a config says; --help after it lists the flags of its tools/train.py.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    mmagic_tool.add_arguments(parser, 'the config, and flags such as --resume --cfg-options KEY=VALUE')


def run(args: argparse.Namespace) -> None:
    mmagic_tool.run('train', args.arguments)
