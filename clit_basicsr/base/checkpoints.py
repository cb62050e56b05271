"""Reading and writing checkpoints: the one place that opens them. Only tensors and plain values are read, never code.

Files of torch.save are zip archives. What we write has a SHA-256 of all records in the archive's comment, where no
reader looks for data: every program that reads such files reads ours, and a file that it saves again has none.
"""

import hashlib
import json
import os
import pickle
import re
import struct
import zipfile
import zlib

import torch
from torch import Tensor

from clit_basicsr.base import file_kinds
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.file_kinds import FLAX, SAFETENSORS
from clit_basicsr.base.flax_file import read_flax
from clit_basicsr.base.safetensors_file import read_safetensors

DIGEST = b'sha256:'
# Before the names of the network's weights in checkpoints of MMagic, and before all names in its averages.
GENERATOR, AVERAGED = 'generator.', 'module.'
CHUNK = 1 << 20  # bytes
# What zipfile and torch.load raise upon damaged files: their parsers trust what they read, and stop anywhere.
UNREADABLE = (
    *(RuntimeError, EOFError, OSError, LookupError, ValueError, AttributeError, TypeError, AssertionError),
    *(ArithmeticError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile),
)


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The content of a checkpoint or a training state, on the CPU: tensors and plain values.

    An archive's checksums are verified, and its digest where it has one. A bare pickle, the format before torch 1.6,
    has none: damage within its numbers goes unnoticed.

    A checkpoint of MMagic that says which network of this package it is of comes back in BasicSR's layout.

    Args:
        path: of a file of ``torch.save``; or ending in .safetensors: its tensors are ``params``, its metadata next to
            them; or in .pkl: a published Thera, see :func:`clit_basicsr.base.flax_file.read_flax`.

    Raises:
        UserError: the file does not exist, is damaged or something else, or holds more than tensors and plain values.
    """
    path = os.fspath(path)
    file_kinds.check_regular(path)
    if path.endswith(FLAX):
        return read_flax(path)
    if path.endswith(SAFETENSORS):
        return _read_safetensors(path)
    if file_kinds.check_may_be_checkpoint(path):
        _verify_archive(path)
    try:
        # Explicit, so that TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD in the environment does not change it.
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from error
    except UNREADABLE as error:
        raise UserError(f'checkpoint {path} cannot be read; it is damaged or truncated{_reason(error)}.') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a checkpoint.')
    return _of_basicsr(content)


def write_checkpoint(content: dict, path: str) -> None:
    """``torch.save``, and a digest of the result in it. The file is written in place: give a temporary name."""
    torch.save(content, path)  # by name: given a Python file, it turns Ctrl-C into a RuntimeError
    with zipfile.ZipFile(path, 'a') as archive:
        archive.comment = DIGEST + _digest(archive).encode()


def weights_in(content: dict, key: str | None, path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights of a checkpoint, key -> tensor.

    Args:
        content: from :func:`read_checkpoint`.
        key: where the weights are in it; None: they are the content itself.
        path: the file, for messages.

    Raises:
        UserError: what is there is not a table of tensors.
    """
    weights = content if key is None else content[key]
    if not isinstance(weights, dict):
        raise UserError(f'{path} is not a checkpoint: {key} in it is a {type(weights).__name__}, not weights by name.')
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            where = f'{name!r}' if key is None else f'{name!r} of {key}'
            raise UserError(
                f'{path} is not a checkpoint of weights: {where} is a {type(value).__name__}, not a tensor.'
            )
    return weights


def nonfinite(weights: dict[str, Tensor]) -> dict[str, int]:
    """How many values are NaN or infinite, for each tensor that holds any."""
    counts = {key: int(value.numel() - value.isfinite().sum()) for key, value in weights.items()}
    return {key: count for key, count in counts.items() if count}


def check_finite(weights: dict[str, Tensor], source: str) -> None:
    """Raises UserError, with the first of them, if weights hold NaN or infinity."""
    bad = nonfinite(weights)
    if bad:
        first = next(iter(bad))
        raise UserError(
            f'{source} are not finite: {sum(bad.values())} values are NaN or infinite, in {len(bad)} of '
            f'{len(weights)} tensors, first in {first}; the training diverged, so take an earlier checkpoint.'
        )


def _of_basicsr(content: dict) -> dict:
    """MMagic's content as ``params``, ``params_ema`` (where there is an average) and ``network_g``.

    With an average, MMagic saves it as the model's own weights, and these in its place. Other content, and MMagic's
    without ``network_g``, is returned unchanged.
    """
    if 'state_dict' not in content or 'network_g' not in content:
        return content
    parts = {'params': (content['state_dict'], GENERATOR)}
    if 'ema_state_dict' in content:
        parts = {
            'params': (content['ema_state_dict'], AVERAGED + GENERATOR),
            'params_ema': (content['state_dict'], GENERATOR),
        }
    weights = {
        key: {name.removeprefix(prefix): value for name, value in part.items() if str(name).startswith(prefix)}
        for key, (part, prefix) in parts.items()
        if isinstance(part, dict)
    }
    return {**weights, 'network_g': content['network_g']}


def _verify_archive(path: str) -> None:
    """Raises UserError unless it is torch.save's archive, with the right checksums of its records and digest of all."""
    try:
        with zipfile.ZipFile(path) as archive:
            file_kinds.check_is_torch_archive(path, archive)
            digest, comment = _digest(archive).encode(), archive.comment  # zipfile verifies checksums as it reads
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f'checkpoint {path} cannot be read; it is damaged or truncated{_reason(error)}.') from error
    if comment.startswith(DIGEST) and comment != DIGEST + digest:
        raise UserError(
            f'checkpoint {path} is damaged: its content is not what was saved (SHA-256); take another copy.'
        )


def _digest(archive: zipfile.ZipFile) -> str:
    """SHA-256 over names, sizes and bytes of all records, in hexadecimal."""
    total = hashlib.sha256()
    for record in archive.infolist():
        total.update(json.dumps([record.filename, record.file_size]).encode())
        with archive.open(record) as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
    return total.hexdigest()


def _refusal(path: str, message: str) -> str:
    """Of torch's paragraphs what is in the file; the others advise running it."""
    if match := re.search(
        r'(?:GLOBAL|class|global:?) (\S+) was not an allowed global|whose module (\S+) is blocked', message
    ):
        name = match[1] or match[2]
        if name.startswith('numpy'):
            remedy = (
                'where it was made, turn them into numbers or tensors (float(x), torch.as_tensor(x)) and save again'
            )
            return f'{path} holds NumPy values ({name}) next to its tensors, so it is not loaded; {remedy}.'
        return (
            f'{path} holds Python objects ({name}), which only code could restore, so it is not loaded; '
            'where it was made, save the state_dict() alone.'
        )
    text = ' '.join(re.split('WeightsUnpickler error:|trusted source\\.', message)[-1].split())
    text = text.split(' Check the documentation')[0][:150]
    return f'{path} is not a checkpoint of tensors and plain values, or it is damaged, so it is not loaded ({text}).'


def _reason(error: BaseException) -> str:
    text = ' '.join(str(error).split())[:100]
    return f' ({text})' if text else ''


def _read_safetensors(path: str) -> dict:
    tensors, metadata = read_safetensors(path)
    content: dict = {'params': tensors}
    for key, text in metadata.items():
        if key not in ('format', 'params', 'params_ema'):
            try:
                content[key] = json.loads(text)
            except (ValueError, RecursionError):
                content[key] = text  # another program's
    return content
