"""`basicsr zoom`: every frame is the network's answer at its own scale and place, and the camera moves smoothly."""

import itertools
import os

import cv2
import numpy as np
import pytest
import torch
from helpers.awkward_pictures import color
from helpers.tiny_network import OPTIONS, REACH, build, save
from PIL import Image

from clit_basicsr.archs import Bicubic, save_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.cli import main
from clit_basicsr.cli.sizes import point
from clit_basicsr.pictures import files, memory, zoom
from clit_basicsr.pictures.files import Picture
from clit_basicsr.pictures.memory import Tiles
from clit_basicsr.pictures.zoom import Shot

SWINIR = {'type': 'SwinIR', 'embed_dim': 8, 'depths': [2], 'num_heads': [2], 'window_size': 4, 'img_size': 16}
BICUBIC = ('--model', 'bicubic.pth')
NETWORKS = {
    'LIT': OPTIONS,
    'CLIT': {**OPTIONS, 'type': 'CLIT', 'num_branches': 2},
    'SwinIR': {**OPTIONS, 'encoder': SWINIR},
}


@pytest.fixture
def folder(folder):
    """There are bicubic.pth and a picture of 30 x 44 pixels too."""
    save_checkpoint('bicubic.pth', {'params': {}, 'network_g': {'type': 'Bicubic'}})
    save('a.png', color(30, 44))
    return folder


@pytest.mark.parametrize('scale', [1, 3, 8])  # none puts a pixel half-way between two others
@pytest.mark.parametrize('name', NETWORKS)
def test_a_frame_on_the_grid_of_a_picture_is_that_pictures_part(name, scale, monkeypatch):
    net, lq = build(NETWORKS[name]), torch.rand(1, 3, 10, 13)
    whole = net.upscale(lq, scale=scale)[0]
    monkeypatch.setattr(zoom, 'PIECE', 31)
    with torch.no_grad():
        feat = net.encode(lq)
    for top, left, height, width in ((0, 0, 10 * scale, 13 * scale), (1, 3, 7, 10), (10 * scale - 5, 2, 5, 11)):
        out = zoom.render(net, feat, Shot(scale, (top / scale, left / scale)), (height, width))
        assert (out - whole[:, top : top + height, left : left + width]).abs().max() < 2e-4


@pytest.mark.parametrize('name', NETWORKS)
def test_a_frame_anywhere_is_the_query_there(name):
    net, lq = build(NETWORKS[name]), torch.rand(1, 3, 18, 23)
    shot, (height, width) = Shot(5.37, (2.345, 7.891)), (13, 17)
    with torch.no_grad():
        feat = net.encode(lq)
        out = zoom.render(net, feat, shot, (height, width))
        for i, j in ((0, 0), (12, 16), (7, 3)):
            y, x = ((k + 0.5) / shot.scale + start for k, start in zip((i, j), shot.origin, strict=True))
            coord = torch.tensor([[[2 * y / 18 - 1, 2 * x / 23 - 1]]])
            cell = torch.tensor([[2 / (18 * shot.scale), 2 / (23 * shot.scale)]])
            expected = net.query(feat, coord, cell, net.plan_scales((shot.scale, shot.scale)))[0, 0]
            assert (out[:, i, j] - expected).abs().max() < 2e-4


@pytest.mark.parametrize('at', [(15.0, 22.0), (0.0, 44.0), (29.9, 3.2)])
@pytest.mark.parametrize('frame_size', [(20, 30), (30, 44), (60, 88), (30, 100)])
def test_the_cameras_way(frame_size, at):
    lq_size = (30, 44)
    shots = zoom.plan_shots(lq_size, frame_size, at, 16, 40)
    assert len(shots) == 40
    assert shots[0].scale == max(1, frame_size[0] / 30, frame_size[1] / 44)
    ratios = [b.scale / a.scale for a, b in itertools.pairwise(shots)]
    assert np.ptp(ratios) < 1e-9
    assert shots[-1].scale == pytest.approx(16)
    for axis in (0, 1):
        start = np.array([shot.origin[axis] for shot in shots])
        span = np.array([frame_size[axis] / shot.scale for shot in shots])
        assert (start >= -1e-9).all()
        assert (start + span <= lq_size[axis] + 1e-9).all()
        # one point of the picture stays at its place in the frame
        rests = (start[0] - start[1:]) / (span[1:] - span[0])
        assert np.ptp(rests) < 1e-9
        middle = start[-1] + span[-1] / 2
        assert middle == pytest.approx(min(max(at[axis], span[-1] / 2), lq_size[axis] - span[-1] / 2))


