"""Devices without double precision, Apple's GPUs, of which there is none here: meta tensors stand for theirs.

Meta tensors have no values. With them is tested that nothing is computed in double precision there, and that no tensor
of the CPU meets one of the device; the values are tested on the CPU, where the same operations take place.
"""

from contextlib import nullcontext

import pytest
import torch
from helpers.networks import NETWORKS, build, queries
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import clit_basicsr
from clit_basicsr import UserError
from clit_basicsr.archs import precision
from clit_basicsr.base import devices
from clit_basicsr.ops import operators, registration
from clit_basicsr.ops.geometry import coords

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
SINGLE = [name for name in NETWORKS if not build(name).needs_double]


class Device(TorchDispatchMode):
    """Raises for what a device without double precision cannot do."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        if any(t.is_meta for t in given):
            self.calls += 1
        if any(t.is_meta and t.dtype == torch.float64 for t in made):
            raise AssertionError(f'{func} in double precision')
        if len({t.is_meta for t in given if t.dim()}) > 1 and func not in COPIES:
            raise AssertionError(f'{func} of tensors on two devices')
        return out


@pytest.fixture
def device(monkeypatch):
    own = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda t: torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else own(t))
    # autocast, which is off here, does not know meta tensors
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda *args: False)
    monkeypatch.setattr(coords, 'WITHOUT_DOUBLE', ('meta',))
    monkeypatch.setattr(precision, 'WITHOUT_DOUBLE', ('meta',))
    for name, value in list(vars(operators).items()):
        if isinstance(value, torch._ops.OpOverload):  # which gives meta tensors a shape alone: see what it computes
            monkeypatch.setattr(operators, name, registration.functions[value])
    with Device() as mode:
        yield mode


def on_device(name):
    net = build(name)
    trained = getattr(net, 'trained_branches', None)
    net.to('meta')
    if trained is not None:
        net.trained_branches = trained  # a number that the host reads
    return net


@pytest.mark.parametrize('name', SINGLE)
def test_a_picture_is_computed_in_single_precision(name, device):
    net = on_device(name)
    out = net.upscale(torch.zeros(1, 3, 7, 9, device='meta'), scale=(2, 1.7))
    assert out.is_meta and out.shape == (1, 3, 14, 15) and device.calls > 20


@torch.no_grad()
@pytest.mark.parametrize('name', SINGLE)
def test_queries_are_answered_in_single_precision(name, device):
    net = on_device(name)
    coord, cell = (t.to('meta') for t in queries((5, 6), 2))
    scales = net.plan_scales((2.0, 2.0))
    assert net.query(net.encode(torch.zeros(2, 3, 7, 9, device='meta')), coord, cell, scales).shape == (2, 30, 3)


def test_the_stand_in_finds_double_precision(device):
    with pytest.raises(AssertionError, match='double precision'):
        torch.zeros(2, device='meta').double()
    with pytest.raises((AssertionError, RuntimeError), match='device'):
        torch.zeros(2, device='meta') + torch.zeros(2)


def test_positions_by_way_of_the_cpu_are_the_same(monkeypatch):
    coord = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    direct = coords.in_larger(coord, 0.7)
    monkeypatch.setattr(coords, 'WITHOUT_DOUBLE', ('cpu',))
    assert torch.equal(coords.in_larger(coord, 0.7), direct) and direct.dtype == torch.float32


@pytest.mark.parametrize('name', sorted(set(NETWORKS) - set(SINGLE)))
def test_networks_that_need_more_say_so(name, device):
    with pytest.raises(UserError, match=r'computes in double precision too, which Apple GPUs lack; use the device cpu'):
        precision.check_double(build(name), torch.device('meta'))


def test_an_apple_gpu_is_one_of_the_devices():
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match=r"'mps' cannot be used here; choose cpu, cuda, cuda:N or mps"):
            clit_basicsr.load('clit-light', 'mps')
    assert devices.choose_device().type != 'mps'
