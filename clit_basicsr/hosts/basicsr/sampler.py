"""The order of training: a sampler that plans iterations, and the host's prefetchers made to keep to it.

What BasicSR does instead, and why that is not enough:

* It plans ceil(total_iter / ceil(len * ratio / batch)) epochs, while `drop_last` gives floor(len * ratio / batch)
  batches to each: small sets end early. Or the loop counts one or two iterations too many before it stops, and the last
  validation bears their number.
* A resumed run begins its epoch again from the first image.
* Its prefetchers iterate over the loader in their constructor and again at the first `reset`: two sets of workers, and
  with `prefetch_mode: cpu` and `persistent_workers` two threads that take batches from one iterator.
* An exception in the thread of `prefetch_mode: cpu` ends that thread alone; the training waits for ever.
* Its worker_init_fn seeds numpy and random with a constant, so that every epoch draws the same crops. torch has seeded
  both from its own generator by then, differently in each worker and epoch.
* Its workers start as Python has it by default: since 3.14 from a fork server, see :func:`fork_workers`.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from clit_basicsr.base.stopping import outlive_signals, starting_workers

PART = 1 << 16  # indices of a permutation that are Python numbers at the same time


class PlannedSampler(Sampler):
    """Hands out what exactly the planned iterations need: `total_iter - start_iter` whole batches, in passes.

    A pass ends where the host's epoch of `iters_per_epoch` iterations ends, the last one at `total_iter`; passes beyond
    it are empty. Before the first call of `set_epoch` it yields nothing.

    Items are (batch number, position in the batch) for a dataset whose attribute `takes_batch_numbers` is true, with
    batch number = training iteration - 1, the same on every rank; else indices of images: a permutation of the enlarged
    dataset per pass, like the host's, each rank its own share, and further permutations where a pass is longer.

    Args:
        dataset: Map-style dataset.
        world_size, rank: Processes that train together, and which of them this is.
        ratio: `dataset_enlarge_ratio`, > 0.
        batch_size: Samples per batch of this process's loader.
        iters_per_epoch: Iterations that the host counts as one epoch.
        total_iter: Last iteration of the training.
        start_iter: Iterations already done; 0 unless resumed.
    """

    def __init__(
        self,
        dataset: Dataset,
        world_size: int,
        rank: int,
        ratio: float,
        *,
        batch_size: int,
        iters_per_epoch: int,
        total_iter: int,
        start_iter: int = 0,
    ) -> None:
        self.dataset, self.world_size, self.rank = dataset, world_size, rank
        self.enlarged = math.ceil(len(dataset) * ratio / world_size) * world_size  # type: ignore[arg-type]
        self.batch_size, self.iters_per_epoch, self.total_iter = batch_size, iters_per_epoch, total_iter
        self.epoch: int | None = None
        self.first = self.end = start_iter  # batch numbers of the pass: first, ..., end - 1

    def set_epoch(self, epoch: int) -> None:
        """Begin the pass of this epoch where the last one ended. The same epoch again is the same pass again."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self.first = self.end
        self.end = min(self.total_iter, max(self.first, (epoch + 1) * self.iters_per_epoch))

    def __len__(self) -> int:
        return max(0, self.end - self.first) * self.batch_size

    def __iter__(self) -> Iterator[Any]:
        # One by one: a pass of millions of iterations would be gigabytes as a list.
        if getattr(self.dataset, 'takes_batch_numbers', False):
            return ((b, i) for b in range(self.first, self.end) for i in range(self.batch_size))
        return self._image_indices(len(self))

    def _image_indices(self, count: int) -> Iterator[int]:
        if not count:
            return iter(())
        # a run resumed inside an epoch continues with the images that this epoch has not had
        epoch_begins = self.epoch * self.iters_per_epoch if self.epoch is not None else 0
        begin = max(0, self.first - epoch_begins) % self.iters_per_epoch * self.batch_size
        return islice(self._permutations(self.epoch or 0), begin, begin + count)

    def _permutations(self, seed: int) -> Iterator[int]:
        """This rank's share of one permutation of the enlarged dataset after the other, without end."""
        generator = torch.Generator()
        generator.manual_seed(seed)
        while True:
            permutation = torch.randperm(self.enlarged, generator=generator)[self.rank :: self.world_size]
            for part in permutation.split(PART):
                yield from (part % len(self.dataset)).tolist()  # type: ignore[arg-type]


def planned_loaders(original: Any, host: Any) -> Any:
    """The host's `create_train_val_dataloader` with `PlannedSampler` in place of its EnlargedSampler.

    Args:
        original: The host's function.
        host: The module `basicsr.train`, in which the function looks the sampler up.
    """

    def create_train_val_dataloader(opt: dict, logger: Any) -> tuple:
        for line in opt.get('changed_options', []):
            logger.warning(f'Changed since the state was saved: {line}.')

        def sampler(dataset: Dataset, world_size: int, rank: int, ratio: float) -> PlannedSampler:
            return plan(opt, dataset, world_size, rank, ratio)

        hosts_own, host.EnlargedSampler = host.EnlargedSampler, sampler
        try:
            train_loader, train_sampler, val_loaders, total_epochs, total_iters = original(opt, logger)
        finally:
            host.EnlargedSampler = hosts_own
        # The host runs epochs start, ..., total_epochs. The last is empty here, and not worth starting workers for; but
        # a state may bear a later epoch than this plan has, when the batch size or the dataset have changed since.
        total_epochs = max(total_epochs - 1, opt.get('resumed', {}).get('epoch', 0))
        return train_loader, train_sampler, val_loaders, total_epochs, total_iters

    return create_train_val_dataloader


