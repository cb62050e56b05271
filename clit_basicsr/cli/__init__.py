"""The command ``basicsr``: one module for each sub-command.

To add a command: a module here with ``HELP``, ``EXAMPLES`` (lines that end its help), ``add_arguments(parser)`` and
``run(args)``, and its name in :data:`COMMANDS`. At its top it imports nothing that imports torch, which takes seconds:
``run`` does, once the command line is checked as far as it can be without.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import io
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType

import clit_basicsr
from clit_basicsr.base import console
from clit_basicsr.base.errors import Terminated, UserError
from clit_basicsr.base.messages import nearest
from clit_basicsr.base.stopping import ignore_signals_at_exit, unwinding_on_sigterm
from clit_basicsr.cli import arguments, orphans  # noqa: F401  the latter notes the parent process: before torch is imported
from clit_basicsr.cli.allocator import keep_freed_memory

COMMANDS = (
    'train',
    'test',
    'upscale',
    'attention',
    'compare',
    'zoom',
    'convert',
    'prepare',
    'options',
    'info',
    'mmtrain',
    'mmtest',
)
# They gain hardly anything from keeping freed memory and would take more at their peak, see allocator.py.
TRAININGS = ('train', 'mmtrain')
DISTRIBUTION = 'clit-basicsr'
# Python's garbage collector, which looks for cycles whenever that many objects more are alive. The imports make some
# hundred thousand that all stay: at Python's own 700 a tenth of a small picture's time is spent on looking at them.
OBJECTS_BETWEEN_COLLECTIONS = 50_000
# Where the module of a command has another name than the command.
MODULES = {'options': 'option_files'}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: this process's) and returns its exit code: 1 for a UserError, 130 for Ctrl-C, 143
    for SIGTERM."""
    line = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # names of files need not be text
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)  # or the interpreter would look through all objects several times before it ends
    try:
        warn_of_other_command()
        check_command(line)
        args = make_parser().parse_args(line)
        console.set_level(console.QUIET if args.quiet else console.VERBOSE if args.verbose else console.NORMAL)
        if args.verbose:
            print(f'{DISTRIBUTION} {clit_basicsr.__version__}, Python {sys.version}, {sys.platform}', file=sys.stderr)
        if args.command in TRAININGS:  # which save a state first
            module_of(args.command).run(args)
        else:
            keep_freed_memory()
            with unwinding_on_sigterm():
                module_of(args.command).run(args)
    except UserError as error:
        if console.is_verbose():
            traceback.print_exc()
        print(f'basicsr: error: {one_line(error)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        ignore_signals_at_exit()
        print('; '.join(['basicsr: interrupted', *filter(None, map(str, stop.args))]), file=sys.stderr)
        return 130
    except Terminated as stop:
        ignore_signals_at_exit()
        print(f'basicsr: {stop}', file=sys.stderr)
        return 143
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of every sub-command."""
    parser = arguments.Parser(
        prog='basicsr',
        description='BasicSR with LIT and CLIT, arbitrary-scale super-resolution.',
        epilog='basicsr COMMAND --help lists the options of a command.',
    )
    parser.add_argument('-V', '--version', action='version', version=f'{DISTRIBUTION} {clit_basicsr.__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name in COMMANDS:
        module = module_of(name)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog='examples:\n' + '\n'.join(f'  {line}' for line in getattr(module, 'EXAMPLES', ())),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        arguments.add_loudness(command)
    return parser


def module_of(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f'clit_basicsr.cli.{MODULES.get(name, name)}')


def check_command(line: list[str]) -> None:
    """Argparse would answer an unknown command with all the known ones; the nearest is more to the point."""
    if line and not line[0].startswith('-') and line[0] not in COMMANDS:
        near = nearest(line[0], COMMANDS)
        raise UserError(f'unknown command {line[0]!r}; the nearest is {near!r}; basicsr --help lists all of them')


def warn_of_other_command() -> None:
    """BasicSR ships no console command; should it, or another distribution, have one named like ours, say so."""
    for entry in metadata.entry_points(group='console_scripts', name='basicsr'):
        owner = entry.dist.metadata['Name'] if entry.dist else DISTRIBUTION
        if re.sub(r'[-_.]+', '-', owner).lower() != DISTRIBUTION:
            print(
                f'basicsr: {owner} also installs a command named basicsr ({entry.value}); this one is from '
                f'{DISTRIBUTION}; python -m clit_basicsr always runs it',
                file=sys.stderr,
            )


def one_line(error: UserError) -> str:
    """The message alone; torch wraps what is raised in a data loader's worker into the text of a traceback."""
    lines = str(error).strip().splitlines() or ['unknown error']
    return lines[-1].removeprefix(f'{UserError.__module__}.{UserError.__name__}: ')
