"""`basicsr upscale` and `clit_basicsr.upscale`: a picture as the network answers it, or a line that says why not."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from awkward_pictures import SRGB, color, make
from PIL import Image
from skimage import data

import clit_basicsr
from clit_basicsr.archs import Bicubic, build_network, save_checkpoint
from clit_basicsr.cli import main
from clit_basicsr.errors import UserError
from clit_basicsr.pictures import enlarge, files, memory
from clit_basicsr.pictures.files import Picture
from clit_basicsr.pictures.memory import Tiles

OPTIONS = {
    'type': 'LIT',
    'encoder': {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]},
    'dim': 16,
    'num_heads': 2,
    'grid_size': 3,
    'hidden_dims': [16],
}
REACH = 4 + 5  # the encoder's four convolutions, and the decoder's reach


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return build_network(OPTIONS).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch, net):
    """The working directory, with a trained experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'experiments/tiny/models').mkdir(parents=True)
    save_checkpoint('experiments/tiny/models/net_g_latest.pth', {'params': net.state_dict(), 'network_g': OPTIONS})
    return tmp_path


def save(path, pixels, icc=None):
    files.write(str(path), Picture(pixels, icc))


def answer(net, pixels, **target):
    """What the network says, whole and in floating point: (H, W, 3), not clamped."""
    lq = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1).unsqueeze(0)
    return net.upscale(lq.expand(1, 3, -1, -1), **target)[0].permute(1, 2, 0).numpy()


def levels(image, dtype=np.uint8):
    return image.clip(0, 1).astype(np.float64) * np.iinfo(dtype).max


# ---- the engine


@pytest.mark.parametrize('scale', [1, 2.3, (1, 3.5)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_tiles_are_the_whole_picture(net, dtype, scale):
    pixels = color(37, 53, dtype=dtype)
    expected = levels(answer(net, pixels, scale=scale), dtype)
    for tiles in (Tiles(11, REACH, False, True), Tiles(16, 53, True, True), None):
        out = enlarge.enlarge(net, Picture(pixels), scale=scale, tiles=tiles).pixels
        assert out.dtype == dtype
        assert out.shape == expected.shape
        assert np.abs(out - expected).max() < 0.51


def test_grey_stays_grey_and_alpha_is_enlarged(net):
    pixels = color(9, 12, 4)
    pixels[..., 3] = 255 - 20 * np.arange(12)
    out = enlarge.enlarge(net, Picture(pixels), size=(20, 31), tiles=Tiles(5, REACH, False, True)).pixels
    assert np.abs(out[..., :3] - levels(answer(net, pixels[..., :3], size=(20, 31)))).max() < 0.51
    alpha = answer(Bicubic(), pixels[..., 3:], size=(20, 31))[..., 0]
    assert np.abs(out[..., 3] - levels(alpha)).max() < 0.51
    grey = enlarge.enlarge(net, Picture(pixels[..., 2:]), size=(20, 31)).pixels
    assert grey.shape == (20, 31, 2)
    assert np.abs(grey[..., 0] - levels(answer(net, pixels[..., 2:3], size=(20, 31)).mean(-1))).max() < 0.51
    assert np.array_equal(grey[..., 1], out[..., 3])
    opaque = enlarge.enlarge(net, Picture(np.full((5, 5, 2), 255, np.uint8)), scale=3.3).pixels
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


def test_a_full_gpu_is_met_with_smaller_tiles(net, monkeypatch):
    paint, seen = enlarge._paint, []

    def full(network, source, out, target, tiles, bar):
        seen.append(tiles.size)
        if tiles.size > 40:
            raise torch.OutOfMemoryError('CUDA out of memory')
        paint(network, source, out, target, tiles, bar)

    monkeypatch.setattr(enlarge, '_paint', full)
    pixels = color(50, 90)
    out = enlarge.enlarge(net, Picture(pixels), scale=1.5).pixels
    assert np.abs(out - levels(answer(net, pixels, scale=1.5))).max() < 0.51
    assert seen[0] > seen[-1] <= 40


def test_tiles_follow_the_memory(net, monkeypatch):
    assert memory.plan_tiles(net, (300, 400), (2, 2)).whole
    monkeypatch.setattr(memory, 'available_memory', lambda device: 40_000_000)
    tiles = memory.plan_tiles(net, (3000, 4000), (2, 2))
    assert (tiles.whole, tiles.pad, tiles.exact) == (False, REACH, True)
    side = tiles.size + 2 * tiles.pad
    assert side**2 * memory.bytes_per_pixel(net.encoder) <= 10_000_000
    assert tiles.size > 40
    rcan = {'type': 'RCAN', 'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4}
    rcan = build_network({**OPTIONS, 'encoder': rcan})
    assert not memory.plan_tiles(rcan, (3000, 4000), (2, 2)).exact


def test_a_result_that_does_not_fit_is_refused(net, monkeypatch):
    monkeypatch.setattr(enlarge, 'available_memory', lambda device: 10_000_000)
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
    assert main(['upscale', 'a.png', '-s', '2x3.5', '-o', 'b.png']) == 0
    assert np.array_equal(files.read('b.png').pixels, np.asarray(out))


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((4, 4, 5), np.uint8), r'\(4, 4, 5\)'),
        (np.zeros((0, 4), np.uint8), r'\(0, 4\)'),
        (np.zeros((4, 4), np.int32), 'int32'),
        (np.full((4, 4), 255.0), '255'),
        (np.full((4, 4), np.nan), 'nan'),
    ],
)
def test_python_refuses_what_is_no_image(net, image, message):
    with pytest.raises(UserError, match=message):
        clit_basicsr.upscale(image, 2, model=net)


