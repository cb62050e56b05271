"""``basicsr test``: the host's test_pipeline, on options read and checked here, and a table of what it measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from clit_basicsr.base.errors import UserError
from clit_basicsr.cli import arguments, option_file

HELP = 'Test a network as described by an option file; results/ is created in the working directory.'
EXAMPLES = (
    'basicsr test -opt options/test_bicubic.yml',
    'basicsr test -opt options/test_clit_edsr.yml --force_yml path:pretrain_network_g=clit.pth',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_pipeline(parser)


def run(args: argparse.Namespace) -> None:
    opt = option_file.read(args)
    from clit_basicsr.cli import options
    from clit_basicsr.report.test_run import Measurement, write_summary

    measurements: list[Measurement] = []
    failed: dict[str, str] = {}

    def watch(model: Any) -> None:
        opt['warnings'] = model.opt.setdefault('warnings', [])  # the host gave it a copy of the options
        record(model, measurements, failed)

    opt = options.run_pipeline('test', opt, args, watch=watch)
    if opt['rank'] == 0 and any(one.values for one in measurements):
        write_summary(opt, measurements, failed)
    if failed:
        raise UserError(
            f'{len(failed)} of the test sets could not be measured ({", ".join(failed)}); the reason is above'
        )


def record(model: Any, measurements: list, failed: dict[str, str]) -> None:
    """Makes a model, ours or the host's, leave the means of its metrics behind after each test set.

    Args:
        failed: takes the reason for each set that cannot be measured; the others are. In a distributed run such a set
            ends the test, as the ranks go through the sets together.
    """
    from clit_basicsr.report.test_run import Measurement

    validation: Callable = model.validation

    def recorded_validation(dataloader: Any, *args: Any, **kwargs: Any) -> None:
        model.__dict__.pop('metric_results', None)  # of the set before, should this one have no figures
        try:
            validation(dataloader, *args, **kwargs)
        except UserError as error:
            if model.opt['dist']:
                raise
            name = dataloader.dataset.opt['name']
            print(f'basicsr: error: {name}: {error}', file=sys.stderr)
            failed[name] = str(error)
            return
        values = {name: float(value) for name, value in getattr(model, 'metric_results', {}).items()}
        measurements.append(Measurement(dataloader.dataset, values))

    model.validation = recorded_validation
