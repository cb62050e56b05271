"""``basicsr options``: the option files that come with the package, listed and copied; option_file.py reads them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from clit_basicsr.base.console import say
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import replacing
from clit_basicsr.base.messages import nearest
from clit_basicsr.cli import arguments, outputs

HELP = 'List the option files of the package, or copy one of them.'
EXAMPLES = (
    'basicsr options',
    'basicsr options train_clit_edsr                          # copied to options/train_clit_edsr.yml',
)
PACKAGE = Path(__file__).parents[1]
# In an installed package, where setup.py puts them; in a checkout.
FOLDERS = (PACKAGE / 'option_files', PACKAGE.parent / 'options')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', nargs='?', help='the file to copy; without it, all are listed')
    parser.add_argument('-o', '--output', metavar='FILE', help='where to; default: options/NAME.yml')
    arguments.add_force(parser, 'an existing file')


def run(args: argparse.Namespace) -> None:
    root, names = option_files()
    if args.name is None:
        for name in names:
            print(name)
        return
    name = args.name.removesuffix('.yml')
    if name not in names:
        raise UserError(
            f'no option file is called {args.name}; the nearest is {nearest(name, names)}; basicsr options lists all.'
        )
    source, output = root / f'{name}.yml', args.output or f'options/{name}.yml'
    if os.path.exists(output) and os.path.samefile(output, source):  # in a clone of the repository
        say(f'{output} is there already')
        return
    outputs.check([output], args.force, [str(source)])
    with replacing(output) as temporary:
        Path(temporary).write_bytes(source.read_bytes())
    say(output)


def option_files() -> tuple[Path, list[str]]:
    """The folder with the option files, and their names without the ending."""
    for root in FOLDERS:
        paths = [path.relative_to(root) for path in root.rglob('*.yml')]
        # configs of MMagic read others by relative paths: a copy of one alone would not work
        if names := sorted(path.with_suffix('').as_posix() for path in paths if path.parts[0] != 'mmagic'):
            return root, names
    raise UserError('the option files are missing; reinstall the package.')
