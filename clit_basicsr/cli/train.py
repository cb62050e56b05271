"""``basicsr train``: the host's train_pipeline, on options read and checked here."""

import argparse

from clit_basicsr.cli import options

HELP = 'Train a network as an option file says; experiments/ is created in the working directory.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    options.run_pipeline('train', args)
