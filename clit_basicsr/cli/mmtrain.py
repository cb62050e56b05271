"""``basicsr mmtrain``: MMagic's tools/train.py, on a config checked here."""

from __future__ import annotations

import argparse

from clit_basicsr.cli import mmagic_tool

HELP = 'Train a network with MMagic, as described by a config.'
EXAMPLES = (
    'basicsr mmtrain options/mmagic/clit-edsr-norm_c64b16_1xb32-3500k_div2k.py --resume',
    'basicsr mmtrain CONFIG --cfg-options train_dataloader.batch_size=8 --work-dir work_dirs/mine',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    mmagic_tool.add_arguments(parser, "the flags of MMagic's tools/train.py, which CONFIG --help lists")


def run(args: argparse.Namespace) -> None:
    mmagic_tool.run('train', [args.config, *args.arguments])
