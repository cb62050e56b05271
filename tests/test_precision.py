"""The precision of a network's numbers, as training, validation and `basicsr upscale` have it for an option."""

import csv

import numpy as np
import pytest
import torch
from helpers.awkward_pictures import color
from helpers.encoders import HOSTS
from helpers.tiny_network import save
from helpers.training import changed, prepare, run, weights

import clit_basicsr
from clit_basicsr.archs.lit_arch import LIT
from clit_basicsr.archs.precision import in_precision
from clit_basicsr.base.errors import UserError
from clit_basicsr.cli import main
from clit_basicsr.cli.check_options import check_precisions
from clit_basicsr.ops import use_backend
from clit_basicsr.ops.attention.local import channels_last

CPU = torch.device('cpu')


def settings():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled('cpu')


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        (None, (False, True, False)),
        ('fp32', (False, False, False)),
        ('tf32', (True, True, False)),
        ('bf16', (True, True, True)),
    ],
)
def test_torch_is_set_within_the_block_alone(name, expected):
    before = settings()
    assert before == (False, True, False)
    with pytest.raises(KeyError), in_precision(name, CPU):
        assert settings() == expected
        raise KeyError
    assert settings() == before


@pytest.mark.parametrize('name', ['bf16', 'fp16'])
def test_a_picture_in_half_precision_differs_a_little(net, name):
    image = color(20, 17).astype(np.float32) / 255
    exact = clit_basicsr.upscale(image, 2.5, model=net)
    assert np.array_equal(exact, clit_basicsr.upscale(image, 2.5, model=net, precision='fp32'))
    rounded = clit_basicsr.upscale(image, 2.5, model=net, precision=name)
    assert rounded.dtype == np.float32
    difference = np.abs(rounded - exact).max()
    assert 1e-5 < difference < 0.03


@pytest.mark.parametrize('kind', sorted(HOSTS))
def test_in_half_precision_maps_lie_as_tensor_cores_read_them(kind):
    torch.manual_seed(0)
    net = LIT(encoder={'type': kind, **HOSTS[kind][1]}, dim=16, num_heads=2, grid_size=3, hidden_dims=(8,)).eval()
    lq, coord, cell = torch.rand(2, 3, 16, 20), torch.rand(2, 50, 2) * 2 - 1, torch.full((2, 2), 0.05)
    maps = []
    for conv in (net.conv_in, net.branches[0].conv_q):
        conv.register_forward_hook(lambda _, args, out: maps.extend([args[0], out]))
    exact = net(lq, coord, cell)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = net(lq, coord, cell)
    assert kind == 'SwinIR' or all(t.is_contiguous() for t in maps[:4])
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in maps[4:])
    assert channels_last(maps[-1]).data_ptr() == maps[-1].data_ptr()
    assert 0 < (rounded - exact).abs().max() < 0.05


# The command refuses half precision on the CPU, where these tests run; the model computes in it.
PIPELINE = 'import os, clit_basicsr; from basicsr.train import train_pipeline; train_pipeline(os.getcwd())'


def test_training_and_validation_in_half_precision(tmp_path):
    stages = [{'branches': 3, 'iters': 4, 'lr': 0.01, 'milestones': [], 'scales': [[[1, 2], [1, 2], [1, 2]]]}]
    runs = []
    for name in (None, 'bf16'):
        options = changed(train__stages=stages, train__precision=name, val__precision=name, val__val_freq=4)
        folder = prepare(tmp_path / str(name), options)
        result = run(folder, '-opt', 'options.yml', program=('-c', PIPELINE))
        assert result.returncode == 0, result.stderr[-3000:]
        with open(folder / 'experiments' / 'tiny' / 'validation.csv') as file:
            psnr = float(next(csv.DictReader(file))['value'])
        runs.append((weights(folder)['params'], psnr))
    (exact, exact_psnr), (rounded, rounded_psnr) = runs
    assert all(rounded[key].dtype == value.dtype for key, value in exact.items())
    moved = max((rounded[key] - value).abs().max().item() for key, value in exact.items())
    assert 1e-6 < moved < 0.05  # four steps of 0.01
    assert 1e-6 < abs(rounded_psnr - exact_psnr) < 0.5


