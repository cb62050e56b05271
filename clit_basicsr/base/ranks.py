"""The processes of a distributed run: work done on each of them, with its results and its errors shared.

In one process, where torch.distributed is not set up, everything here is the plain work itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch.utils.data import DataLoader

Result = TypeVar('Result')


def place() -> tuple[int, int]:
    """This process's rank, and the number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def together(work: Callable[[], Result]) -> list[Result]:
    """Does a work on every rank, all of which must call; the results, which must be picklable, in order of the ranks.

    Each rank waits for the slowest one: a work must stay far below the time-out of collectives, 10 minutes with NCCL.

    Raises:
        Exception: what the work raised, on the lowest rank where it did.
        SystemExit: on all the other ranks then, which end with 1 and without a word.
    """
    rank, ranks = place()
    if ranks == 1:
        return [work()]
    result, error = None, None
    try:
        result = work()
    except Exception as raised:  # raised again below, once the other ranks know: they would wait for this one
        error = raised
    answers: list[Any] = [None] * ranks
    dist.all_gather_object(answers, (error is not None, result))
    failed = [other for other, (has_failed, _) in enumerate(answers) if has_failed]
    if failed and rank == failed[0] and error is not None:
        raise error
    if failed:
        raise SystemExit(1)
    return [answer for _, answer in answers]


def on_first_rank(work: Callable[[], Result]) -> Result:
    """Does a work on rank 0 alone; its result on every rank. All ranks must call, and none is ahead of rank 0 after it.

    Raises:
        Exception, SystemExit: see :func:`together`.
    """
    rank, _ = place()
    return together(work if rank == 0 else lambda: None)[0]  # type: ignore[return-value]


def any_rank(flag: bool, iteration: int) -> bool:
    """Whether the flag is set on a rank; all ranks must call after each iteration, and get the same answer.

    On GPUs, where asking waits for all that is queued, only every 16th iteration asks; in between: False.
    """
    if place()[1] == 1:
        return flag
    on_gpu = dist.get_backend() == 'nccl'
    if on_gpu and iteration % 16:
        return False
    flags = torch.tensor([flag], dtype=torch.int32, device='cuda' if on_gpu else 'cpu')
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def for_each_picture(
    dataloader: DataLoader, work: Callable[[Any], Result], advance: Callable[[int], object]
) -> list[Result]:
    """What ``work`` returns for each batch of a validation's loader, in the loader's order, on every rank.

    The batches are dealt out: rank r takes batches r, r + ranks, ... All ranks meet after each round, so that none
    waits for longer than a batch takes, however long the whole takes.

    Args:
        dataloader: not shuffled.
        work: called with a batch of this rank's; its result must be picklable.
        advance: called after each round with the number of its batches, for a progress bar.

    Raises:
        Exception, SystemExit: see :func:`together`; the batches are read within it.
    """
    rank, ranks = place()
    count = len(dataloader)
    batches = own_batches(dataloader, rank, ranks)
    results: list[Result] = []
    for first in range(0, count, ranks):
        here = first + rank < count
        answers = together(lambda here=here: work(next(batches)) if here else None)  # type: ignore[misc]
        results += answers[: count - first]  # type: ignore[arg-type]
        advance(min(ranks, count - first))
    return results


def own_batches(dataloader: DataLoader, rank: int, ranks: int) -> Iterator[Any]:
    """The batches of a loader that a rank takes; the others are not read."""
    if ranks == 1:
        return iter(dataloader)
    assert dataloader.batch_sampler is not None
    own = list(dataloader.batch_sampler)[rank::ranks]
    keep = {'collate_fn': dataloader.collate_fn, 'pin_memory': dataloader.pin_memory}
    return iter(DataLoader(dataloader.dataset, batch_sampler=own, **keep))  # type: ignore[arg-type]


def mean_values(values: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the pictures, summed in their order: the same bits however they were dealt out.

    Args:
        values: by metric, of one picture each.
    """
    totals: dict[str, float] = {}
    for one in values:
        for metric, value in one.items():
            totals[metric] = totals.get(metric, 0) + value
    return {metric: total / len(values) for metric, total in totals.items()}


def copy_buffers_of_first_rank(net: torch.nn.Module) -> None:
    """Every rank takes over rank 0's buffers of a network, which are the ones that checkpoints hold."""
    if place()[1] == 1:
        return
    for buffer in net.buffers():
        value = buffer.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(value, 0)
        if not torch.equal(value, buffer):
            buffer.copy_(value)
