"""``basicsr test``: the host's test_pipeline, on options read and checked here, and a table of what it measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from clit_basicsr.cli import options

HELP = 'Test a network as an option file says; results/ is created in the working directory.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from clit_basicsr.report.test_run import Measurement, write_summary

    measurements: list[Measurement] = []
    opt = options.run_pipeline('test', args, watch=lambda model: record(model, measurements))
    if opt['rank'] == 0 and any(one.values for one in measurements):
        write_summary(opt, measurements)


def record(model: Any, measurements: list) -> None:
    """Makes a model, ours or the host's, leave the means of its metrics behind after each test set."""
    from clit_basicsr.report.test_run import Measurement

    validation: Callable = model.validation

    def recorded_validation(dataloader: Any, *args: Any, **kwargs: Any) -> None:
        validation(dataloader, *args, **kwargs)
        values = {name: float(value) for name, value in getattr(model, 'metric_results', {}).items()}
        measurements.append(Measurement(dataloader.dataset, values))

    model.validation = recorded_validation