def test_a_way_that_does_not_zoom_in_is_refused():
    for to in (1, 0.5, 2, float('nan'), float('inf')):
        with pytest.raises(UserError, match='begins at x2'):
            zoom.plan_shots((30, 44), (60, 88), (1, 1), to, 5)


def test_of_a_large_picture_only_what_is_seen_is_read():
    net, whole = build(), Picture(color(400, 600, 4))
    shots = zoom.plan_shots((400, 600), (20, 30), (310.5, 80.2), 4, 3)
    part, moved = zoom.cut_to_film(whole, shots, (20, 30))
    # rows 300.5 ... 320.5 and columns 65.2 ... 95.2 are seen first; 64 more on each side
    assert part.pixels.shape == (385 - 236, 160 - 1, 4)
    for a, b in zip(
        zoom.render_film(net, part, moved, (20, 30)), zoom.render_film(net, whole, shots, (20, 30)), strict=True
    ):
        assert np.abs(a.astype(int) - b).max() <= 1  # rounded coordinates


def test_places():
    assert point('1.0,0.25', 30, 44) == (7.5, 44)
    assert point('1,0', 30, 44) == (0.5, 1.5)
    assert point('34.25, 12', 30, 44) == (12.5, 34.25)
    for text in ('12', '1,2,3', 'a,b', '3,30', '3,-1', '44.5,0.5', '0.5,nan'):
        with pytest.raises(UserError, match='--at'):
            point(text, 30, 44)


@pytest.mark.parametrize(('name', 'tolerance'), [('LIT', 1e-6), ('SwinIR', 1e-6)])
@pytest.mark.parametrize('tiles', [Tiles(7, 34, False, True), Tiles(64, 34, True, True)])
def test_features_of_tiles_are_those_of_the_whole_picture(name, tolerance, tiles):
    net, pixels = build(NETWORKS[name]), torch.randint(0, 256, (1, 3, 18, 23), dtype=torch.uint8)
    with torch.no_grad():
        whole = net.encode(pixels / 255)
    feat = zoom.encode(net, pixels, tiles)
    assert (feat.frame, feat.image_size) == (whole.frame, whole.image_size)
    assert torch.equal(feat.lq, whole.lq)
    assert (feat.z - whole.z).abs().max() < tolerance


def test_the_encoder_of_a_film_sees_no_more_than_a_tile(monkeypatch):
    """A window that is too large to be encoded in one piece is encoded in tiles, and the frames are the same."""
    net, picture, largest = build(), Picture(color(130, 150)), 0
    shots = zoom.plan_shots((130, 150), (130, 150), (50, 60), 4, 2)
    expected = list(zoom.render_film(net, picture, shots, (130, 150)))

    def watch(_, inputs):
        nonlocal largest
        largest = max(largest, inputs[0].shape[2], inputs[0].shape[3])

    net.encoder.register_forward_pre_hook(watch)
    monkeypatch.setattr(memory, 'CPU_BYTES', 60 * 60 * memory.bytes_per_pixel(net))
    found = list(zoom.render_film(net, picture, shots, (130, 150)))
    assert 32 + REACH <= largest <= 60
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(found, expected, strict=True))
    monkeypatch.setattr(memory, 'available_memory', lambda device: 300_000)
    with pytest.raises(UserError, match='what the network sees of a window of 150x130 pixels needs'):
        next(zoom.render_film(net, picture, shots, (60, 70)))
    with pytest.raises(UserError, match='a frame of 150x130 pixels needs'):
        next(zoom.render_film(net, picture, shots, (130, 150)))


@pytest.mark.parametrize('fps', [0.1, 3, 12, 23.976, 30, 33, 50])
def test_a_gif_lasts_as_long_as_its_frames(fps):
    for num_frames in (2, 180, 601):
        ends = np.cumsum(zoom.gif_durations(num_frames, fps))
        assert len(ends) == num_frames
        assert np.abs(ends - 1000 * np.arange(1, num_frames + 1) / fps).max() <= 5.01
    assert sum(zoom.gif_durations(180, 30)) == 6000


def test_gif(folder, capsys):
    assert (
        main(['zoom', 'a.png', '-o', 'new/z.gif', '--at', '0.6,0.3', '--seconds', '0.5', '--fps', '10', *BICUBIC]) == 0
    )
    with Image.open('new/z.gif') as film:
        assert (film.n_frames, film.size, film.info['duration'], film.info['loop']) == (5, (44, 30), 100, 0)
        frames = [np.asarray(film.convert('RGB')).astype(int) for i in range(5) if film.seek(i) is None]
    picture = files.read('a.png')
    shots = zoom.plan_shots((30, 44), (30, 44), (9, 26.4), 16, 5)
    for frame, expected in zip(frames, zoom.render_film(Bicubic(), picture, shots, (30, 44)), strict=True):
        assert np.abs(frame - expected).mean() < 8  # a palette
    assert 'x1 to x16, 5 frames of 44x30' in capsys.readouterr().out
    assert os.listdir('new') == ['z.gif']


