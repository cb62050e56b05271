"""Outputs under a temporary name, which continue where they were left, and take their final name when complete."""

import json
import os
import re
import secrets
import shutil
import struct
import time
from collections.abc import Sequence
from os import path as osp

import lmdb

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import temporary_name
from clit_basicsr.data import lmdbs
from clit_basicsr.data.preparation.recipe import FOLDER, Item
from clit_basicsr.data.raw import RawImage

PARTIAL = '.partial'
LMDB_FILES = ('data.mdb', 'lock.mdb', 'meta_info.txt', lmdbs.PLAN)
# What a kill may cost at most.
COMMIT_BYTES = 2**26
COMMIT_SECONDS = 2
IMAGE = re.compile(r'(_s\d{3,}|x\d[\d.]*)\.png$')  # names of sub-images and LR images


def check_replaceable(path: str, force: bool) -> None:
    """Raises UserError unless nothing is there, or with ``force`` only what this command writes."""
    if not osp.lexists(path):
        return
    if not force:
        raise UserError(f'{path} already exists; -f replaces it.')
    if not osp.isdir(path) or osp.islink(path):
        raise UserError(f'{path} is not a folder, so it is not replaced; remove it or give another output (-o).')
    foreign = _foreign_file(path)
    if foreign is not None:
        raise UserError(
            f'{path} is not replaced, because {foreign} in it was not made by basicsr prepare; move that, or '
            'give another output (-o).'
        )


class Output:
    """A folder in the making, ``<path>.partial``.

    Args:
        path: the final name.
        plan: what it is made of; only work on an equal plan is continued.
        force: whether what is there is replaced, and unfinished work on another plan dropped.

    Raises:
        UserError: there is unfinished work on another plan, another process works on it, or it cannot be written.
    """

    def __init__(self, path: str, plan: dict, force: bool):
        self.path, self.partial, self.force = path, path + PARTIAL, force
        plan_file = osp.join(self.partial, lmdbs.PLAN)
        text = plan_text(plan)
        if osp.lexists(self.partial) and _read(plan_file) != text and not _is_empty(self.partial):
            if not osp.isdir(self.partial) or _foreign_file(self.partial) is not None:
                raise UserError(
                    f'{self.partial} was not made by basicsr prepare; move it, or give another output (-o).'
                )
            if not force:
                raise UserError(
                    f'{self.partial} is unfinished work on other images or with other options; -f drops it and starts '
                    'anew.'
                )
            shutil.rmtree(self.partial)
        os.makedirs(self.partial, exist_ok=True)
        if _read(plan_file) is None:
            with temporary_name(plan_file) as temporary, open(temporary, 'w', encoding='utf-8') as file:
                file.write(text)
        self._lock = _locked(plan_file, self.partial)
        _remove_temporary_files(self.partial)

    def has(self, key: str) -> bool:
        """Whether an item is complete."""
        raise NotImplementedError

    def put(self, item: Item) -> None:
        """Takes an item; it is safe after :meth:`flush` at the latest."""
        raise NotImplementedError

    def flush(self) -> None:
        """Writes what :meth:`put` has taken."""

    def close(self) -> None:
        """Ends the work for now; what was flushed is kept."""
        if self._lock is not None:
            self._lock.close()

    def complete(self, keys: Sequence[str]) -> None:
        """Writes what describes the whole; ``keys``: of all items, in their order."""

    def take_name(self) -> None:
        """Gives the folder its final name; what had it is removed. Raises UserError if that may not be replaced."""
        old = None
        if osp.lexists(self.path):
            check_replaceable(self.path, self.force)  # it may have come during the work
            old = f'{self.path}.replaced-{secrets.token_hex(4)}'
            os.rename(self.path, old)
        os.rename(self.partial, self.path)
        if old:
            shutil.rmtree(old, ignore_errors=True)


class FolderOutput(Output):
    """PNG files."""

    def _file(self, key: str) -> str:
        return osp.join(self.partial, key + '.png')

    def has(self, key: str) -> bool:
        return osp.isfile(self._file(key))

    def put(self, item: Item) -> None:
        path = self._file(item.key)
        os.makedirs(osp.dirname(path), exist_ok=True)
        with temporary_name(path) as temporary, open(temporary, 'wb') as file:
            file.write(item.content)


