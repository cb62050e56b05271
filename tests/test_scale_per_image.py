"""Training batches whose images have scales of their own, and HR crops that are shrunk first."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import build, queries
from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset
from clit_basicsr.models.implicit_sr_model import ImplicitSRModel


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
    return str(tmp_path)


def dataset(folder, **options):
    return RandomScaleDataset({'dataroot_gt': folder, 'lq_size': 12, 'num_queries': 100, **options})


def batch(data, number=0):
    return data.__getitems__([(number, i) for i in range(8)])


def test_every_image_has_its_own_scale_that_fits_it(folder):
    data = dataset(folder, scale_per_image=True, scales=[[[1, 9]]])
    samples = batch(data)
    scales = [one['scales'][0, 0].item() for one in samples]
    assert len(set(scales)) > 4
    assert len({one['scales'][0, 0].item() for one in batch(dataset(folder))}) == 1
    for one, scale in zip(samples, scales, strict=True):
        assert 1 <= scale <= 64 / 12
        assert one['cell'].tolist() == pytest.approx([2 / round(12 * scale)] * 2)
        assert one['gt'].shape == (*one['coord'].shape[:1], 3) == (100, 3)
    assert all((a['lq'] == b['lq']).all() for a, b in zip(samples, batch(data), strict=True))


def test_shrunk_crops_have_the_size_of_their_queries(folder):
    """Pixels of a crop that was not shrunk are those of the image; of one that was, means."""
    samples = [one for number in range(4) for one in batch(dataset(folder, shrink=2, scales=[[[2, 2]]]), number)]
    sizes = {round(2 / one['cell'][0].item()) for one in samples}
    assert sizes <= set(range(22, 25))
    spread = [one['gt'].std().item() for one in samples]
    assert 0.1 < np.mean([s < 0.25 for s in spread]) < 0.9  # noise of 0.29 before
    assert all(one['gt'].std() > 0.25 for one in batch(dataset(folder, scales=[[[2, 2]]])))


def test_wrong_options(folder):
    with pytest.raises(UserError, match='num_queries'):
        dataset(folder, scale_per_image=True, num_queries=145)
    with pytest.raises(UserError, match='shrink'):
        dataset(folder, shrink=0.5)


def test_networks_that_cannot_be_trained_so_are_refused():
    opt = {'is_train': True, 'network_g': {'type': 'x'}, 'datasets': {'train': {'scale_per_image': True}}, 'train': {}}
    with pytest.raises(UserError, match='one scale for a whole batch'):
        ImplicitSRModel.check_network(opt, build('CLIT'))
    ImplicitSRModel.check_network(opt, build('LIIF'))
    opt['train']['variation_weight'] = 1e-4
    with pytest.raises(UserError, match='LIIF has no field'):
        ImplicitSRModel.check_network(opt, build('LIIF'))
    ImplicitSRModel.check_network(opt, build('Thera_air'))


def test_a_step_with_variation_and_a_limited_gradient():
    """The loss that is minimised is l_pix + weight * l_variation; the gradient of all parameters has the norm asked."""
    model = object.__new__(ImplicitSRModel)
    model.net_g = build('Thera_air').train()
    model.opt = {'train': {'variation_weight': 10.0, 'grad_clip': 0.01}}
    model.device, model.ema_decay, model.files, model.scales = torch.device('cpu'), 0, [], None
    model.optimizer_g = torch.optim.SGD(model.net_g.parameters(), lr=1.0)
    model.cri_pix = torch.nn.L1Loss()
    model.loss_guard = SimpleNamespace(accepts=lambda loss, *_: seen.append(loss.item()) or True)
    coord, cell = queries((9, 8), 2)
    model.lq, model.gt, model.coord, model.cell = torch.rand(2, 3, 5, 4), torch.rand(2, 72, 3), coord, cell
    seen, before = [], [p.detach().clone() for p in model.net_g.parameters()]
    model.optimize_parameters(1)
    log = model.log_dict
    assert seen[0] == pytest.approx(log['l_pix'].item() + 10 * log['l_variation'].item(), rel=1e-6)
    moved = sum((p - q).square().sum() for p, q in zip(model.net_g.parameters(), before, strict=True)).sqrt()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)
