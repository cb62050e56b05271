"""Puts a trained network into the package: its averaged weights in half precision, with its card.

    python scripts/pack_weights.py EXPERIMENT clit-light --card card.json
    basicsr test -opt TEST.yml --force_yml path:pretrain_network_g=clit_basicsr/weights/clit-light.safetensors
    python scripts/pack_weights.py EXPERIMENT clit-light --card card.json --figures results/TEST/summary.json -f

card.json holds what only its author knows: description, license, data (name, origin and license of each source),
recipe, hours, limits. The figures are those of ``basicsr test``, measured with the packed file: half precision may
change the last digit. The same weights give the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from clit_basicsr import weights
from clit_basicsr.archs import load_checkpoint
from clit_basicsr.base.checkpoints import read_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import replacing
from clit_basicsr.base.messages import scale_text
from clit_basicsr.base.option_types import plain
from clit_basicsr.base.safetensors_file import write_safetensors
from clit_basicsr.pictures.networks import find_checkpoint

NAME = re.compile('[a-z][a-z0-9]*(-[a-z0-9]+)*')
FILLED_IN = ('figures', 'sha256', 'bytes', 'parameters')


def pack(checkpoint: str, name: str, card: dict[str, Any], figures: list[dict], force: bool = False) -> Path:
    """Writes the file and the card of a network into the package.

    Args:
        checkpoint: of ``basicsr train``; ``params_ema`` is taken, or ``params`` where nothing was averaged.
        card: without what is filled in here.
        figures: see :data:`clit_basicsr.weights.CARD`; [] before they are measured.

    Raises:
        UserError: the package does not accept the name, the card, the weights or the file's size; nothing is written.
    """
    if not NAME.fullmatch(name):
        raise UserError(f'{name!r}: a name consists of lower-case letters, digits and hyphens between them.')
    try:
        weights.check_card(card, FILLED_IN)
    except UserError as error:
        raise UserError(f'card: {error}.') from error
    if filled := [key for key in FILLED_IN if key in card]:
        raise UserError(f'card: {", ".join(filled)} must not be in it; the script fills it in.')
    target, beside = weights.FOLDER / f'{name}.safetensors', weights.FOLDER / f'{name}.json'
    if target.exists() and not force:
        raise UserError(f'{target} already exists; use -f to overwrite it.')
    net = load_checkpoint(checkpoint)
    tensors = halved(net)
    network_g = json.dumps(plain(read_checkpoint(checkpoint)['network_g']))
    with replacing(str(target)) as temporary:
        write_safetensors(temporary, tensors, {'format': 'pt', 'network_g': network_g})
        content = Path(temporary).read_bytes()
        check_size(target, len(content))
        load_checkpoint(temporary)  # as everybody will
        filled_in = {
            'figures': figures,
            'sha256': hashlib.sha256(content).hexdigest(),
            'bytes': len(content),
            'parameters': sum(parameter.numel() for parameter in net.parameters()),
        }
        with replacing(str(beside)) as unfinished:
            text = json.dumps({**card, **filled_in}, indent=2, ensure_ascii=False)
            Path(unfinished).write_text(f'{text}\n', encoding='utf-8')
    return target


def halved(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters in half precision, buffers as they are: among them are exact constants and counts.

    Raises:
        UserError: a parameter is too large for half precision.
    """
    parameters = {name for name, _ in net.named_parameters()}
    tensors = {}
    for name, value in net.state_dict().items():
        tensors[name] = value.half() if name in parameters else value
        if not tensors[name].isfinite().all():
            raise UserError(f'{name} holds {value.abs().max():.4g}, which half precision cannot hold.')
    return tensors


def check_size(target: Path, size: int) -> None:
    files = (weights.FOLDER / f'{name}.safetensors' for name in weights.names())
    others = sum(path.stat().st_size for path in files if path != target)
    for total, most, what in (
        (size, weights.MOST_BYTES, 'the file'),
        (size + others, weights.MOST_BYTES_TOGETHER, 'all files together'),
    ):
        if total > most:
            raise UserError(
                f'{what} would have {total:,} bytes; at most {most:,} are allowed. Train a smaller network.'
            )


def read_figures(path: str) -> list[dict]:
    """The PSNR of every data set and scale in a ``summary.json`` of ``basicsr test``."""
    summary = read_json(path)
    try:
        metric = summary['psnr']
        figures = [
            {
                'data_set': row['data_set'],
                'scale': scale_text(row['scale']),
                'protocol': row['protocol'],
                'lr': row['lr'],
                'psnr': round(row['values'][metric], 3),
            }
            for row in summary['rows']
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f'{path} is not a summary.json of basicsr test with PSNR ({error!r}).') from error
    if not figures or not all(math.isfinite(one['psnr']) for one in figures):
        raise UserError(f'{path} holds no figures.')
    return figures


def read_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error}).') from error
    except ValueError as error:
        raise UserError(f'{path} is not JSON ({error}).') from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='an experiment in experiments/, or a checkpoint')
    parser.add_argument('name', help='of the network in the package')
    parser.add_argument('--card', required=True, metavar='JSON', help='the part of the card that its author writes')
    parser.add_argument('--figures', metavar='JSON', help='summary.json of basicsr test')
    parser.add_argument('-f', '--force', action='store_true', help='overwrite a network that exists')
    args = parser.parse_args()
    try:
        card, figures = read_json(args.card), read_figures(args.figures) if args.figures else []
        target = pack(find_checkpoint(args.model), args.name, card, figures, args.force)
    except UserError as error:
        print(f'pack_weights: error: {error}', file=sys.stderr)
        return 1
    print(f'{target}: {os.path.getsize(target):,} bytes, {len(figures)} figures')
    if not figures:
        print('no figures yet: measure this file with basicsr test, then pack again with --figures')
    return 0


if __name__ == '__main__':
    sys.exit(main())
