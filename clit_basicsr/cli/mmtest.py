"""``basicsr mmtest``: MMagic's tools/test.py, on a config checked here."""

from __future__ import annotations

import argparse

from clit_basicsr.cli import mmagic_tool

HELP = 'Test with MMagic as a config says; --help after it lists the flags of its tools/test.py.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    mmagic_tool.add_arguments(parser, 'the config, a checkpoint of either host, and flags such as --out FILE')


def run(args: argparse.Namespace) -> None:
    mmagic_tool.run('test', args.arguments)
