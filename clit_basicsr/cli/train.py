"""``basicsr train``: the host's train_pipeline, on options read and checked here."""

import argparse

from clit_basicsr.cli import arguments, option_file

HELP = 'Train a network as described by an option file; experiments/ is created in the working directory.'
EXAMPLES = (
    'basicsr train -opt options/train_clit_edsr.yml --auto_resume',
    'basicsr train -opt my.yml --force_yml train:stages:0:iters=500000 manual_seed=1',
    'torchrun --nproc_per_node=4 -m clit_basicsr train -opt my.yml --launcher pytorch',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_pipeline(parser)


def run(args: argparse.Namespace) -> None:
    opt = option_file.read(args)
    from clit_basicsr.cli import options

    options.run_pipeline('train', opt, args)