def test_a_network_is_given_back_as_it_was(net):
    net.train()
    try:
        clit_basicsr.upscale(color(), 2, model=net)
        assert net.training
    finally:
        net.eval()
    with pytest.raises(UserError, match='one scale'):
        clit_basicsr.upscale(color(), 2, model=torch.nn.Conv2d(3, 3, 1))


# ---- the command


def test_awkward_files_give_a_picture_or_a_line(folder, capsys):
    (folder / 'in').mkdir()
    expected = make(folder / 'in')
    (folder / 'in/turned.jpg').rename(folder / 'in/turned.JPG')
    assert main(['upscale', 'in', '-o', 'out', '-s', '1.5']) == 1
    streams = capsys.readouterr()
    errors = [line for line in streams.err.splitlines() if line.startswith('basicsr: error: ')]
    for name, result in expected.items():
        name = name.replace('turned.jpg', 'turned.JPG')
        lines = [line for line in errors if re.search(rf'\bin/{re.escape(name)}\b', line)]
        if isinstance(result, str):
            assert len(lines) == 1, name
            assert result in lines[0]
            assert not os.path.exists(f'out/{name}')
            continue
        assert lines == []
        stem, suffix = os.path.splitext(name)
        path = f'out/{stem}{suffix if suffix.lower() in files.FORMATS else ".png"}'
        pixels = files.read(path).pixels
        h, w, channels, dtype = result
        assert pixels.shape == (round(h * 1.5), round(w * 1.5), channels), name
        assert pixels.dtype == dtype
    good = sum(not isinstance(result, str) for result in expected.values())
    assert f'{good} of {len(expected)} pictures written' in streams.out
    assert errors[-1].endswith(f'{len(expected) - good} of {len(expected)} pictures failed.')
    assert len(errors) == len(expected) - good + 1
    assert 'Traceback' not in streams.err


