"""All networks and operators on a pretended GPU: nothing is on the wrong device, and the host seldom waits."""

import kernel_checks
import numpy as np
import pytest
import torch
from helpers.awkward_pictures import color
from helpers.encoders import HOSTS
from helpers.networks import NETWORKS, build, queries
from helpers.pretended_gpu import OnGpu, backward, pretended_gpu, to_gpu

from clit_basicsr.archs.clit_arch import CLIT
from clit_basicsr.archs.lit_arch import LIT
from clit_basicsr.models import ImplicitSRModel
from clit_basicsr.models.clipped_scales import ClippedScales
from clit_basicsr.models.loss_guard import LossGuard
from clit_basicsr.ops import backends, use_backend
from clit_basicsr.ops.backends import contract, cuda_backend
from clit_basicsr.pictures.attention import attention_at
from clit_basicsr.pictures.enlarge import enlarge
from clit_basicsr.pictures.files import Picture
from clit_basicsr.pictures.zoom import plan_shots, render_film


@pytest.fixture(autouse=True)
def kernels(emulation, monkeypatch):
    """The emulated kernels, which take nothing but contiguous tensors of a GPU."""

    def run(name, *arguments):
        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        assert all(isinstance(t, OnGpu) and t.is_contiguous() for t in tensors), name
        getattr(emulation, name)(*arguments, 0)

    monkeypatch.setattr(cuda_backend, 'run', run)
    monkeypatch.setattr(cuda_backend, 'unavailable', lambda device=None: None)
    monkeypatch.setattr(backends, '_usable', set())


def compare(call, net, backend):
    """A network must answer the same on the CPU and on the pretended GPU; gives what the host waited for there."""
    with use_backend('reference'):
        expected = call(net, torch.device('cpu'))
    with pretended_gpu() as gpu, use_backend(backend):
        found = call(to_gpu(net), torch.device('cuda'))
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, OnGpu)
        assert (a.inner - b).abs().max() <= 1e-4 * b.abs().max()
    return gpu.waits


def step(net, device):
    """The output of a training step, and the gradients."""
    torch.manual_seed(0)
    lq, (coord, cell) = torch.rand(2, 3, 7, 6), queries((25, 20), 2)
    lq, coord, cell = (t.to(device, non_blocking=True) for t in (lq, coord, cell))
    scales = [1.7, 2.1] if isinstance(net, CLIT) else None
    net.zero_grad()
    out = net(lq, coord, cell, scales)
    if out.requires_grad:
        backward(out.square().sum())
    # The true gradient of that bias is 0.
    return [out.detach(), *(p.grad for key, p in net.named_parameters() if key != 'position_encoder.proj.bias')]


def picture(net, device):
    torch.manual_seed(0)
    lq = torch.rand(1, 3, 7, 6).to(device, non_blocking=True)
    return [net.upscale(lq, scale=(3.4, 2)), net.upscale(lq, scale=5, tile={'tile_size': 4, 'tile_pad': 8})]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name', kernel_checks.OPERATORS)
def test_operators(name, dtype):
    with pretended_gpu():
        kernel_checks.check(name, dtype, 'cuda', size=(4, 3), queries=9, shape=(64, 2, 3, 8))


def test_a_training_step_copies_nothing_to_the_gpu_but_its_batch():
    """A CUDA graph would copy the same again."""
    net = build('LIT')
    with pretended_gpu() as gpu:
        before = gpu.copies, step(to_gpu(net), torch.device('cuda'))
        assert gpu.copies - before[0] == 3  # images, coordinates, cells


CASES = [*((name, 'auto') for name in NETWORKS), ('LIT', 'reference'), ('LIT', 'torch'), ('CLIT', 'torch')]


@pytest.mark.parametrize(('name', 'backend'), CASES)
def test_training_steps(name, backend):
    waits = compare(step, build(name), backend)
    # In plain torch, where each of three convolutions reads upsampled features, forwards and backwards.
    assert waits == (['to the CPU'] * 3 * 2 * 2 if (name, backend) == ('CLIT', 'torch') else [])