def plan(opt: dict, dataset: Dataset, world_size: int, rank: int, ratio: float) -> PlannedSampler:
    """The sampler for an option file as the host parsed it; `opt['resumed']` is set by `load_resume_state`."""
    per_gpu = opt['datasets']['train']['batch_size_per_gpu']
    opt['iters_per_epoch'] = math.ceil(len(dataset) * ratio / (per_gpu * world_size))  # type: ignore[arg-type]
    return PlannedSampler(
        dataset,
        world_size,
        rank,
        ratio,
        batch_size=per_gpu if opt['dist'] else per_gpu * max(1, opt['num_gpu']),  # as build_dataloader does
        iters_per_epoch=opt['iters_per_epoch'],
        total_iter=int(opt['train']['total_iter']),
        start_iter=opt.get('resumed', {}).get('iter', 0),
    )


def with_forked_workers(build_dataloader: Callable[..., DataLoader]) -> Callable[..., DataLoader]:
    """The host's `build_dataloader`, with :func:`fork_workers`."""

    def build_and_fork(*args: Any, **kwargs: Any) -> DataLoader:
        loader = build_dataloader(*args, **kwargs)
        fork_workers(loader)
        return loader

    return build_and_fork


def fork_workers(loader: DataLoader) -> None:
    """Forks a loader's workers where a fork server, the default on Linux since Python 3.14, would start them.

    With it, each worker imports torch again, every pass. It is the workers' parent: a SIGTERM that reaches every
    process ends it, and they end with it before a state is saved; and they outlive a training that was killed.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if loader.num_workers and method == 'forkserver':
        loader.multiprocessing_context = 'fork'


def start_worker(worker_id: int, num_workers: int, rank: int, seed: int) -> None:
    """In place of the host's worker_init_fn: leaves the seeds that torch has just set (rank and pass are in them), and
    lets the training save a state before its workers end.
    """
    outlive_signals()


def end_workers(batches: Any) -> None:
    """Ends the workers behind an iterator of a data loader, before multiprocessing, at exit, sends each one SIGTERM,
    which they outlive, and waits for their end.
    """
    if hasattr(batches, '_shutdown_workers'):
        with suppress(RuntimeError):  # torch's, where a signal has ended one before
            batches._shutdown_workers()


def prefetchers(host: Any) -> tuple[Any, Any]:
    """The host's CPUPrefetcher and CUDAPrefetcher, iterating over the loader at `reset` only.

    Args:
        host: The module `basicsr.data.prefetch_dataloader`.
    """
    all_of_them: WeakSet[Any] = WeakSet()

    def end_all_workers() -> None:
        for prefetcher in all_of_them:
            end_workers(getattr(prefetcher.loader, 'generator', prefetcher.loader))  # a thread's, prefetch_mode: cpu

    atexit.register(end_all_workers)

    class CPUPrefetcher(host.CPUPrefetcher):
        def __init__(self, loader: Any) -> None:
            self.ori_loader, self.loader = loader, iter(())
            all_of_them.add(self)

        def reset(self) -> None:
            with starting_workers():
                super().reset()

    class CUDAPrefetcher(host.CUDAPrefetcher):
        def __new__(cls, loader: Any, opt: dict) -> Any:
            # an option file written for a GPU, run with num_gpu: 0 or where there is none
            return super().__new__(cls) if opt['num_gpu'] else CPUPrefetcher(loader)

        def __init__(self, loader: Any, opt: dict) -> None:
            self.ori_loader, self.loader, self.opt, self.batch = loader, iter(()), opt, None
            all_of_them.add(self)
            self.stream = torch.cuda.Stream()
            self.device = torch.device('cuda')

        def reset(self) -> None:
            with starting_workers():
                super().reset()

        def next(self) -> dict | None:
            batch = super().next()
            for value in (batch or {}).values():
                if torch.is_tensor(value):  # else its memory may be given to the next batch while this one is in use
                    value.record_stream(torch.cuda.current_stream())
            return batch

    return CPUPrefetcher, CUDAPrefetcher


class _Raised:
    """An exception on its way from the prefetching thread to the training loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def run_and_hand_on_errors(self: Any) -> None:
    """`PrefetchGenerator.run`: the thread's work, ending in None or in what was raised."""
    try:
        for item in self.generator:
            self.queue.put(item)
    except Exception as error:
        self.queue.put(_Raised(error))
    else:
        self.queue.put(None)


def next_or_raise(self: Any) -> Any:
    """`PrefetchGenerator.__next__`: the next batch, or the exception that the thread met."""
    item = self.queue.get()
    if isinstance(item, _Raised):
        raise item.error
    if item is None:
        raise StopIteration
    return item