@pytest.mark.parametrize(
    ('options', 'size'),
    [
        (('-s', '1'), (6, 9)),
        (('-s', '3.7'), (22, 33)),
        (('-s', '2x3.5'), (12, 32)),
        (('--scale', '1X2'), (6, 18)),
        (('--size', '20x13'), (13, 20)),
        (('--width', '20'), (13, 20)),
        (('--height', '15'), (15, 22)),
    ],
)
def test_sizes_as_people_say_them(folder, net, options, size):
    save('a.png', color())
    assert main(['upscale', 'a.png', *options, '-o', 'b.png']) == 0
    out = files.read('b.png').pixels
    assert out.shape == (*size, 3)
    exact = {('-s', '3.7'): 3.7, ('-s', '2x3.5'): (2, 3.5)}.get(options)
    expected = answer(net, color(), **({'scale': exact} if exact else {'size': size}))
    assert np.abs(out - levels(expected)).max() < 0.51


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('-s', '0'), 'at least 1'),
        (('-s', '-2'), 'at least 1'),
        (('-s', 'nan'), 'at least 1'),
        (('-s', 'inf'), 'at least 1'),
        (('-s', '0.99'), 'only enlarges'),
        (('-s', '2x0'), 'at least 1'),
        (('-s', '2x3x4'), 'such as 2x3.5'),
        (('-s', 'twice'), 'such as 2x3.5'),
        (('-s', ''), 'such as 2x3.5'),
        (('--size', '0x10'), 'at least 1 pixel'),
        (('--size', '20'), 'width x height'),
        (('--size', '20x13.5'), 'whole number'),
        (('--size', '8x100'), 'a.png: it has 9x6 pixels, and 8x100 are asked for'),
        (('--width', '0'), 'at least 1 pixel'),
        (('--width', '8'), 'only enlarges'),
        (('--height', '3'), '-s 1 restores'),
        (('-s', '1e6'), 'GB'),
        (('-s', '2', '--tile', '0'), 'at least 1 pixel'),
        (('-s', '2', '--device', 'abacus'), 'no device'),
        (('-s', '2', '--model', 'nowhere'), 'trained here: tiny'),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(folder, capsys, options, message):
    save('a.png', color())
    assert main(['upscale', 'a.png', *options, '-o', 'b.png']) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith('basicsr: error: ')
    assert message in lines[0]
    assert not os.path.exists('b.png')


def test_nothing_is_overwritten_without_f(folder, capsys, monkeypatch):
    save('a.png', color())
    save('b.png', color(2, 2))
    (folder / 'out').mkdir()
    save('out/b.png', color(2, 2))
    before = (folder / 'b.png').read_bytes()
    with monkeypatch.context() as patch:  # told before the network is even read
        patch.setattr('clit_basicsr.pictures.networks.load_network', lambda *_: pytest.fail('too late'))
        assert main(['upscale', 'a.png', '-s', '2', '-o', 'b.png']) == 1
        assert main(['upscale', 'a.png', 'b.png', '-s', '2', '-o', 'out']) == 1
    assert capsys.readouterr().err.count('exists already; -f overwrites it') == 2
    assert (folder / 'b.png').read_bytes() == before
    assert os.listdir('out') == ['b.png']
    assert main(['upscale', 'a.png', 'b.png', '-s', '2', '-o', 'out', '-f']) == 0
    assert files.read('out/b.png').pixels.shape == (4, 4, 3)
    assert main(['upscale', 'b.png', '-s', '2', '-o', 'b.png', '-f']) == 0  # in its own place
    assert files.read('b.png').pixels.shape == (4, 4, 3)


def test_where_pictures_go(folder, capsys):
    (folder / 'in').mkdir()
    for name in ('a.png', 'B.JPG', 'c.gif', '.hidden.png', 'notes.txt'):
        Image.fromarray(color()).save(folder / 'in' / name, format='JPEG' if name == 'B.JPG' else 'PNG')
    assert main(['upscale', 'in', '-s', '1', '-o', 'new/folder']) == 0
    assert sorted(os.listdir('new/folder')) == ['B.JPG', 'a.png', 'c.png']
    assert '3 of 3 pictures written' in capsys.readouterr().out
    assert main(['upscale', 'in/[ac].*', '-s', '1', '-o', 'pattern/']) == 0
    assert sorted(os.listdir('pattern')) == ['a.png', 'c.png']
    for arguments, message in (
        (('in', '-o', 'x.png'), 'need a folder'),
        (('in/*.bmp', '-o', 'x'), 'nothing is there'),
        (('experiments', '-o', 'x'), 'no pictures in the folder'),
        (('in/a.png', 'pattern/a.png', '-o', 'x'), 'would both be written'),
        (('in/a.png', '-o', 'in/a.png/x.png'), 'no folder'),
        (('in/a.png', '-o', 'x.xyz'), 'cannot be written as .xyz'),
    ):
        assert main(['upscale', *arguments, '-s', '1']) == 1
        assert message in capsys.readouterr().err
    assert not [name for name in os.listdir() if name.startswith('x')]


