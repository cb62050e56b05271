"""The safetensors format: eight bytes of length, a JSON header, and the tensors' bytes; nothing that could be executed.

Format: https://huggingface.co/docs/safetensors (the text section "Format").
"""

import json
import os
import struct
from pathlib import Path

import torch
from torch import Tensor

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
MAX_HEADER = 100_000_000


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors and a table of texts; a partial file of that name never exists."""
    header: dict = {'__metadata__': metadata}
    blobs, offset = [], 0
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        blobs.append(bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b'')
        size = flat.numel() * flat.element_size()
        header[name] = {
            'dtype': NAMES[tensor.dtype],
            'shape': list(tensor.shape),
            'data_offsets': [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    with temporary_name(str(path)) as temporary, open(temporary, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for blob in blobs:
            file.write(blob)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and texts of a file.

    Raises:
        UserError: the file does not exist, is damaged or truncated.
    """
    if not os.path.isfile(path):
        raise UserError(f'checkpoint {path} does not exist.')
    content = Path(path).read_bytes()
    try:
        (length,) = struct.unpack('<Q', content[:8])
        if length > min(MAX_HEADER, len(content) - 8):
            raise ValueError('the header is longer than the file')
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop('__metadata__', {})
        data = memoryview(content)[8 + length :]
        return {name: _tensor(entry, data) for name, entry in header.items()}, metadata
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RuntimeError) as error:
        raise UserError(f'{path} is not a safetensors file, or it is damaged or truncated ({error}).') from error


def _tensor(entry: dict, data: memoryview) -> Tensor:
    dtype, shape, (start, stop) = DTYPES[entry['dtype']], entry['shape'], entry['data_offsets']
    if not 0 <= start <= stop <= len(data):
        raise ValueError('a tensor ends beyond the end of the file')
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[start:stop]), dtype=dtype).reshape(shape)