def test_gif_in_time(folder):
    save('grey.png', np.full((30, 44, 3), 80, np.uint8))  # equal frames, which become one
    for name, options in (('a', ('--fps', '30', '--seconds', '0.5')), ('grey', ('--fps', '7', '--seconds', '3'))):
        assert main(['zoom', f'{name}.png', '-o', f'{name}.gif', *options, *BICUBIC]) == 0
        with Image.open(f'{name}.gif') as film:
            durations = [film.info['duration'] for i in range(film.n_frames) if film.seek(i) is None]
        assert sum(durations) == (500 if name == 'a' else 3000)
        assert len(durations) == (15 if name == 'a' else 1)


def test_mp4(folder):
    save('red.png', np.tile(np.array([200, 30, 60], np.uint8), (33, 47, 1)))
    assert (
        main(['zoom', 'red.png', '-o', 'z.mp4', '--seconds', '1', '--fps', '8', '--to', '3', '--width', '65', *BICUBIC])
        == 0
    )
    film = cv2.VideoCapture('z.mp4')
    frames = []
    while (read := film.read())[0]:
        frames.append(read[1][..., ::-1])
    assert (len(frames), film.get(cv2.CAP_PROP_FPS)) == (8, 8)
    assert frames[0].shape == (44, 64, 3)  # even sides
    expected = next(zoom.render_film(Bicubic(), files.read('red.png'), [Shot(1.4, (0, 0))], (44, 64)))
    assert np.abs(frames[0].astype(int).mean((0, 1)) - expected.mean((0, 1))).max() < 12


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('-o', 'z.avi'), '.gif or .mp4'),
        (('-o', 'there.gif'), 'use -f to overwrite'),
        (('-o', 'z.gif', '--to', '1'), 'larger end'),
        (('-o', 'z.gif', '--to', 'nan'), 'larger end'),
        (('-o', 'z.gif', '--at', '2.5,3,4'), '--at'),
        (('-o', 'z.gif', '--seconds', '0'), '--seconds'),
        (('-o', 'z.gif', '--seconds', 'nan'), '--seconds'),
        (
            ('-o', 'z.gif', '--seconds', '1e308'),
            '--seconds: an animation lasts more than 0 and at most 600 seconds; got 1e+308',
        ),
        (('-o', 'z.gif', '--fps', 'inf'), '--fps'),
        (('-o', 'z.gif', '--fps', '1e-9'), '--fps'),
        (('-o', 'z.gif', '--fps', '60'), '--fps: this format takes 0.1 to 50 frames per second; got 60'),
        (('-o', 'z.mp4', '--fps', '1e5'), '--fps: this format takes 0.1 to 1000'),
        (('-o', 'z.mp4', '--width', '9000', '--to', '999'), 'z.mp4: this format is limited to 8191 pixels'),
        (('-o', 'z.gif', '--width', '1'), '--width'),
        (('-o', 'z.gif', '--model', 'nowhere'), 'trained here: tiny'),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(folder, capsys, options, message):
    (folder / 'there.gif').write_bytes(b'a film')
    assert main(['zoom', 'a.png', *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(os.listdir()) == ['a.png', 'bicubic.pth', 'experiments', 'there.gif']


@pytest.mark.parametrize('suffix', ['gif', 'mp4'])
def test_interrupted_among_its_frames_it_leaves_nothing(folder, capsys, monkeypatch, suffix):
    render, count = zoom.render, itertools.count()

    def interrupted(*args):
        if next(count) == 3:
            raise KeyboardInterrupt
        return render(*args)

    monkeypatch.setattr(zoom, 'render', interrupted)
    assert main(['zoom', 'a.png', '-o', f'z.{suffix}', '--seconds', '1', '--fps', '5']) == 130
    assert capsys.readouterr().err.rstrip().endswith('basicsr: interrupted')
    assert sorted(os.listdir()) == ['a.png', 'bicubic.pth', 'experiments']


def test_an_opencv_without_mp4_is_reported_in_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr(zoom.cv2, 'VideoWriter', _NoWriter)
    assert main(['zoom', 'a.png', '-o', 'z.mp4', '--seconds', '1', '--fps', '2']) == 1
    assert 'writes no MP4; take .gif' in capsys.readouterr().err
    assert not os.path.exists('z.mp4')


class _NoWriter:
    """An OpenCV that was built without video."""

    def __init__(self, *_):
        pass

    @staticmethod
    def fourcc(*_):
        return 0

    def isOpened(self):
        return False

    def release(self):
        pass
