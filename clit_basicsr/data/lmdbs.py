"""LMDB folders of BasicSR's layout (data.mdb, meta_info.txt), opened once in a process and only for reading.

Two formats: BasicSR's own, whose values are encoded images, and the raw one of :mod:`clit_basicsr.data.raw`. Databases
that ``basicsr prepare`` wrote hold a description under a key of their own.
"""

import json
import os
import struct
import zlib
from os import path as osp
from typing import Any

import lmdb

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.lmdb_tree import check_tree

# Names of files hold no zero bytes, so these keys are not those of images.
DESCRIPTION = b'\0clit_basicsr'  # JSON: format, version, images
RECORD = b'\0'  # before the key of an encoded image: its checksum and size, see RECORD_LAYOUT
RECORD_LAYOUT = '<IIIhh'  # CRC-32 of the value, height, width, channels, compression as in meta_info.txt
KEY_BYTES = 500  # LMDB's own limit is 511

RAW, ENCODED = 'raw', 'encoded'
VERSION = 1
# In a folder that basicsr prepare has not finished.
PLAN = '.prepare.json'

# An LMDB may be open only once in a process, so the data sets of a process share their environments.
_environments: dict[str, lmdb.Environment] = {}


def check(root: str, option: str) -> dict[str, Any]:
    """Looks into an LMDB folder, reads no image, and leaves it closed unless it was open.

    Args:
        option: what gave ``root``, for messages.

    Returns:
        dict: see :func:`describe`.

    Raises:
        UserError: it is not an LMDB that can be read here.
    """
    for name in ('data.mdb', 'meta_info.txt'):
        if not osp.isfile(osp.join(root, name)):
            if osp.isfile(osp.join(root, PLAN)):
                raise UserError(f'{option}: {root} is unfinished; run the basicsr prepare that makes it again.')
            raise UserError(f'{option}: {root} has no {name}, so it is not a BasicSR LMDB; make it again.')
    was_open = osp.realpath(root) in _environments
    try:
        return describe(root)
    finally:
        if not was_open:
            close(root)


def describe(root: str) -> dict[str, Any]:
    """The description that ``basicsr prepare`` wrote: format, version, images; {}: another program's LMDB.

    Raises:
        UserError: the format is of another version.
    """
    content = get(root, DESCRIPTION)
    if content is None:
        return {}
    try:
        description = json.loads(bytes(content))
        known = description['format'] in (RAW, ENCODED) and isinstance(description['version'], int)
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise UserError(f'{root}: the description in the LMDB is damaged; copy it or make it again.')
    if description['version'] != VERSION:
        raise UserError(
            f'{root}: an LMDB of format version {description["version"]}; this package reads version {VERSION}: '
            'update it, or make the LMDB again with basicsr prepare.'
        )
    return description


def get(root: str, key: bytes) -> memoryview | None:
    """A value of the LMDB as it lies in the file, None: there is no such key.

    The memory stays valid until :func:`close`; nobody writes into an LMDB that is finished.

    Raises:
        UserError: the LMDB cannot be opened or read.
    """
    try:
        with environment(root).begin(buffers=True) as transaction:
            return transaction.get(key)
    except lmdb.Error as error:
        name = key.decode(errors='backslashreplace')
        raise UserError(f'{root}: {name!r} cannot be read ({error}); copy the LMDB or make it again.') from error


def is_as_written(root: str, key: bytes, content: bytes) -> bool | None:
    """Whether an encoded image has the checksum that ``basicsr prepare`` noted; None: none was noted."""
    record = get(root, RECORD + key)
    if record is None:
        return None
    if len(record) != struct.calcsize(RECORD_LAYOUT):
        return False
    return struct.unpack(RECORD_LAYOUT, record)[0] == zlib.crc32(content)


def environment(root: str) -> lmdb.Environment:
    """The LMDB of this process, opened by the first call."""
    path = osp.realpath(root)
    if path not in _environments:
        try:
            size = osp.getsize(osp.join(path, 'data.mdb'))
            if not size:
                raise UserError(f'{root}: data.mdb is empty (0 bytes); copy it or make it again.')
            with open(osp.join(path, 'data.mdb'), 'rb'):
                pass  # lmdb would not say why it cannot
            # As BasicSR does; without locks, so that a file system that is mounted read-only is enough.
            opened = lmdb.open(path, readonly=True, lock=False, readahead=False)
            needed = (opened.info()['last_pgno'] + 1) * opened.stat()['psize']
        except OSError as error:
            raise UserError(f'{root}: data.mdb cannot be read ({error.strerror}).') from error
        except lmdb.Error as error:
            raise UserError(f'{root}: cannot be opened as an LMDB ({error}); copy it or make it again.') from error
        if size < needed:
            # Reading behind the end of the file would kill the process with a bus error.
            opened.close()
            raise UserError(f'{root}: data.mdb is truncated ({size} of {needed} bytes); copy it or make it again.')
        try:
            check_tree(osp.join(path, 'data.mdb'), opened.stat()['psize'])
        except ValueError as error:
            opened.close()
            raise UserError(f'{root}: the index in data.mdb is damaged ({error}); copy it or make it again.') from error
        _environments[path] = opened
    return _environments[path]


def close(root: str) -> None:
    """Closes an LMDB if it is open; memory that :func:`get` returned must not be used any more."""
    opened = _environments.pop(osp.realpath(root), None)
    if opened is not None:
        opened.close()


def _close_all() -> None:
    for path in list(_environments):
        close(path)


# An open LMDB may not be used across a fork, and would keep the new process from opening its own.
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_close_all)
