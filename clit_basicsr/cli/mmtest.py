"""``basicsr mmtest``: MMagic's tools/test.py, on a config checked here."""

from __future__ import annotations

import argparse

from clit_basicsr.cli import mmagic_tool

HELP = 'Test a network with MMagic, as described by a config.'
EXAMPLES = (
    'basicsr mmtest CONFIG work_dirs/mine/iter_3500000.pth --out figures.json',
    'basicsr mmtest CONFIG experiments/train_clit_edsr/models/net_g_latest.pth',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a checkpoint of either host, and the flags of MMagic's tools/test.py, which CONFIG --help lists"
    mmagic_tool.add_arguments(parser, what)


def run(args: argparse.Namespace) -> None:
    mmagic_tool.run('test', [args.config, *args.arguments])