def test_precisions_that_are_none(net, folder, capsys):
    with pytest.raises(UserError, match="precision must be one of fp32, tf32, bf16, fp16, got 'half'"):
        clit_basicsr.upscale(np.zeros((4, 4, 3), np.uint8), 2, model=net, precision='half')
    assert main(['upscale', 'a.png', '-s', '2', '-o', 'b.png', '--precision', 'half']) == 1
    assert "invalid choice: 'half'" in capsys.readouterr().err


@pytest.mark.parametrize('name', ['bf16', 'fp16'])
def test_half_precision_on_the_cpu_is_refused_by_the_command(folder, capsys, name):
    save('a.png', color())
    assert main(['upscale', 'a.png', '-s', '2', '-o', 'b.png', '--precision', name, '--device', 'cpu']) == 1
    error = capsys.readouterr().err
    assert f'--precision: {name} is for GPUs' in error and 'use fp32' in error
    assert not (folder / 'b.png').exists()


@pytest.mark.parametrize(
    ('changes', 'is_train', 'message'),
    [
        ({'train__precision': 'fp16'}, True, 'train:precision: fp16 is for GPUs'),
        ({'val__precision': 'fp16'}, True, 'val:precision: fp16 is for GPUs'),
        ({'val__precision': 'bf16'}, False, 'val:precision: bf16 is for GPUs'),
        ({'train__precision': 'bf16'}, False, None),  # a test does not train
        ({'train__precision': 'bf16', 'num_gpu': 1}, True, None),
        ({'train__precision': 'tf32', 'val__precision': 'fp32'}, True, None),
    ],
)
def test_half_precision_in_an_option_file_of_a_run_on_the_cpu(changes, is_train, message):
    opt = {**changed(**changes), 'is_train': is_train}
    if message is None:
        check_precisions(opt)
        return
    with pytest.raises(UserError, match=message):
        check_precisions(opt)


@pytest.mark.parametrize(('bf16', 'amx'), [(False, False), (True, False), (False, True)])
def test_training_in_half_precision_on_the_cpu_needs_its_instructions(bf16, amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: bf16)
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
    opt = {**changed(train__precision='bf16'), 'is_train': True}
    if bf16 or amx:
        check_precisions(opt)
        return
    with pytest.raises(UserError, match='train:precision: bf16 is for GPUs and for processors with AVX512-BF16 or AMX'):
        check_precisions(opt)


def test_a_training_step_in_half_precision_keeps_the_kernels(net):
    """Convolutions and perceptrons are rounded; the attention is the C++ kernels' in single precision."""
    lq, coord, cell = torch.rand(2, 3, 12, 10), torch.rand(2, 40, 2) * 2 - 1, torch.full((2, 2), 0.05)
    steps = []
    for name, backend in ((None, 'cpu'), ('bf16', 'cpu'), ('bf16', 'torch')):
        net.zero_grad()
        with in_precision(name, lq.device), use_backend(backend):
            net(lq, coord, cell).float().square().mean().backward()
        steps.append({key: value.grad.clone() for key, value in net.named_parameters() if value.grad is not None})
    exact, kernels, plain = steps
    del exact['position_encoder.proj.bias']  # zero, as softmax ignores it
    for key, value in exact.items():
        scale = value.abs().max()
        assert kernels[key].dtype == torch.float32
        assert (kernels[key] - value).abs().max() < 0.05 * scale, key
        assert (kernels[key] - plain[key]).abs().max() < 0.05 * scale, key
    assert any(not torch.equal(kernels[key], value) for key, value in exact.items())
