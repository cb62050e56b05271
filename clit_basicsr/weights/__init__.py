"""Trained networks that come with the package, each ``<name>.safetensors`` with its card ``<name>.json``.

A card says where the weights come from and what they can do, and has the SHA-256 of the file. Files are made by
``scripts/pack_weights.py``; nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.file_kinds import SAFETENSORS

FOLDER = Path(__file__).parent
DEFAULT = 'clit-light'
# Of one file, and of all files together; bytes.
MOST_BYTES, MOST_BYTES_TOGETHER = 3_000_000, 6_000_000
# What every card says, and the type of it.
CARD: dict[str, type | tuple[type, ...]] = {
    'description': str,  # the network, in a line
    'license': str,  # of the weights
    'data': list,  # {name, origin, license} of each source of pictures
    'recipe': str,  # option file, iterations, how it was trained
    'hours': (int, float),  # how long, and on what is said in the recipe
    'limits': str,  # what it is bad at
    'figures': list,  # {data_set, scale, protocol, lr, psnr}: dB, as measured with this very file
    'sha256': str,  # of the file, hexadecimal
    'bytes': int,  # of the file
    'parameters': int,
}
REINSTALL = 'install the package again'


def names() -> list[str]:
    """The networks in the package, the default first."""
    found = sorted(path.stem for path in FOLDER.glob(f'[!.]*{SAFETENSORS}'))  # a temporary name begins with a point
    return sorted(found, key=lambda name: name != DEFAULT)


def describe() -> str:
    """What networks there are, for a message."""
    return f'in the package: {", ".join(names())}' if names() else 'no network comes with this version of the package'


def holds(path: str | Path) -> bool:
    """Whether a file is one of the package."""
    return Path(path).suffix == SAFETENSORS and Path(path).resolve().parent == FOLDER.resolve()


def file_of(name: str) -> Path:
    """The file of a network in the package, once its SHA-256 is that of its card.

    Raises:
        UserError: there is no such network, its card is missing or broken, or the file is damaged.
    """
    path = FOLDER / f'{name}{SAFETENSORS}'
    if name not in names():
        raise UserError(f'the network {name} is not there; {describe()}.')
    expected = card_of(name)['sha256']
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f'the network {path} cannot be read ({error.strerror or error}).') from error
    if found != expected:
        raise UserError(f'the network {path} is damaged: its SHA-256 is not that of its card; {REINSTALL}.')
    return path


def card_of(name: str) -> dict[str, Any]:
    """The card of a network in the package; keys: :data:`CARD`.

    Raises:
        UserError: it is missing or not a card.
    """
    path = FOLDER / f'{name}.json'
    try:
        card = json.loads(path.read_text(encoding='utf-8'))
        check_card(card)
    except OSError as error:
        raise UserError(f'the card {path} cannot be read ({error.strerror or error}); {REINSTALL}.') from error
    except (ValueError, RecursionError) as error:  # a UserError of check_card among them
        raise UserError(f'{path} is damaged or not a card ({error}); {REINSTALL}.') from error
    return card


def check_card(card: Any, filled_in: tuple[str, ...] = ()) -> None:
    """Raises UserError unless a card has all of :data:`CARD` but ``filled_in``, each of its type, and nothing else."""
    if not isinstance(card, dict):
        raise UserError('a card is a table')
    for key, kind in CARD.items():
        if key in filled_in:
            continue
        if key not in card:
            raise UserError(f'{key} is missing')
        empty = card[key] in ('', []) and key != 'figures'  # which may not be measured yet
        if not isinstance(card[key], kind) or isinstance(card[key], bool) or empty:
            raise UserError(f'{key} is {card[key]!r}, which cannot be')
    for key in card:
        if key not in CARD:
            raise UserError(f'{key} is not a key of a card; keys: {", ".join(CARD)}')
    for source in card.get('data', ()):
        if not isinstance(source, dict) or not all(
            isinstance(source.get(key), str) and source[key] for key in ('name', 'origin', 'license')
        ):
            raise UserError('each entry of data has a name, an origin and a license')


def card_lines(name: str) -> list[str]:
    """A card as lines for people."""
    card = card_of(name)
    lines = [f'{name}: {card["description"]}']
    lines += [f'  {key}: {card[key]}' for key in ('license', 'recipe', 'hours', 'limits')]
    lines += [f'  data: {one["name"]} ({one["license"]}), {one["origin"]}' for one in card['data']]
    by_set: dict[tuple[str, str, str], list[str]] = {}
    for one in card['figures']:
        key = one['data_set'], one['protocol'], one['lr']
        by_set.setdefault(key, []).append(f'x{one["scale"]} {one["psnr"]:.2f}')
    for (data_set, protocol, lr), values in by_set.items():
        lines.append(f'  {data_set}, PSNR in dB ({protocol}, LR {lr}): {", ".join(values)}')
    return [*lines, f'  sha256: {card["sha256"]}']
