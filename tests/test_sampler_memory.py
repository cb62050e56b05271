"""Passes of millions of iterations: the sampler hands out one item after the other, in the order of the list."""

import time
import tracemalloc

import pytest
import torch
from torch.utils.data import Dataset

from clit_basicsr.hosts.basicsr.sampler import PlannedSampler

ITERATIONS, BATCH = 3_500_000, 32  # the paper's


class Images(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length


class BatchNumbers(Images):
    takes_batch_numbers = True


def as_list(sampler):
    """The definition: the whole pass in one list."""
    if hasattr(sampler.dataset, 'takes_batch_numbers'):
        return [(b, i) for b in range(sampler.first, sampler.end) for i in range(sampler.batch_size)]
    begin = max(0, sampler.first - sampler.epoch * sampler.iters_per_epoch) % sampler.iters_per_epoch
    begin *= sampler.batch_size
    generator = torch.Generator().manual_seed(sampler.epoch)
    indices = []
    while len(indices) < begin + len(sampler):
        permutation = torch.randperm(sampler.enlarged, generator=generator)
        indices += (permutation[sampler.rank :: sampler.world_size] % len(sampler.dataset)).tolist()
    return indices[begin : begin + len(sampler)]


@pytest.mark.parametrize(('kind', 'length'), [(BatchNumbers, 800), (Images, 800), (Images, ITERATIONS * BATCH // 8)])
def test_the_first_items_of_a_long_pass_come_at_once_and_need_little_memory(kind, length):
    sampler = PlannedSampler(kind(length), 8, 3, 1, batch_size=BATCH, iters_per_epoch=ITERATIONS, total_iter=ITERATIONS)
    sampler.set_epoch(0)
    assert len(sampler) == 112_000_000
    tracemalloc.start()
    try:
        begin = time.process_time()
        items = iter(sampler)
        first = [next(items) for _ in range(2 * BATCH)]
        seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(first) == 2 * BATCH
    assert seconds < 4  # the permutation of all items alone takes longer
    assert peak < 20e6  # bytes of Python objects


@pytest.mark.parametrize('kind', [BatchNumbers, Images])
@pytest.mark.parametrize('start_iter', [0, 1, 4, 7])
@pytest.mark.parametrize(('world', 'ratio', 'part'), [(1, 1, 2), (2, 1, 3), (3, 2.5, 100)])
def test_the_order_is_that_of_the_list(kind, start_iter, world, ratio, part, monkeypatch):
    monkeypatch.setattr('clit_basicsr.hosts.basicsr.sampler.PART', part)
    for rank in range(world):
        options = {'batch_size': 3, 'iters_per_epoch': 4, 'total_iter': 11, 'start_iter': start_iter}
        sampler = PlannedSampler(kind(7), world, rank, ratio, **options)
        for epoch in range(start_iter // 4, 4):
            sampler.set_epoch(epoch)
            assert list(sampler) == as_list(sampler)
