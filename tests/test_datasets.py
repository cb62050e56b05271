"""Training batches: what they depend on, where their pixels come from; and the messages about bad data."""

import itertools
import os
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from helpers.pictures import ramp, save
from skimage import data
from torch.utils.data import DataLoader

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.pairs import downsample
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset, sample_pixels

STAGES = [
    {'branches': branches, 'iters': iters, 'lr': 1e-4, 'milestones': [], 'scales': scales}
    for branches, iters, scales in (
        (1, 2, [[[1, 4]]]),
        (2, 4, [[[1, 4]], [[1, 3], [1, 2]]]),
        (3, 20, [[[1, 4]], [[1, 3], [1, 2]], [[1, 2], [1, 2], [1, 2]]]),
    )
]


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Seven photographs of different sizes, among what a listing must pass over."""
    folder = tmp_path_factory.mktemp('photographs')
    astronaut, cat, cup = data.astronaut(), data.chelsea(), data.coffee()
    crops = (astronaut[:90, :120], astronaut[200:301, 100:190], cat[:150, 100:200], cat[60:200, 200:340])
    crops += (cup[:85, :140], cup[100:220, 200:297], cup[200:380, 100:300])
    for i, crop in enumerate(crops):
        save(crop, folder / f'{"abcdefg"[-i]}.{("png", "PNG", "bmp")[i % 3]}')
    (folder / '.hidden.png').write_bytes(b'not an image')
    (folder / 'Thumbs.db').write_bytes(b'not an image')
    (folder / 'sub.png').mkdir()
    return folder


@pytest.fixture(scope='module')
def photographs_lmdb(photographs, tmp_path_factory):
    root = str(tmp_path_factory.mktemp('lmdb') / 'photographs.lmdb')
    names = sorted(name for name in os.listdir(photographs) if len(name) == 5)
    make_lmdb_from_imgs(str(photographs), root, names, [name[0] for name in names])
    return root


def make(root, **opt):
    defaults = {'name': 'train', 'type': 'RandomScaleDataset', 'phase': 'train', 'dataroot_gt': str(root)}
    return RandomScaleDataset(defaults | {'lq_size': 16, 'num_queries': 60, 'manual_seed': 5} | opt)


def batches(dataset, numbers, batch_size=4, workers=0):
    """The batches of those numbers through torch's own loader, as the host's sampler asks for them."""
    items = [(b, i) for b in numbers for i in range(batch_size)]
    return list(DataLoader(dataset, batch_size, sampler=items, num_workers=workers, drop_last=True))


def assert_same(batch, other, but=()):
    assert batch.keys() == other.keys()
    for key in batch.keys() - set(but):
        value = batch[key]
        assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key], key


# ---- what a batch depends on


def test_twelve_batches_do_not_depend_on_the_workers(photographs):
    dataset = make(photographs, stages=STAGES)
    alone = batches(dataset, range(12))
    assert [batch['scales'].shape[1] for batch in alone] == [1, 1, 1, 2, 1, 2, 1, 2, 3, 1, 2, 3]
    for workers in (1, 3):
        for batch, expected in zip(batches(dataset, range(12), workers=workers), alone, strict=True):
            assert_same(batch, expected)


def test_batches_do_not_depend_on_what_was_loaded_before_nor_on_global_generators(photographs):
    whole = batches(make(photographs, stages=STAGES), range(10))
    np.random.seed(123)
    torch.manual_seed(123)
    resumed = batches(make(photographs, stages=STAGES), range(7, 10), workers=2)
    for batch, expected in zip(resumed, whole[7:], strict=True):
        assert_same(batch, expected)


def test_batches_follow_the_seed_and_differ_among_themselves(photographs):
    first, again = (batches(make(photographs), range(8)) for _ in range(2))
    other = batches(make(photographs, manual_seed=6), range(8))
    for batch, expected, differing in zip(first, again, other, strict=True):
        assert_same(batch, expected)
        assert batch['scales'][0, 0, 0] != differing['scales'][0, 0, 0]
        assert not torch.equal(batch['lq'], differing['lq'])
    assert len({batch['scales'][0, 0, 0].item() for batch in first}) == 8
    assert len({batch['cell'][0, 0].item() for batch in first}) > 4


def test_two_epochs_differ_in_scales_crops_and_queries(photographs):
    # The same image comes back in every pass; only its number in the row differs.
    dataset = make(photographs, scales=[[[2, 2]]])
    seen = {}
    for batch in batches(dataset, range(14), batch_size=2):
        for i, name in enumerate(batch['gt_path']):
            seen.setdefault(name, []).append((batch['lq'][i], batch['coord'][i]))
    assert [len(crops) for crops in seen.values()] == [4] * 7
    for crops in seen.values():
        for (lq, coord), (other_lq, other_coord) in itertools.combinations(crops, 2):
            assert not torch.equal(lq, other_lq) and not torch.equal(coord, other_coord)
    first, second = batches(make(photographs), range(4)), batches(make(photographs), range(4, 8))
    assert not {b['scales'][0, 0, 0].item() for b in first} & {b['scales'][0, 0, 0].item() for b in second}


def test_every_pass_holds_each_image_once_and_ranks_share_it(photographs):
    dataset = make(photographs)
    names = [name for batch in batches(dataset, range(7), batch_size=3) for name in batch['gt_path']]
    passes = [names[:7], names[7:14], names[14:]]
    assert all(sorted(one) == dataset.source.names for one in passes)
    assert passes[0] != passes[1] != passes[2]

    ranks = [make(photographs, stages=STAGES) for _ in range(2)]
    for rank, one in enumerate(ranks):
        one.rank, one.world_size = rank, 2
    left, right = (batches(one, range(14), batch_size=1) for one in ranks)
    row = [name for pair in zip(left, right, strict=True) for batch in pair for name in batch['gt_path']]
    assert all(sorted(row[i : i + 7]) == dataset.source.names for i in range(0, 28, 7))
    for a, b in zip(left, right, strict=True):
        assert a['scales'].shape == b['scales'].shape  # the same branches, at scales of its own
        assert a['scales'][0, 0, 0] != b['scales'][0, 0, 0]


def test_plain_integers_serve_an_ordinary_loader(photographs):
    dataset = make(photographs)
    assert dataset[5]['gt_path'] == dataset.source.names[5] == dataset[12]['gt_path']
    loaded = list(DataLoader(dataset, 3, sampler=[4, 1, 6, 0, 0, 2], num_workers=1))
    assert [os.path.basename(name)[0] for batch in loaded for name in batch['gt_path']] == list('ebgaac')
    assert loaded[0]['scales'].unique().numel() == 1
    assert_same(loaded[1], next(iter(DataLoader(dataset, 3, sampler=[0, 0, 2]))))


def test_a_batch_in_the_wrong_order_is_refused(photographs):
    with pytest.raises(ValueError, match=r'positions 0, 1, 2'):
        make(photographs).__getitems__([(3, 2), (4, 0)])


# ---- where the pixels come from


def test_shapes_types_and_ranges(photographs):
    batch = batches(make(photographs, stages=STAGES), [8])[0]
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items() if torch.is_tensor(value)} == {
        'lq': ((4, 3, 16, 16), torch.float32),
        'gt': ((4, 60, 3), torch.float32),
        'coord': ((4, 60, 2), torch.float32),
        'cell': ((4, 2), torch.float32),
        'scales': ((4, 3, 2), torch.float64),
        'drawn': ((4, 3), torch.float64),
    }
    for key in ('lq', 'gt'):
        assert 0 <= batch[key].min() < batch[key].max() <= 1
        assert torch.equal((batch[key] * 255).round() / 255, batch[key])  # 8 bit
    assert torch.equal(batch['scales'][..., 0], batch['scales'][..., 1])
    size = round(16 * float(batch['scales'][0, :, 0].prod()))
    assert torch.equal(batch['cell'], torch.full((4, 2), 2 / size))


def pixel_of(coord, size):
    return (((coord.double() + 1) * size - 1) / 2).round().long()


@pytest.mark.parametrize('downsampling', ['pil', 'matlab'])
def test_queries_are_the_pixels_at_their_coordinates(tmp_path, downsampling):
    save(ramp(200, 240), tmp_path / 'ramp.png')
    dataset = make(tmp_path, use_hflip=False, use_rot=False, downsampling=downsampling, scales=[[[1, 4], [1, 2]]])
    corners = set()
    for batch in batches(dataset, range(12), batch_size=2):
        size = round(2 / batch['cell'][0, 0].item())
        exact = (-1 + 1 / size) + (2 / size) * torch.arange(size, dtype=torch.float32)
        for lq, gt, coord in zip(batch['lq'], batch['gt'], batch['coord'], strict=True):
            pixel = pixel_of(coord, size)
            assert torch.equal(coord, exact[pixel])
            corner = (gt[:, :2] * 255).round().long() - pixel
            assert (corner == corner[0]).all() and (gt[:, 2] * 255).round().eq(7).all()
            corners.add(tuple(corner[0].tolist()))
            # The LR image is the crop of that corner, and its ramp has the same phase.
            crop = ramp(200, 240)[corner[0, 0] : corner[0, 0] + size, corner[0, 1] : corner[0, 1] + size]
            expected = downsample(crop, (16, 16), downsampling)
            assert np.array_equal((lq * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    assert len(corners) > 20


def test_lr_and_queries_stay_together_in_all_eight_orientations(tmp_path):
    save(ramp(200, 240), tmp_path / 'ramp.png')
    seen = set()
    for batch in batches(make(tmp_path, scales=[[[2.5, 2.5]]], num_queries=2000), range(12)):
        # Away from the rim a ramp survives bicubic shrinking and bilinear reading: half a level of rounding is left.
        read = F.grid_sample(batch['lq'], batch['coord'].flip(-1).unsqueeze(2), align_corners=False)[..., 0]
        inside = (batch['coord'].abs() < 0.7).all(-1)
        error = (read.transpose(1, 2) - batch['gt'])[inside].abs().max() * 255
        assert error < 0.6
        for lq in batch['lq']:
            red_y, red_x = lq[0, 12, 8] - lq[0, 4, 8], lq[0, 8, 12] - lq[0, 8, 4]
            green_y, green_x = lq[1, 12, 8] - lq[1, 4, 8], lq[1, 8, 12] - lq[1, 8, 4]
            seen.add(tuple(int(torch.sign(slope)) for slope in (red_y, red_x, green_y, green_x)))
    straight = {(a, 0, 0, b) for a in (-1, 1) for b in (-1, 1)}
    transposed = {(0, a, b, 0) for a in (-1, 1) for b in (-1, 1)}
    assert seen == straight | transposed


@pytest.mark.parametrize(('hflip', 'rot', 'orientations'), [(True, False, 2), (False, True, 4), (False, False, 1)])
def test_augmentation_options(tmp_path, hflip, rot, orientations):
    save(ramp(100, 100), tmp_path / 'ramp.png')
    dataset = make(tmp_path, use_hflip=hflip, use_rot=rot, scales=[[[2, 2]]])
    lq = torch.cat([batch['lq'] for batch in batches(dataset, range(10))])
    slopes = torch.stack([lq[:, 0, -1, 0] - lq[:, 0, 0, 0], lq[:, 1, 0, -1] - lq[:, 1, 0, 0]], 1).sign()
    if not rot:
        assert (slopes[:, 0] == 1).all()  # nothing is turned upside down
    red_x = (lq[:, 0, 0, -1] - lq[:, 0, 0, 0]).sign()
    green_y = (lq[:, 1, -1, 0] - lq[:, 1, 0, 0]).sign()
    seen = {tuple(row) for row in torch.cat([slopes, red_x[:, None], green_y[:, None]], 1).tolist()}
    assert len(seen) == orientations


def test_corners_reach_every_edge_of_the_image(tmp_path):
    save(ramp(34, 33), tmp_path / 'ramp.png')
    dataset = make(tmp_path, use_hflip=False, use_rot=False, scales=[[[2, 2]]], num_queries=10**4)
    first = torch.cat([batch['gt'].amin(1)[:, :2] for batch in batches(dataset, range(10))])
    assert {tuple(corner) for corner in (first * 255).round().int().tolist()} == {
        (y, x) for y in range(3) for x in range(2)
    }


def test_queries_are_unique_and_all_pixels_where_there_are_few(photographs):
    dataset = make(photographs, lq_size=7, num_queries=150, scales=[[[1, 1]], [[1.5, 1.5]], [[4, 4]]])
    for batch, size in zip(batches(dataset, range(3)), (7, 10, 28), strict=True):
        assert batch['cell'][0, 0] == np.float32(2 / size)
        for coord in batch['coord']:
            pixels = pixel_of(coord, size)
            assert len({tuple(pixel) for pixel in pixels.tolist()}) == min(150, size * size) == len(coord)
            assert pixels.min() >= 0 and pixels.max() < size


def test_queries_cover_the_crop_evenly():
    rng = np.random.default_rng(0)
    count = np.zeros((20, 20))
    for _ in range(2000):
        y, x = sample_pixels(20, 40, rng)
        count[y, x] += 1
    # 200 expected per pixel, standard deviation 13.4
    assert count.min() > 140 and count.max() < 260
    assert abs(count[:10].mean() - 200) < 5 and abs(count[:, :10].mean() - 200) < 5


def test_cost_of_sampling_queries_does_not_grow_with_the_crop():
    rng = np.random.default_rng(0)

    def peak(size):
        tracemalloc.start()
        y, _ = sample_pixels(size, 2304, rng)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(y) == 2304
        return peak

    peak(48)
    assert peak(20_000) < 2**20  # a permutation of these pixels would take 3 GB


def test_smallest_image_of_the_batch_limits_the_crop(tmp_path):
    save(ramp(200, 210), tmp_path / 'large.png')
    save(ramp(120, 40), tmp_path / 'small.png')
    dataset = make(tmp_path, scales=[[[4, 4]], [[2, 2], [4, 4]], [[1.25, 1.25], [1.5, 1.5], [1, 1]]])
    both = [batch['scales'][0, :, 0].tolist() for batch in batches(dataset, range(3), batch_size=2)]
    assert both == [[2.5], [1, 2.5], [1.25, 1.5, 1]]
    alone = {}
    for b in range(0, 12, 3):
        batch = batches(dataset, [b], batch_size=1)[0]
        alone[os.path.basename(batch['gt_path'][0])] = batch['scales'][0, 0, 0].item()
    assert alone == {'large.png': 4, 'small.png': 2.5}


def test_an_image_of_the_patch_size_gives_scale_one(tmp_path):
    save(ramp(16, 30), tmp_path / 'small.png')
    batch = batches(make(tmp_path, stages=STAGES), [8], batch_size=2)[0]
    assert batch['scales'].eq(1).all() and batch['scales'].shape == (2, 3, 2)
    assert batch['gt'].shape == (2, 60, 3) and batch['cell'].eq(2 / 16).all()


# ---- storage


def test_lmdb_equals_folder_also_after_a_fork(photographs, photographs_lmdb):
    folder, lmdb = make(photographs), make(photographs_lmdb, io_backend={'type': 'lmdb'})
    lmdb[0]  # opens it here, as a validation does, before workers are started
    second = make(photographs_lmdb + '/', io_backend={'type': 'lmdb'})  # the same data for another set
    for workers in (0, 2):
        pairs = zip(batches(folder, range(6)), batches(lmdb, range(6), workers=workers), strict=True)
        for batch, other in pairs:
            assert_same(batch, other, but=('lq_path', 'gt_path'))
            assert [os.path.basename(path)[0] for path in batch['gt_path']] == other['gt_path']
        assert torch.equal(second[3]['lq'], lmdb[3]['lq'])
    restored = pickle.loads(pickle.dumps(lmdb))  # what a spawned worker gets
    assert torch.equal(restored[3]['gt'], lmdb[3]['gt'])


# ---- bad data


def refused(message, root, **opt):
    with pytest.raises(UserError) as error:
        make(root, **opt)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_bad_folders_are_named(tmp_path, photographs, photographs_lmdb):
    refused(f'dataroot_gt: folder {tmp_path}/nothing does not exist;', tmp_path / 'nothing')
    refused(f'dataroot_gt: {tmp_path} holds no images;', tmp_path)
    refused('(it is an LMDB: set io_backend: {type: lmdb})', photographs_lmdb)
    refused("io_backend: type 'zip' is not known", photographs, io_backend={'type': 'zip'})
    refused(f'{tmp_path}/list.txt cannot be read (No such file', photographs, meta_info_file=str(tmp_path / 'list.txt'))
    (tmp_path / 'list.txt').write_text('\n')
    refused(f'{tmp_path}/list.txt lists no images', photographs, meta_info_file=str(tmp_path / 'list.txt'))
    (tmp_path / 'list.txt').write_text('z.png (3,4,3)\n')
    refused(f'{photographs}/z.png: listed in', photographs, meta_info_file=str(tmp_path / 'list.txt'))


def test_bad_options_are_named(photographs):
    refused('lq_size: must be a whole number of at least 1, got 0', photographs, lq_size=0)
    refused("num_queries: must be a whole number of at least 1, got '9'", photographs, num_queries='9')
    refused("downsampling: 'bilinear' is not known", photographs, downsampling='bilinear')
    refused('scales: alternative 1: a range [lo, hi] needs 1 <= lo <= hi', photographs, scales=[[[0, 4]]])
    refused('start_stage: must be between 1 and 3', photographs, stages=STAGES, start_stage=4)


def test_too_small_and_unreadable_images_are_named(tmp_path):
    save(ramp(15, 40), tmp_path / 'tiny.png')
    with pytest.raises(UserError, match=r'tiny\.png: its smaller side of 15 pixels is below .*lq_size: 16'):
        batches(make(tmp_path), [0])
    (tmp_path / 'tiny.png').write_bytes(b'no image')
    for workers in (0, 1):
        with pytest.raises(UserError, match=r'tiny\.png: cannot be read as an image; replace it or remove it'):
            batches(make(tmp_path), [0], workers=workers)


def test_an_image_that_went_away_is_named(tmp_path):
    save(ramp(30, 40), tmp_path / 'gone.png')
    dataset = make(tmp_path)
    os.remove(tmp_path / 'gone.png')
    with pytest.raises(UserError, match=r'gone\.png: cannot be read \(No such file'):
        dataset[0]


@pytest.mark.parametrize('extra', [{}, {'stages': STAGES}])
def test_options_table_lists_what_is_read(photographs, extra):
    class Recorder(dict):
        def get(self, key, default=None):
            read.add(key)
            return super().get(key, default)

        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

    read = set()
    RandomScaleDataset(Recorder(dataroot_gt=str(photographs), manual_seed=1, **extra))[0]
    assert {'dataroot_gt', 'lq_size', 'stages', 'manual_seed'} <= read <= RandomScaleDataset.OPTIONS.keys()
