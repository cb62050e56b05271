"""What holds for every registered network, whatever it does inside."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from helpers.networks import EDSR, NETWORKS, SWINIR, build, queries

from clit_basicsr import archs
from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.archs.ipe_arch import integrated_encoding

# Files with networks that are encoders' hosts, not implicit networks.
ENCODERS_NETWORKS = {'rdn_arch'}

NEW_NETWORK = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.ops.geometry.sampling import sample_bilinear

@ARCH_REGISTRY.register()
class Plain(ImplicitNet):
    reach = 1
    def __init__(self, upscale: float = 4) -> None:
        super().__init__(None, upscale)
        self.decoder = nn.Linear(3, 3)
    def decode(self, prepared, coord, cell):
        return self.decoder(sample_bilinear(prepared.feat.z, coord, prepared.feat.frame))
"""


def test_every_registered_network_is_here():
    """Compared with the files in the folder, not with what happens to be imported."""
    folder = Path(archs.__file__).parent
    ours = {name: value for name, value in ARCH_REGISTRY if inspect.isclass(value) and issubclass(value, ImplicitNet)}
    files = {path.stem for path in folder.glob('*_arch.py')} - ENCODERS_NETWORKS
    assert {value.__module__.rpartition('.')[2] for value in ours.values()} == files
    assert set(ours) == {kind for kind, _ in NETWORKS.values()}
    for name, value in ours.items():
        assert getattr(archs, name) is value


def test_a_new_file_is_a_new_network_everywhere(tmp_path):
    """One file in archs/, found by its suffix: known to build_network, load_checkpoint and the command."""
    shutil.copytree(Path(archs.__file__).parents[1], tmp_path / 'clit_basicsr')
    (tmp_path / 'clit_basicsr' / 'archs' / 'plain_arch.py').write_text(NEW_NETWORK)
    program = (
        'from clit_basicsr.archs import Plain, build_network, load_checkpoint, save_checkpoint\n'
        'from clit_basicsr.cli import main\n'
        "opt = {'type': 'Plain'}\n"
        "save_checkpoint('a.pth', {'params': build_network(opt).state_dict(), 'network_g': opt})\n"
        "assert type(load_checkpoint('a.pth')) is Plain\n"
        "assert main(['info', 'a.pth']) == 0\n"
        "import numpy as np\nfrom PIL import Image\nImage.fromarray(np.zeros((4, 5, 3), np.uint8)).save('a.png')\n"
        "assert main(['upscale', 'a.png', '-s', '2', '-o', 'b.png', '--model', 'a.pth']) == 0\n"
        "assert Image.open('b.png').size == (10, 8)\n"
    )
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'network: Plain' in done.stdout


@pytest.mark.parametrize('name', NETWORKS)
def test_output_and_gradients(name):
    net, lq = build(name).train(), torch.rand(2, 3, 7, 6).requires_grad_()
    coord, cell = queries((25, 20), 2)
    scales = [1.7, 2.1] if name == 'CLIT' else None
    out = net(lq, coord[:, ::3], cell, scales)
    assert out.shape == (2, coord[:, ::3].shape[1], 3)
    assert out.isfinite().all()
    out.square().sum().backward()
    assert lq.grad.isfinite().all()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # One value for all positions cancels in the softmax, and a grid of one position has nothing to choose from.
        silent = key == 'position_encoder.proj.bias' or (
            name == 'LIT_grid_1' and key.startswith(('position_encoder', 'branches.0.conv_q', 'branches.0.conv_k'))
        )
        assert silent or parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize('encoder', [EDSR, SWINIR], ids=['EDSR', 'SwinIR'])
@pytest.mark.parametrize('name', NETWORKS)
def test_a_picture_is_the_answer_to_all_its_pixels(name, encoder, monkeypatch):
    if name == 'Bicubic' and encoder is SWINIR:
        pytest.skip('has no encoder')
    monkeypatch.setattr('clit_basicsr.archs.implicit.PIECE', 11)
    net = build(name, encoder)
    for lq_size, size in (((7, 5), (17, 16)), ((6, 9), (12, 36)), ((5, 5), (27, 31))):
        lq = torch.rand(2, 3, *lq_size)
        coord, cell = queries(size, 2)
        with torch.no_grad():
            expected = net.query(net.encode(lq), coord, cell).transpose(1, 2).unflatten(2, size)
            # one cell for each query
            each = net.query(net.encode(lq), coord, cell.unsqueeze(1).expand(-1, coord.shape[1], 2))
        assert torch.equal(each.transpose(1, 2).unflatten(2, size), expected)
        # where the image has a margin, coordinates are made anew and rounded
        tolerance = 1e-5 if encoder is EDSR else 2e-4
        assert (net.upscale(lq, size) - expected).abs().max() < tolerance


@pytest.mark.parametrize('encoder', [EDSR, SWINIR], ids=['EDSR', 'SwinIR'])
@pytest.mark.parametrize('name', NETWORKS)
def test_tiles(name, encoder):
    if name == 'Bicubic' and encoder is SWINIR:
        pytest.skip('has no encoder')
    net, lq = build(name, encoder), torch.rand(1, 3, 29, 34)
    whole = net.upscale(lq, scale=2.5)
    pad = net.reach + 4  # four 3 x 3 convolutions
    if encoder is SWINIR:  # a window, a shifted window, three convolutions; tiles begin at whole windows
        pad = net.reach + 3 + 4 + 8
    tiled = net.upscale(lq, scale=2.5, tile={'tile_size': 9, 'tile_pad': pad})
    assert (tiled - whole).abs().max() < (1e-5 if encoder is EDSR else 2e-4)


@pytest.mark.parametrize('name', NETWORKS)
def test_tiny_images(name):
    net = build(name)
    for size in ((1, 1), (1, 6), (2, 1)):
        for scale in (1, 2.5, 9):
            out = net.upscale(torch.rand(1, 3, *size), scale=scale)
            assert out.shape[2:] == (round(size[0] * scale), round(size[1] * scale))
            assert out.isfinite().all()


@pytest.mark.parametrize('name', NETWORKS)
def test_images_of_a_batch_do_not_touch_each_other(name):
    net, lq = build(name), torch.rand(2, 3, 6, 5)
    changed = torch.stack((lq[0], lq[1] * 0.5))
    coord, cell = queries((13, 11), 2)
    with torch.no_grad():
        a, b = net(lq, coord, cell), net(changed, coord, cell)
    assert torch.allclose(a[0], b[0], atol=1e-6)
    assert not torch.equal(a[1], b[1])


def test_integrated_encoding_is_the_mean_over_the_pixel():
    dx, size = torch.tensor([0.3, -0.7], dtype=torch.float64), torch.tensor([0.5, 0.2], dtype=torch.float64)
    freqs = torch.tensor([1.0, 4.0], dtype=torch.float64)
    t = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000 - 0.5
    points = dx + t.unsqueeze(1) * size
    angle = points.unsqueeze(-1) * freqs
    expected = torch.cat((angle.sin().mean(dim=0).flatten(), angle.cos().mean(dim=0).flatten()))
    assert torch.allclose(integrated_encoding(dx, size, freqs), expected, atol=1e-7)
