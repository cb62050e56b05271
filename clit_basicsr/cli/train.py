"""``basicsr train``: the host's train_pipeline, on options read and checked here."""

import argparse

from clit_basicsr.cli import arguments, option_file

HELP = 'Train a network as an option file says; experiments/ is created in the working directory.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_pipeline(parser)


def run(args: argparse.Namespace) -> None:
    opt = option_file.read(args)
    from clit_basicsr.cli import options

    options.run_pipeline('train', opt, args)
