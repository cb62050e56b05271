"""The work of ``basicsr prepare``: in several processes, continued where it was left, complete or not there."""

import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from os import path as osp

import cv2
import lmdb

from clit_basicsr.base.errors import UserError
from clit_basicsr.data import lmdbs
from clit_basicsr.data.preparation import inspection
from clit_basicsr.data.preparation.outputs import PARTIAL, Output, check_replaceable, is_finished, open_output
from clit_basicsr.data.preparation.recipe import FOLDER, Item, Recipe
from clit_basicsr.data.preparation.sources import Source

SPARE = 2**23  # bytes that stay free on the disk
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done; checked, nothing written.

    Attributes:
        sources: the images.
        recipe: what becomes of them.
        paths: of the outputs, one for each scale if there are any.
        keys: for each output, of what it will hold, in the order in which data sets read it.
        sizes: for each output, about how many bytes it takes.

    Raises:
        UserError: two images would have one key, or one that LMDB does not take.
    """

    sources: tuple[Source, ...]
    recipe: Recipe
    paths: tuple[str, ...]
    keys: list[list[str]] = dataclasses.field(init=False)
    sizes: list[int] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        keys: list[list[str]] = [[] for _ in self.paths]
        sizes = [0] * len(self.paths)
        for source in self.sources:
            made = zip(self.recipe.keys(source), self.recipe.estimate(source), strict=True)
            for output, (own, size) in enumerate(made):
                keys[output] += own
                sizes[output] += size
        for own in keys:
            self._check(own)
            if self.recipe.cut or self.recipe.scales:
                own.sort(key=lambda key: key + '.png')  # as the files of a folder are read
        object.__setattr__(self, 'keys', keys)
        object.__setattr__(self, 'sizes', sizes)

    def _check(self, keys: list[str]) -> None:
        seen = set()
        for key in keys:
            if key in seen:
                raise UserError(f'two images would have the key {key!r}; rename one.')
            seen.add(key)
            if self.recipe.format == FOLDER:
                continue
            if key != key.strip():
                raise UserError(f'{key!r}: a list of images cannot hold spaces around a name; rename the image.')
            if len(key.encode()) > lmdbs.KEY_BYTES:
                raise UserError(f'{key!r}: more than {lmdbs.KEY_BYTES} bytes, too long for a key; rename the image.')
            if self.recipe.format == lmdbs.ENCODED and not key.isascii():
                raise UserError(
                    f"{key!r}: keys of BasicSR's LMDBs are ASCII text; rename the image, or use --format raw."
                )

    def plan(self, output: int) -> dict:
        """What distinguishes the work on one output from any other."""
        files = [[source.key, source.length, source.changed] for source in self.sources]
        recipe = dataclasses.asdict(self.recipe) | {'scales': list(self.recipe.scales[output : output + 1])}
        return {
            'recipe': recipe,
            'images': len(files),
            'sources': hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        }

    def unfinished(self) -> 'Work | None':
        """The work without the outputs that are complete, None: nothing is left."""
        left = [i for i, path in enumerate(self.paths) if not is_finished(path, self.plan(i), self.keys[i])]
        if not left:
            return None
        scales = tuple(self.recipe.scales[i] for i in left) if self.recipe.scales else ()
        return Work(self.sources, dataclasses.replace(self.recipe, scales=scales), tuple(self.paths[i] for i in left))

    def check_outputs(self, force: bool) -> None:
        """Raises UserError for what may not be written, before anything is."""
        inputs = {osp.realpath(osp.dirname(source.path)) for source in self.sources}
        for path in self.paths:
            check_replaceable(path, force)
            real = osp.realpath(path)
            for folder in inputs:
                if osp.commonpath([folder, real]) == real:
                    raise UserError(f'{path} is a folder of the inputs; give another output (-o).')

    def check_space(self) -> None:
        """Raises UserError where the disk is too small for what is still to be written."""
        folder = _existing(self.paths[0])
        there = sum(_size_of(path + PARTIAL) for path in self.paths)
        needed, free = sum(self.sizes) - there + SPARE, shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f'{self.paths[0]} will take about {gigabytes(needed)}, but the disk has {gigabytes(free)} free; make '
                'room, or choose an output on another disk (-o).'
            )


def prepare(work: Work, processes: int, force: bool, advance: Callable[[int], None]) -> int:
    """Does the work, verifies the result and gives it its name.

    Args:
        processes: how many, at least 1; 1: this one.
        force: whether outputs that exist are replaced.
        advance: called with the number of images that were finished.

    Returns:
        int: the number of images that were there already from an earlier, unfinished run.

    Raises:
        UserError: an image cannot be read, or an output cannot be written. What was done is kept.
    """
    outputs: list[Output] = []
    done = 0
    try:
        for number, (path, size) in enumerate(zip(work.paths, work.sizes, strict=True)):
            os.makedirs(osp.dirname(path) or '.', exist_ok=True)
            outputs.append(open_output(path, work.plan(number), force, size))
        there = [
            all(out.has(key) for out, keys in zip(outputs, work.recipe.keys(source), strict=True) for key in keys)
            for source in work.sources
        ]
        done = already = sum(there)
        advance(already)
        remaining = [source for source, is_there in zip(work.sources, there, strict=True) if not is_there]
        try:
            for made in _made(remaining, work.recipe, processes):
                for out, items in zip(outputs, made, strict=True):
                    for item in items:
                        out.put(item)
                done += 1
                advance(1)
        finally:
            for out in outputs:
                out.flush()
        for out, keys in zip(outputs, work.keys, strict=True):
            out.complete(keys)
            inspection.check_complete(out.partial, work.recipe.format, keys)
        for out in outputs:
            out.take_name()
        return already
    except (OSError, lmdb.Error) as error:
        raise _unwritable(error, work.paths[0]) from error
    finally:
        for out in outputs:
            out.close()


def gigabytes(size: int) -> str:
    """'1.5 GB', '20 MB', '3 KB'."""
    for unit, name in ((10**9, 'GB'), (10**6, 'MB')):
        if size >= unit:
            return f'{size / unit:.3g} {name}'
    return f'{size / 1000:.0f} KB'


def _made(sources: Sequence[Source], recipe: Recipe, processes: int) -> Iterator[list[list[Item]]]:
    """What is made of the images, in their order; a few ahead of the writing, as they take memory."""
    if processes == 1 or len(sources) < 2:
        yield from map(recipe.make, sources)
        return
    # Not forked: OpenCV and torch may have threads, which a fork would leave behind.
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(processes, context, _begin_worker, (os.getpid(),)) as pool:
        waiting: deque[Future[list[list[Item]]]] = deque()
        rest = iter(sources)
        try:
            while True:
                while len(waiting) < 2 * processes and (source := next(rest, None)) is not None:
                    with _without_interrupts():
                        waiting.append(pool.submit(recipe.make, source))
                if not waiting:
                    return
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            reason = 'a process ended unexpectedly (out of memory?); give fewer --processes and run the command again'
            raise UserError(f'{reason}: it continues where it left off.') from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits, also in a process that is started meanwhile, which would answer it with a traceback of imports."""
    if not hasattr(signal, 'pthread_sigmask') or threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # which ends such a block when it starts
    came: list[int] = []
    # The new process inherits the mask; this one needs the handler too, as any of its threads may take the signal.
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


def _begin_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    os.environ['OMP_NUM_THREADS'] = '1'  # there is a process for each core, and torch is imported after this
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _unwritable(error: OSError | lmdb.Error, path: str) -> UserError:
    text = getattr(error, 'strerror', None) or str(error)
    if isinstance(error, OSError) and error.errno not in FULL:
        return UserError(f'{error.filename or path} cannot be written ({text}); give another output (-o).')
    # LMDB calls a write that ends early an input/output error, so what a full disk gives cannot be told for sure.
    return UserError(
        f'{path} cannot be written ({text}); make room if the disk is full, and run the same command again: it '
        'continues where it left off.'
    )


def _existing(path: str) -> str:
    while not osp.exists(path):
        path = osp.dirname(path) or '.'
    return path


def _size_of(folder: str) -> int:
    return sum(
        os.stat(osp.join(parent, name)).st_blocks * 512 for parent, _, names in os.walk(folder) for name in names
    )