@pytest.mark.parametrize(('name', 'backend'), CASES)
def test_pictures(name, backend):
    waits = compare(picture, build(name), backend)
    if backend == 'torch':
        waits = [cause for cause in waits if cause != 'to the CPU']
    # How many branches of a cascade are trained is known to the GPU.
    assert waits == (['aten._local_scalar_dense.default'] * 2 if name == 'CLIT' else [])


@pytest.mark.filterwarnings('ignore:User provided device_type')
def test_training_goes_on_without_waiting_for_the_last_step():
    model = object.__new__(ImplicitSRModel)
    coord, cell = queries((25, 20), 2)
    data = {'lq': torch.rand(2, 3, 7, 6), 'gt': torch.rand(2, 500, 3), 'coord': coord, 'cell': cell}
    with pretended_gpu() as gpu:
        model.opt, model.device, model.ema_decay = {'train': {}, 'dist': False}, torch.device('cuda'), 0
        model.net_g, model.cri_pix = to_gpu(build('LIT')), torch.nn.L1Loss()
        model.optimizer_g = torch.optim.SGD(model.net_g.parameters(), lr=0.1, foreach=False)
        model.clipped_scales, model.loss_guard = ClippedScales(), LossGuard(3, 'models')
        losses = []
        for step in (1, 2):
            model.feed_data({**data, 'scales': torch.ones(1, 1, 2), 'drawn': torch.ones(1, 1), 'gt_path': ['x.png']})
            model.optimize_parameters(step)
            assert gpu.waits == []
            losses.append(model.get_current_log()['l_pix'])
            assert gpu.waits == ['aten._local_scalar_dense.default']
            gpu.waits.clear()
    assert 0 < losses[1] < losses[0] < 1


def test_the_commands_on_pictures(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (1 << 33, 1 << 33))
    picture, net = Picture(color(20, 17)), build('CLIT')

    def answers(net):
        large, _ = enlarge(net, picture, None, 2.5)
        film = list(render_film(net, picture, plan_shots((20, 17), (16, 16), (5, 5), 3, 3), (16, 16)))
        view = attention_at(net, picture, (3.2, 4.5), 6)
        return [large.pixels, *film, view.result, *(branch.weights for branch in view.maps)]

    with use_backend('reference'):
        expected = answers(net)
    with pretended_gpu():
        found = answers(to_gpu(net))
    for a, b in zip(found, expected, strict=True):
        assert np.abs(np.float64(a) - b).max() < (1.01 if a.dtype == np.uint8 else 1e-4)


@pytest.mark.parametrize('kind', HOSTS)
def test_encoders(kind):
    torch.manual_seed(0)
    net = LIT(encoder={'type': kind, **HOSTS[kind][1]}, dim=8, num_heads=2, grid_size=3, hidden_dims=(8,)).eval()
    compare(step, net, 'auto')


def test_bands_and_blocks(monkeypatch):
    monkeypatch.setattr(contract, 'GPU_BAND_BYTES', 1)
    monkeypatch.setattr(contract, 'GPU_STEP_QUERIES', 50)
    monkeypatch.setattr(cuda_backend, 'SHARING_PAYS', 100)
    assert compare(picture, build('LIT'), 'auto') == []


def test_what_is_on_two_devices_is_refused():
    with pretended_gpu() as gpu:
        there, here = torch.ones(3, device='cuda'), torch.ones(3)
        for call in (lambda: there + here, lambda: torch.cat([here, there]), lambda: there[here.long()]):
            with pytest.raises(RuntimeError, match='tensors on two devices'):
                call()
        assert (there * here[0]).tolist() == [1, 1, 1]
        assert (there.sum().item(), there.cpu().sum().item()) == (3, 3)
        assert gpu.waits == ['tolist', 'aten._local_scalar_dense.default', 'to the CPU']
