"""The safetensors format: eight bytes of length, a JSON header, and the tensors' bytes; nothing that could be executed.

Format: https://huggingface.co/docs/safetensors (the text section "Format"). What we write has a SHA-256 of everything
in its metadata.
"""

import hashlib
import json
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from clit_basicsr.base import file_kinds
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import temporary_name

DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
    'I16': torch.int16,
    'I8': torch.int8,
    'U8': torch.uint8,
    'BOOL': torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bytes; ten thousand tensors need about one million. Python's objects are some ten times larger than their JSON.
MAX_HEADER = 10_000_000
DIGEST = 'sha256'


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors and a table of texts; a partial file of that name never exists."""
    entries: dict[str, dict] = {}
    blobs: dict[str, bytes] = {}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise UserError(f'{name} is {tensor.dtype}, which a .safetensors file cannot hold; write a .pth file.')
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        blobs[name] = bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b''
        stop = offset + len(blobs[name])
        entries[name] = {'dtype': NAMES[tensor.dtype], 'shape': list(tensor.shape), 'data_offsets': [offset, stop]}
        offset = stop
    metadata = {**metadata, DIGEST: _digest(entries, blobs, metadata)}
    text = json.dumps({'__metadata__': metadata, **entries}).encode()
    text += b' ' * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    with temporary_name(str(path)) as temporary, open(temporary, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for blob in blobs.values():
            file.write(blob)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and texts of a file.

    Raises:
        UserError: the file does not exist, is damaged or truncated.
    """
    file_kinds.check_regular(os.fspath(path))
    try:
        with open(path, 'rb') as file:
            entries, metadata = _read_header(file)
            blobs = _read_blobs(file, entries)
            tensors = {name: _tensor(entry, blobs[name]) for name, entry in entries.items()}
        expected = metadata.pop(DIGEST, None)
        if expected is not None and expected != _digest(entries, blobs, metadata):
            raise ValueError('its content is not what was saved, by its SHA-256')
    except OSError as error:
        raise UserError(f'checkpoint {path} cannot be read ({error.strerror or error}).') from error
    except (ValueError, struct.error, RecursionError, OverflowError) as error:
        raise UserError(f'{path} is not a safetensors file, or it is damaged or truncated ({error}).') from error
    return tensors, metadata


def _read_header(file: BinaryIO) -> tuple[dict[str, dict], dict[str, str]]:
    """Entries and metadata, every value of a type and size that can be true of this file; ValueError if not."""
    size = os.fstat(file.fileno()).st_size
    (length,) = struct.unpack('<Q', file.read(8))
    if length > min(MAX_HEADER, size - 8):
        raise ValueError('the header is longer than the file, or than 10 MB')
    entries = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    metadata = entries.pop('__metadata__', {}) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError('the header is not a table of tensors and texts')
    end = 0
    for name, entry in sorted(entries.items(), key=_offset):
        start, stop = entry['data_offsets']
        if start != end or stop < start:
            raise ValueError(f'the bytes of {name} overlap with others, or leave a gap')
        shape, dtype = entry.get('shape'), entry.get('dtype')
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f'{name} is of the unknown type {str(dtype)[:20]!r}')
        if not isinstance(shape, list) or not all(_is_count(side) for side in shape):
            raise ValueError(f'{name} has no valid shape')
        if math.prod(shape) * DTYPES[dtype].itemsize != stop - start:
            raise ValueError(f'{name} has other bytes than its shape needs')
        end = stop
    if end != size - 8 - length:
        raise ValueError('the tensors are not as long as the file')
    return entries, metadata


def _offset(item: tuple[str, Any]) -> tuple[int, int]:
    name, entry = item
    offsets = entry.get('data_offsets') if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(one) for one in offsets):
        raise ValueError(f'{name} has no valid offsets')
    return offsets[0], offsets[1]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError('a name is there twice')
    return table


def _read_blobs(file: BinaryIO, entries: dict[str, dict]) -> dict[str, bytearray]:
    """The bytes of every tensor; the header has been checked against the size of the file."""
    blobs = {}
    for name, entry in sorted(entries.items(), key=_offset):
        start, stop = entry['data_offsets']
        blobs[name] = bytearray(stop - start)
        if file.readinto(blobs[name]) != stop - start:  # type: ignore[attr-defined]
            raise ValueError('it became shorter while it was read')
    return blobs


def _tensor(entry: dict, blob: bytearray) -> Tensor:
    dtype, shape = DTYPES[entry['dtype']], entry['shape']
    return torch.frombuffer(blob, dtype=dtype).reshape(shape) if blob else torch.empty(shape, dtype=dtype)


def _digest(entries: dict[str, dict], blobs: dict[str, Any], metadata: dict[str, str]) -> str:
    """SHA-256 over metadata, names, types, shapes and bytes, whatever their order in the file; hexadecimal."""
    total = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(entries):
        total.update(json.dumps([name, entries[name]['dtype'], entries[name]['shape']]).encode())
        total.update(blobs[name])
    return total.hexdigest()