class LmdbOutput(Output):
    """An LMDB; ``size``: about how many bytes it will take."""

    def __init__(self, path: str, plan: dict, force: bool, size: int):
        super().__init__(path, plan, force)
        self.format = plan['recipe']['format']
        self._pending: list[Item] = []
        self._pending_bytes = 0
        self._due = time.monotonic() + COMMIT_SECONDS
        self._environment = lmdb.open(self.partial, map_size=int(1.25 * size) + 2**26)

    def _key(self, key: str) -> bytes:
        return key.encode('utf-8' if self.format == lmdbs.RAW else 'ascii')

    def has(self, key: str) -> bool:
        with self._environment.begin(buffers=True) as transaction:
            return transaction.get(self._key(key)) is not None

    def put(self, item: Item) -> None:
        self._pending.append(item)
        self._pending_bytes += len(item.content)
        if self._pending_bytes >= COMMIT_BYTES or time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        pairs: list[tuple[bytes, bytes]] = []
        for item in self._pending:
            key = self._key(item.key)
            pairs.append((key, item.content))
            if self.format == lmdbs.ENCODED:
                pairs.append((lmdbs.RECORD + key, item.record))
        self._write(pairs)
        self._pending, self._pending_bytes = [], 0
        self._due = time.monotonic() + COMMIT_SECONDS

    def _write(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """In one transaction: all or nothing."""
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in pairs:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:  # the estimate was too low
                self._environment.set_mapsize(2 * self._environment.info()['map_size'])

    def close(self) -> None:
        self._environment.close()
        super().close()

    def complete(self, keys: Sequence[str]) -> None:
        description = {'format': self.format, 'version': lmdbs.VERSION, 'images': len(keys)}
        self._write([(lmdbs.DESCRIPTION, json.dumps(description).encode())])
        path = osp.join(self.partial, 'meta_info.txt')
        with (
            temporary_name(path) as temporary,
            open(temporary, 'w', encoding='utf-8') as lines,
            self._environment.begin(buffers=True) as transaction,
        ):
            for key in keys:
                if self.format == lmdbs.RAW:
                    numbers = (*RawImage(transaction.get(self._key(key)) or b'', key).stored[0], 0)
                else:
                    record = transaction.get(lmdbs.RECORD + self._key(key)) or b''
                    numbers = struct.unpack(lmdbs.RECORD_LAYOUT, record)[1:]
                lines.write('{}.png ({},{},{}) {}\n'.format(key, *numbers))
        self._environment.close()  # it is read again, to be verified


def open_output(path: str, plan: dict, force: bool, size: int) -> Output:
    if plan['recipe']['format'] == FOLDER:
        return FolderOutput(path, plan, force)
    return LmdbOutput(path, plan, force, size)


def plan_text(plan: dict) -> str:
    return json.dumps(plan, indent=1, sort_keys=True)


def is_finished(path: str, plan: dict, keys: Sequence[str]) -> bool:
    """Whether the output of this plan is there, and nothing of it was lost since."""
    if _read(osp.join(path, lmdbs.PLAN)) != plan_text(plan):
        return False
    if plan['recipe']['format'] == FOLDER:
        return all(osp.isfile(osp.join(path, key + '.png')) for key in keys)
    try:
        lmdbs.check(path, '-o')
    except UserError:
        return False
    return True


def _foreign_file(folder: str) -> str | None:
    """A file that this command would not have written there, None: there is none."""
    text = _read(osp.join(folder, lmdbs.PLAN))
    try:
        is_folder = text is not None and json.loads(text)['recipe']['format'] == FOLDER
    except (ValueError, TypeError, KeyError):
        is_folder = False
    for parent, _, names in os.walk(folder):
        for name in names:
            is_image = is_folder and IMAGE.search(name)
            if name not in LMDB_FILES and not is_image and not _is_temporary(name):
                return osp.relpath(osp.join(parent, name), folder)
    return None


def _is_empty(folder: str) -> bool:
    """Whether a folder holds nothing, or what a process left that was killed as it began."""
    return osp.isdir(folder) and all(_is_temporary(name) for name in os.listdir(folder))


def _is_temporary(name: str) -> bool:
    return name.startswith('.') and '.tmp' in name


def _remove_temporary_files(folder: str) -> None:
    """Those of a process that was killed, see :func:`clit_basicsr.base.files.temporary_name`."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if _is_temporary(name):
                os.remove(osp.join(parent, name))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding='utf-8') as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


def _locked(plan_file: str, partial: str):
    """The plan file, locked until it is closed; None where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    file = open(plan_file, encoding='utf-8')  # noqa: SIM115  the lock lasts as long as the file is open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f'{partial}: another basicsr prepare is working on it; wait for it.') from error
    except OSError:  # a file system without locks
        pass
    return file
