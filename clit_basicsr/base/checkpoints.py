"""Reading checkpoints: the one place that opens them. Only tensors and plain values are read, never code."""

import json
import os
import pickle
import re

import torch

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.safetensors_file import read_safetensors

SAFETENSORS = '.safetensors'
# What torch.load raises upon files that are truncated, empty, or something else altogether.
UNREADABLE = (RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError)


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The content of a checkpoint or a training state, on the CPU: tensors and plain values.

    Args:
        path: of a file of ``torch.save``, or ending in .safetensors: its tensors are ``params``, its metadata next to
            them.

    Raises:
        UserError: the file does not exist, is damaged, or holds more than tensors and plain values.
    """
    path = os.fspath(path)
    if path.endswith(SAFETENSORS):
        return _read_safetensors(path)
    if not os.path.isfile(path):
        raise UserError(f'checkpoint {path} does not exist.')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        # Of torch's paragraphs the one about this file; the others advise running what is in it.
        text = re.split('WeightsUnpickler error:|trusted source\\.', str(error))[-1].split('Check the documentation')[0]
        reason = ' '.join(text.split())[:200]
        raise UserError(
            f'{path} is not a checkpoint of tensors and plain values, so it is not loaded: {reason}'
        ) from error
    except UNREADABLE as error:
        raise UserError(f'checkpoint {path} cannot be read; it is damaged or truncated.') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a checkpoint.')
    return content


def _read_safetensors(path: str) -> dict:
    tensors, metadata = read_safetensors(path)
    content: dict = {'params': tensors}
    for key, text in metadata.items():
        if key != 'format':
            try:
                content[key] = json.loads(text)
            except ValueError:
                content[key] = text  # another program's
    return content