def test_what_is_kept_from_file_to_file(folder, capsys):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(color(6, 9, 4)).save('a.png', icc_profile=SRGB, exif=exif)
    save('deep.tif', color(channels=1, dtype=np.uint16))
    assert main(['upscale', 'a.png', 'deep.tif', '-s', '2', '-o', 'out']) == 0
    bigger = files.read('out/a.png')
    assert bigger.pixels.shape == (18, 12, 4)
    assert bigger.icc == SRGB
    assert files.read('out/deep.tif').pixels.shape == (12, 18, 1)
    assert files.read('out/deep.tif').pixels.dtype == np.uint16
    assert main(['upscale', 'a.png', '-s', '2', '-o', 'a.jpg']) == 1
    assert 'JPEG has no transparency' in capsys.readouterr().err
    assert main(['upscale', 'deep.tif', '-s', '2', '-o', 'deep.jpg']) == 0
    assert '16 bits become 8' in capsys.readouterr().out
    assert files.read('deep.jpg').pixels.shape == (12, 18, 1)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read and write everything')
def test_permissions(folder, capsys):
    save('a.png', color())
    os.chmod('a.png', 0)
    assert main(['upscale', 'a.png', '-s', '1', '-o', 'b.png']) == 1
    assert 'Permission denied' in capsys.readouterr().err
    os.chmod('a.png', 0o600)
    os.mkdir('locked', 0o500)
    assert main(['upscale', 'a.png', '-s', '1', '-o', 'locked/b.png']) == 1
    assert 'must not be written to' in capsys.readouterr().err


def test_which_network(folder, net, capsys):
    save('a.png', color())

    def message(*arguments):
        assert main(['upscale', 'a.png', '-s', '1', '-o', 'b.png', *arguments]) == 1
        return capsys.readouterr().err

    os.makedirs('experiments/other/models')
    content = {'params': net.state_dict(), 'network_g': OPTIONS}
    wrong = {**content, 'params': {key: torch.zeros_like(value) for key, value in net.state_dict().items()}}
    save_checkpoint('experiments/other/models/net_g_1000.pth', content)
    save_checkpoint('experiments/other/models/net_g_999.pth', wrong)
    assert 'trained here: other, tiny' in message()
    assert main(['upscale', 'a.png', '-s', '1', '-o', 'c.png', '--model', 'other']) == 0
    assert 'other/models/net_g_1000.pth: LIT on cpu, float32' in capsys.readouterr().out.replace(os.sep, '/')
    assert np.abs(files.read('c.png').pixels - levels(answer(net, color(), scale=1))).max() < 0.51
    torch.save({'params': net.state_dict()}, 'bare.pth')
    assert 'does not say which network it is of' in message('--model', 'bare.pth')
    edsr = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
    save_checkpoint('edsr.pth', {'params': build_network(edsr).state_dict(), 'network_g': edsr})
    assert 'one scale only' in message('--model', 'edsr.pth')
    assert 'a.png is no checkpoint' in message('--model', 'a.png')


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(folder):
    """A real process, interrupted among its tiles."""
    save('a.png', np.asarray(data.astronaut()))
    command = [sys.executable, '-m', 'clit_basicsr', 'upscale', 'a.png', '-s', '8', '--tile', '16', '-o', 'b.png']
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    seen = ''
    while 'tile' not in seen:
        seen += process.stderr.read(20)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert 'basicsr: interrupted' in rest
    assert 'Traceback' not in seen + rest
    assert sorted(os.listdir()) == ['a.png', 'experiments']
