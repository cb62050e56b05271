"""What the CUDA backend launches for a picture and for a training step: the benchmark's counts, which take no clock."""

import host_time
import pytest
import torch

from clit_basicsr.ops.backends import cuda_backend


@pytest.fixture
def launches(monkeypatch):
    for name in ('pack', 'SCATTERED_BYTES'):  # which the workloads replace
        monkeypatch.setattr(cuda_backend, name, getattr(cuda_backend, name))
    with host_time.without_a_gpu() as counted:
        yield counted


def operations(function):
    with host_time.Operations() as counted:
        function()
    return counted.count


@pytest.mark.parametrize(('ratio', 'tiles', 'most'), [(2, 115, 360), (3, 114, 300), (4, 59, 300)])
def test_a_picture(launches, ratio, tiles, most):
    """Before lines and weights were prepared once: 650 to 780 operations, and two calls for each tile."""
    assert operations(host_time.picture(ratio)) < most
    assert dict(launches) == {'dense_attention and dense_linear': tiles}


def test_a_training_step(launches):
    """In chunks of 52 MB: 167 launches of ours, 346 operations."""
    assert operations(host_time.step()) < 60
    assert launches == {'attention': 1, 'attention_backward': 1, 'weigh': 4, 'weigh_backward': 4, 'gather': 5}


def test_the_stand_ins_are_taken_back():
    before = cuda_backend.run, cuda_backend.reason
    with host_time.without_a_gpu():
        assert cuda_backend.run is not before[0]
    assert (cuda_backend.run, cuda_backend.reason) == before


def test_weights_are_packed_for_the_kernel_that_will_read_them(monkeypatch):
    weight = torch.randn(20, 9 * 64)
    with monkeypatch.context() as autocast:  # torch refuses it without a GPU
        autocast.setattr(torch, 'is_autocast_enabled', lambda kind: kind == 'cuda')
        autocast.setattr(torch, 'get_autocast_dtype', {'cuda': torch.bfloat16}.get)
        packed = cuda_backend.pack(weight, 2, 3)
    assert packed.shape == (2, 24, 2, 32, 8)  # outputs padded to 32, positions of both heads to 24
    assert torch.equal(packed, cuda_backend.pack(weight.bfloat16(), 2, 3))
    for heads, number in ((2, weight), (4, weight.bfloat16())):  # single precision; heads of 16 channels
        assert cuda_backend.pack(number, heads, 3).shape == (heads, 9, 64 // heads, 20)
    before = packed.clone()
    weight[3, 70] += 1  # as an optimizer does
    assert not torch.equal(cuda_backend.pack(weight.bfloat16(), 2, 3), before)
