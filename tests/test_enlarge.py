"""The engine of `basicsr upscale`, and `clit_basicsr.upscale`: tiles, types, memory; against the network itself."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers.awkward_pictures import SRGB, color, make
from helpers.tiny_network import OPTIONS, REACH, answer, build, levels, save
from PIL import Image

import clit_basicsr
from clit_basicsr.archs import Bicubic, build_network
from clit_basicsr.base.errors import UserError
from clit_basicsr.cli import main
from clit_basicsr.pictures import api, enlarge, files, memory
from clit_basicsr.pictures.files import Picture
from clit_basicsr.pictures.memory import Tiles


@pytest.mark.parametrize('scale', [1, 2.3, (1, 3.5)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_tiles_are_the_whole_picture(net, dtype, scale):
    pixels = color(37, 53, dtype=dtype)
    expected = levels(answer(net, pixels, scale=scale), dtype)
    for tiles in (Tiles(11, REACH, False, True), Tiles(16, 53, True, True), None):
        out = enlarge.enlarge(net, Picture(pixels), scale=scale, tiles=tiles)[0].pixels
        assert out.dtype == dtype
        assert out.shape == expected.shape
        assert np.abs(out - expected).max() < 0.51


def test_grey_stays_grey_and_alpha_is_enlarged(net):
    pixels = color(9, 12, 4)
    pixels[..., 3] = 255 - 20 * np.arange(12)
    out = enlarge.enlarge(net, Picture(pixels), size=(20, 31), tiles=Tiles(5, REACH, False, True))[0].pixels
    assert np.abs(out[..., :3] - levels(answer(net, pixels[..., :3], size=(20, 31)))).max() < 0.51
    alpha = answer(Bicubic(), pixels[..., 3:], size=(20, 31))[..., 0]
    assert np.abs(out[..., 3] - levels(alpha)).max() < 0.51
    grey = enlarge.enlarge(net, Picture(pixels[..., 2:]), size=(20, 31))[0].pixels
    assert grey.shape == (20, 31, 2)
    assert np.abs(grey[..., 0] - levels(answer(net, pixels[..., 2:3], size=(20, 31)).mean(-1))).max() < 0.51
    assert np.array_equal(grey[..., 1], out[..., 3])
    opaque = enlarge.enlarge(net, Picture(np.full((5, 5, 2), 255, np.uint8)), scale=3.3)[0].pixels
    assert (opaque[..., 1] == 255).all()


def test_no_floating_point_array_of_the_results_size_is_made(net):
    """Nothing larger than a tile, and a step of the network within it, is ever asked of torch."""
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.is_floating_point():
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    with Watch():
        enlarge.enlarge(net, Picture(color(200, 300)), scale=4, tiles=Tiles(32, REACH, False, True))
    assert 128 * 128 * 3 * 4 <= largest < 800 * 1200 * 3 * 4 / 10


@pytest.mark.parametrize('where', ['GPU', 'CPU'])
def test_a_full_memory_is_met_with_smaller_tiles(net, monkeypatch, where):
    paint, seen = enlarge._paint, []

    def full(network, source, out, target, tiles, bar):
        seen.append(tiles.size)
        if tiles.size > 40:
            if where == 'GPU':
                raise torch.OutOfMemoryError('CUDA out of memory')
            torch.empty(1 << 57)  # what the CPU's allocator says is no MemoryError
        paint(network, source, out, target, tiles, bar)

    monkeypatch.setattr(enlarge, '_paint', full)
    pixels = color(50, 90)
    out, tiles = enlarge.enlarge(net, Picture(pixels), scale=1.5)
    assert np.abs(out.pixels - levels(answer(net, pixels, scale=1.5))).max() < 0.51
    assert seen[0] > seen[-1] == tiles.size <= 40
    monkeypatch.setattr(memory, 'SHORTEST_TILE', 90)
    monkeypatch.setattr(enlarge, 'SHORTEST_TILE', 90)
    with pytest.raises(UserError, match='there is too little memory even for tiles of 90'):
        enlarge.enlarge(net, Picture(pixels), scale=1.5)


def test_an_error_of_another_kind_is_not_taken_for_a_full_memory(net, monkeypatch):
    def broken(*_):
        raise RuntimeError('expected scalar type Float but found Half')

    monkeypatch.setattr(enlarge, '_paint', broken)
    with pytest.raises(RuntimeError, match='expected scalar type'):
        enlarge.enlarge(net, Picture(color()), scale=2)


def test_tiles_follow_the_memory(net, monkeypatch):
    assert memory.plan_tiles(net, (300, 400), (2, 2)).whole
    monkeypatch.setattr(memory, 'available_memory', lambda device: 40_000_000)
    tiles = memory.plan_tiles(net, (3000, 4000), (2, 2))
    assert (tiles.whole, tiles.pad, tiles.exact) == (False, REACH, True)
    side = tiles.size + 2 * tiles.pad
    assert side**2 * memory.bytes_per_pixel(net) <= 10_000_000
    assert tiles.size > 40
    # padding is never most of the work, unless memory forbids it
    assert memory.plan_tiles(net, (3000, 4000), (16, 16)).size == 4 * REACH
    assert memory.plan_tiles(net, (3000, 4000), (16, 16), tile=7)[:2] == (7, REACH)
    monkeypatch.setattr(memory, 'available_memory', lambda device: 1_000_000)
    assert memory.plan_tiles(net, (3000, 4000), (16, 16)).size == memory.SHORTEST_TILE
    rcan = {'type': 'RCAN', 'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4}
    rcan = build_network({**OPTIONS, 'encoder': rcan})
    assert not memory.plan_tiles(rcan, (3000, 4000), (2, 2)).exact


def test_the_tail_of_a_network_counts(net):
    encoder = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1}
    air, plus = (build_network({'type': 'Thera', 'encoder': encoder, **more}) for more in ({}, {'variant': 'plus'}))
    widest, last = 512, 128  # in the blocks of the tail, and of the features
    assert memory.bytes_per_pixel(plus) == 4 * (memory.WIDEST_MAPS * widest + memory.PLAIN_MAPS * last)
    assert memory.bytes_per_pixel(air) == 4 * 8 * (memory.WIDEST_MAPS + memory.PLAIN_MAPS)


def test_files_in_the_cache_of_a_container_count_as_free(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, 'CGROUP', str(tmp_path))
    for name, text in (('max', '5000000\n'), ('current', '4000000\n'), ('stat', 'anon 9\ninactive_file 3500000\n')):
        (tmp_path / f'memory.{name}').write_text(text)
    assert memory.available_memory(torch.device('cpu')) == 4_500_000
    (tmp_path / 'memory.max').write_text('max\n')
    assert memory.available_memory(torch.device('cpu')) > 10_000_000


def test_a_result_that_does_not_fit_is_refused(net, monkeypatch):
    monkeypatch.setattr(memory, 'available_memory', lambda device: 10_000_000)
    with pytest.raises(UserError, match='2000x1500 pixels needs'):
        enlarge.enlarge(net, Picture(color(300, 400)), scale=5)


# ---- from Python


@pytest.mark.parametrize('channels', [None, 1, 2, 3, 4])
def test_python_gives_back_what_it_was_given(net, channels):
    pixels = color(7, 9, channels or 1)
    image = pixels if channels else pixels[..., 0]
    shape = (10, 14, channels) if channels else (10, 14)
    out = clit_basicsr.upscale(image, 1.5, model=net)
    assert (out.shape, out.dtype) == (shape, np.uint8)
    deep = clit_basicsr.upscale(image.astype(np.uint16) * 257, 1.5, model=net)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - out).max() < 0.51
    real = clit_basicsr.upscale(image / 255, size=(10, 14), model=net)
    assert real.dtype == np.float32
    assert np.abs(real * 255 - out).max() < 0.51
    assert np.array_equal(clit_basicsr.upscale(image[::-1, ::-1][::-1, ::-1], 1.5, model=net), out)


def test_python_with_pillow_and_files(folder, net):
    pixels = color(7, 9)
    image = Image.fromarray(pixels)
    image.info['icc_profile'] = SRGB
    out = clit_basicsr.upscale(image, scale=(2, 3.5), model=net)
    assert (out.mode, out.size, out.info['icc_profile']) == ('RGB', (32, 14), SRGB)
    save('a.png', pixels)
    for model in (None, 'tiny', 'experiments/tiny/models/net_g_latest.pth'):
        assert np.array_equal(clit_basicsr.upscale('a.png', scale=(2, 3.5), model=model), np.asarray(out))
    assert main(['upscale', 'a.png', '-s', '3.5x2', '-o', 'b.png']) == 0
    assert np.array_equal(files.read('b.png').pixels, np.asarray(out))


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((4, 4, 5), np.uint8), r'\(4, 4, 5\)'),
        (np.zeros((0, 4), np.uint8), r'\(0, 4\)'),
        (np.zeros((4, 4), np.int32), 'int32'),
        (np.full((4, 4), 255.0), '255; divide it by 255'),
        (np.full((4, 4), 300.0), 'to 300.$'),
        (np.zeros((3, 40, 50), np.uint8), r'\(3, 40, 50\); a tensor .* move its channels last'),
        (np.zeros((1, 3, 40, 50), np.float32), r'\(1, 3, 40, 50\); a tensor'),
        (np.full((4, 4), np.nan), 'nan'),
    ],
)
def test_python_refuses_what_is_no_image(net, image, message):
    with pytest.raises(UserError, match=message):
        clit_basicsr.upscale(image, 2, model=net)


def test_pillow_pictures_that_cannot_be_used_are_reported_in_one_line(net, tmp_path):
    make(tmp_path)
    with (
        Image.open(tmp_path / 'truncated.jpg') as cut_off,
        pytest.raises(UserError, match='the picture cannot be read; it is damaged or truncated'),
    ):
        clit_basicsr.upscale(cut_off, 2, model=net)
    with (
        Image.open(tmp_path / 'grey16_key.png') as deep,
        pytest.raises(UserError, match='Pillow has no grey of 16 bits with alpha'),
    ):
        clit_basicsr.upscale(deep, 2, model=net)


@pytest.mark.parametrize('fails', [False, True])
def test_a_network_is_given_back_as_it_was(monkeypatch, fails):
    net = build().train()
    net.encoder.eval()  # frozen
    modes = [module.training for module in net.modules()]
    assert set(modes) == {True, False}
    moves, seen = [], []
    monkeypatch.setattr(net, 'to', lambda device: moves.append(str(device)))
    monkeypatch.setattr(api, 'choose_device', torch.device)
    paint = enlarge._paint

    def watched(*args):
        seen.append((moves[-1], [module.training for module in net.modules()]))
        if fails:
            raise KeyboardInterrupt
        paint(*args)

    monkeypatch.setattr(enlarge, '_paint', watched)
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        clit_basicsr.upscale(color(), 2, model=net, device='cuda:1')
    assert seen == [('cuda:1', [False] * len(modes))]
    assert moves == ['cuda:1', 'cpu']
    assert [module.training for module in net.modules()] == modes


def test_a_network_of_one_scale_is_refused():
    with pytest.raises(UserError, match='one scale'):
        clit_basicsr.upscale(color(), 2, model=torch.nn.Conv2d(3, 3, 1))
