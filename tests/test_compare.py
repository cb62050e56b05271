"""`basicsr compare` and `basicsr attention`: figures against values computed directly, and mistakes in one line."""

import math
import os

import numpy as np
import pytest
import torch
from helpers import tiny_network
from helpers.tiny_network import save
from PIL import Image

from clit_basicsr import cli
from clit_basicsr.archs import Bicubic
from clit_basicsr.pictures import compare
from clit_basicsr.pictures.attention import attention_at
from clit_basicsr.pictures.files import Picture


@pytest.fixture
def folder(folder):
    """There are a picture of 59 x 83 pixels and another file too."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (12, 17, 3), dtype=np.uint8))
    noise.resize((83, 59), Image.Resampling.BICUBIC).save('p.png')
    (folder / 'there.png').write_bytes(b'a figure')
    return folder


def test_the_figures_of_each_network(folder):
    hr = np.asarray(Image.open('p.png'))
    net = tiny_network.build()
    found = compare.compare({'bicubic': Bicubic(), 'tiny': net}, hr, (3.4, 2.0), 'pil', 'benchmark')
    size = (math.floor(59 / 3.4), math.floor(83 / 2))
    truth = hr[: round(size[0] * 3.4), : round(size[1] * 2)]
    lr = np.asarray(Image.fromarray(truth).resize(size[::-1], Image.Resampling.BICUBIC))
    for answer, network in zip(found.answers, (Bicubic(), net), strict=True):
        image = tiny_network.answer(network, lr, scale=(3.4, 2.0)).clip(0, 1)
        luma = (image.astype(np.float64) - truth / 255) @ np.array([65.738, 129.057, 25.064]) / 256
        assert answer.psnr == pytest.approx(-10 * math.log10(np.mean(luma[4:-4, 4:-4] ** 2)), abs=1e-3)
        assert np.abs(answer.image - image * 255).max() <= 0.51


def test_the_crop_is_where_they_differ_most():
    base = np.zeros((64, 90, 3), np.uint8)
    other = base.copy()
    other[30:40, 60:70] = 200
    answers = [compare.Answer('bicubic', base, 20.0), compare.Answer('a', other, 20.0)]
    y, x, h, w = compare.most_different([compare.Comparison((2, 2), base, answers)])
    assert (h, w) == (16, 16)
    assert y <= 30 and y + h >= 40 and x <= 60 and x + w >= 70


def test_compare_draws_and_says(folder, capsys):
    assert cli.main(['compare', 'p.png', '-s', '2', '3.4', '--crop', '7,5,30,20', '-o', 'out.png']) == 0
    said = capsys.readouterr().out
    assert 'x3.4: bicubic ' in said and 'clit-light ' in said and 'crop 7,5,30,20, as given' in said
    with Image.open('out.png') as figure:
        pixels = np.asarray(figure.convert('RGB')).astype(int)
    red = (np.abs(pixels - (255, 45, 45)).max(-1) < 8).sum()
    assert red > 40 and pixels.shape[1] > 900
    assert not [name for name in os.listdir() if name.endswith('.tmp')]


def test_the_result_beside_the_attention_is_the_network_s(folder):
    net = tiny_network.build()
    pixels = np.asarray(Image.open('p.png'))
    view = attention_at(net, Picture(pixels), (58.9, 40.0), 2.5)
    out = tiny_network.answer(net, pixels, scale=2.5).clip(0, 1)
    top, left = round((view.result_box[0] + 0.5) * out.shape[0] / 59), round((view.result_box[1] + 0.5) * 2.5)
    height, width = view.result.shape[:2]
    np.testing.assert_allclose(view.result, out[top : top + height, left : left + width], atol=1e-5)
    assert view.pixel[0] == out.shape[0] - 1
    (one,) = view.maps
    assert one.weights.shape == (2, 3, 3)
    np.testing.assert_allclose(one.weights.sum((1, 2)), 1, rtol=1e-5)
    assert one.box[0] == 56.5 and one.box[2] == 59.5  # beyond the border by one pixel


def test_attention_draws(folder):
    assert cli.main(['attention', 'p.png', '--at', '0.5,0.5', '70,3', '-s', '3', '-o', 'a.png']) == 0
    with Image.open('a.png') as figure:
        pixels = np.asarray(figure.convert('RGB')).astype(int)
    assert (np.abs(pixels - (255, 212, 0)).max(-1) < 8).sum() > 500  # outlines of branch 1
    assert pixels.shape[0] > 800


def test_transparency_is_white_in_figures_too(folder, capsys):
    pixels = np.asarray(Image.open('p.png').convert('RGBA')).copy()
    pixels[..., 3] = np.linspace(0, 255, 83).round()
    Image.fromarray(pixels).save('clear.png')
    save('white.png', Picture(pixels).rgb)
    said = []
    for name in ('clear', 'white'):
        assert cli.main(['compare', f'{name}.png', '-s', '2', '-o', 'out.png', '-f']) == 0
        assert cli.main(['attention', f'{name}.png', '--at', '0.2,0.5', '-o', f'{name}_map.png']) == 0
        said.append(capsys.readouterr().out.splitlines()[0])
    assert said[0] == said[1] and said[0].startswith('x2: bicubic ')
    maps = [np.asarray(Image.open(f'{name}_map.png').convert('RGB'))[60:] for name in ('clear', 'white')]  # no title
    assert np.array_equal(*maps)


@pytest.mark.parametrize(
    'error', [MemoryError(), torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')]
)
@pytest.mark.parametrize(
    ('arguments', 'step'),
    [
        (['compare', 'p.png'], 'compare.downsample'),
        (['compare', 'p.png'], 'compare.enlarge'),
        (['attention', 'p.png', '--at', '1,1'], 'attention.plan_tiles'),
        (['zoom', 'p.png', '-o', 'z.gif'], 'zoom.render'),
        (['zoom', 'p.png', '-o', 'z.mp4'], 'zoom.encode'),
        (['zoom', 'p.png', '-o', 'z.mp4'], 'files.read'),
    ],
)
def test_a_full_memory_is_one_line(arguments, step, error, folder, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(f'clit_basicsr.pictures.{step}', full)
    before = sorted(os.listdir())
    assert cli.main(arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('basicsr: error: p.png: there is too little memory for it; ')
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['compare', 'p.png', '--crop', '0,50,20,20'], 'ends at column 20, row 70'),
        (['compare', 'p.png', '--crop', '1,2,3'], '--crop: give x,y,w,h'),
        (
            ['compare', 'p.png', '-s', '2', '29.5'],
            '83x59 pixels are too few at scale 29.5: PSNR leaves out a border of 30',
        ),
        (['compare', 'p.png', '-s', '70'], '83x59 pixels are too few at scale 70'),
        (['compare', 'p.png', '-s', '0.5'], 'a factor must be at least 1'),
        (['compare', 'p.png', '-m', 'nowhere'], "'nowhere' is neither a checkpoint, nor a trained experiment"),
        (['compare', 'p.png', '-m', 'tiny', 'tiny'], 'is named twice'),
        (['compare', 'p.png', '-o', 'x.jpg'], 'the figure is a PNG'),
        (['attention', 'p.png', '--at', '1,99'], 'outside the picture'),
        (['attention', 'p.png', '--at', '1'], 'give x,y'),
        (['attention', 'p.png', '--at', '1,1', '-o', 'there.png'], 'already exists'),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, message, folder, capsys):
    before = sorted(os.listdir())
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith('basicsr: error: ') and error.count('\n') == 1
    assert message in error
    assert sorted(os.listdir()) == before
