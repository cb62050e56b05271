"""The plan of iterations: numbers at its borders, and the host's loaders and prefetchers on top of it."""

import logging
import math
import random
from collections import Counter

import basicsr.data.prefetch_dataloader
import basicsr.train
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader
from torch.utils.data import Dataset

from clit_basicsr.hosts.basicsr.sampler import PlannedSampler, plan


class Images(Dataset):
    """Items are their own index, beside what numpy and random draw."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {'index': index, 'numpy': np.random.rand(), 'random': random.random()}


class BatchNumbers(Images):
    takes_batch_numbers = True

    def __getitems__(self, items):
        return [{'batch': b, 'position': i} for b, i in items]


class Broken(Images):
    def __getitem__(self, index):
        raise ValueError(f'image {index} cannot be read')


def make_opt(length=6, batch=4, total_iter=20, ratio=1, resumed=None, **dataset):
    opt = {
        'dist': False,
        'num_gpu': 0,
        'rank': 0,
        'world_size': 1,
        'manual_seed': 3,
        'train': {'total_iter': total_iter},
        'datasets': {
            'train': {
                'phase': 'train',
                'batch_size_per_gpu': batch,
                'num_worker_per_gpu': 0,
                'dataset_enlarge_ratio': ratio,
                **dataset,
            }
        },
    }
    return opt | ({'resumed': resumed} if resumed else {})


def host_loop(opt, dataset, monkeypatch):
    """The host's training loop with nothing but its loader: the list of (iteration, batch)."""
    monkeypatch.setattr(basicsr.train, 'build_dataset', lambda _: dataset)
    loaders = basicsr.train.create_train_val_dataloader(opt, logging.getLogger('test'))
    train_loader, sampler, _, total_epochs, total_iters = loaders
    mode = opt['datasets']['train'].get('prefetch_mode')
    prefetcher = (
        basicsr.train.CUDAPrefetcher(train_loader, opt) if mode == 'cuda' else basicsr.train.CPUPrefetcher(train_loader)
    )
    resumed = opt.get('resumed', {'epoch': 0, 'iter': 0})
    current_iter, seen = resumed['iter'], []
    for epoch in range(resumed['epoch'], total_epochs + 1):
        sampler.set_epoch(epoch)
        prefetcher.reset()
        data = prefetcher.next()
        while data is not None:
            current_iter += 1
            if current_iter > total_iters:
                break
            seen.append((current_iter, data))
            data = prefetcher.next()
    return current_iter, seen


@pytest.mark.parametrize(
    ('length', 'batch', 'total', 'ratio'),
    [(6, 4, 20, 1), (6, 4, 21, 1), (1, 4, 5, 1), (9, 3, 9, 1), (5, 2, 7, 3), (7, 2, 1, 40), (4, 8, 6, 0.5)],
)
def test_every_planned_iteration_and_no_more(length, batch, total, ratio, monkeypatch):
    last, seen = host_loop(make_opt(length, batch, total, ratio), Images(length), monkeypatch)
    assert last == total  # the host labels its last validation with this
    assert [iteration for iteration, _ in seen] == list(range(1, total + 1))
    assert all(len(data['index']) == batch for _, data in seen)


@pytest.mark.parametrize('prefetch_mode', [None, 'cpu', 'cuda'])
@pytest.mark.parametrize('workers', [0, 1, 3])
@pytest.mark.parametrize('persistent', [False, True])
def test_batch_numbers_through_the_hosts_loaders(prefetch_mode, workers, persistent, monkeypatch):
    opt = make_opt(
        5,
        2,
        total_iter=12,
        num_worker_per_gpu=workers,
        prefetch_mode=prefetch_mode,
        num_prefetch_queue=2,
        persistent_workers=persistent and workers > 0,
    )
    last, seen = host_loop(opt, BatchNumbers(5), monkeypatch)
    assert last == 12
    assert [data['batch'].tolist() for _, data in seen] == [[b, b] for b in range(12)]
    assert all(data['position'].tolist() == [0, 1] for _, data in seen)


@pytest.mark.parametrize('killed_at', [1, 3, 4, 6, 11, 12])
def test_resume_goes_on_where_the_state_was_written(killed_at, monkeypatch):
    epoch = (killed_at - 1) // 3  # 5 images in batches of 2: the host counts 3 iterations per epoch
    for dataset in (Images(5), BatchNumbers(5)):
        _, whole = host_loop(make_opt(5, 2, total_iter=12), dataset, monkeypatch)
        opt = make_opt(5, 2, total_iter=12, resumed={'epoch': epoch, 'iter': killed_at})
        last, rest = host_loop(opt, dataset, monkeypatch)
        key = 'batch' if isinstance(dataset, BatchNumbers) else 'index'
        assert last == 12
        assert [(i, d[key].tolist()) for i, d in rest] == [(i, d[key].tolist()) for i, d in whole[killed_at:]]


def test_a_state_of_a_later_epoch_than_planned_still_trains(monkeypatch):
    # the state comes from a run with a smaller batch: epoch 9 of what are now 4
    last, seen = host_loop(make_opt(6, 2, total_iter=12, resumed={'epoch': 9, 'iter': 10}), Images(6), monkeypatch)
    assert (last, len(seen)) == (12, 2)


def test_images_are_permuted_evenly_and_differently_in_each_pass():
    sampler = plan(make_opt(length=6, batch=3, total_iter=8, ratio=2), Images(6), 1, 0, 2)
    passes = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)  # restartable
        passes.append(list(sampler))
    assert [len(p) for p in passes] == [12, 12, 0]
    assert all(set(Counter(p).values()) == {2} for p in passes[:2])
    assert passes[0] != passes[1]


def test_ranks_share_the_images_of_a_pass():
    kwargs = dict(batch_size=2, iters_per_epoch=math.ceil(9 / 6), total_iter=4)
    shares = [PlannedSampler(Images(9), 3, rank, 1, **kwargs) for rank in range(3)]
    for sampler in shares:
        sampler.set_epoch(0)
        assert len(sampler) == len(list(sampler)) == 4
    first_batches = [index for sampler in shares for index in list(sampler)[:3]]  # 3 of 9 images each
    assert sorted(first_batches) == list(range(9))


def test_same_epoch_again_is_the_same_pass_and_nothing_before_the_first():
    sampler = plan(make_opt(), Images(6), 1, 0, 1)
    assert len(sampler) == len(list(sampler)) == 0
    sampler.set_epoch(0)
    before = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == before
    assert len(before) == 8


def test_several_gpus_without_a_launcher_fill_their_larger_batches():
    opt = make_opt(length=6, batch=4, total_iter=5)
    opt['num_gpu'] = 2
    sampler = plan(opt, Images(6), 1, 0, 1)
    sampler.set_epoch(0)
    assert len(sampler) == 2 * 4 * 2  # two iterations of four samples for each of two GPUs


def test_workers_draw_anew_in_each_epoch_and_alike_for_the_same_seed():
    def draws(seed):
        torch.manual_seed(seed)
        opt = make_opt(length=4, batch=2, num_worker_per_gpu=2)['datasets']['train']
        loader = build_dataloader(Images(4), opt, num_gpu=0, seed=seed)
        return [[(b['numpy'].tolist(), b['random'].tolist()) for b in loader] for _ in range(2)]

    first, second = draws(0)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert len({value for numpy_draws, _ in first + second for value in numpy_draws}) == 8
    assert draws(0) == [first, second]
    assert draws(1) != [first, second]


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_reaches_the_training_loop_through_the_prefetching_thread(workers, monkeypatch):
    opt = make_opt(num_worker_per_gpu=workers, prefetch_mode='cpu')
    with pytest.raises(ValueError, match='cannot be read'):
        host_loop(opt, Broken(6), monkeypatch)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no NVIDIA GPU')
def test_cuda_prefetcher_brings_every_batch_to_the_gpu(monkeypatch):
    opt = make_opt(5, 2, total_iter=12, prefetch_mode='cuda', pin_memory=True, num_worker_per_gpu=1)
    opt['num_gpu'] = 1
    last, seen = host_loop(opt, BatchNumbers(5), monkeypatch)
    assert last == 12
    assert [data['batch'].tolist() for _, data in seen] == [[b, b] for b in range(12)]
    assert all(data['batch'].is_cuda for _, data in seen)
