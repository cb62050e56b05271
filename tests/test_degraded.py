"""The script that writes degraded LR images of a test set, and the option file that tests on them."""

import io

import degraded
import numpy as np
import pytest
import yaml
from PIL import Image
from skimage import data

from clit_basicsr import cli


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('degraded')
    (folder / 'HR').mkdir()
    Image.fromarray(data.astronaut()[40:124, 60:156]).save(folder / 'HR' / 'astronaut.png')
    degraded.main([str(folder / 'HR'), '-o', str(folder / 'out')])
    return folder


def lr(folder, kind, scale):
    return np.asarray(Image.open(folder / 'out' / kind / f'X{scale}' / f'astronautx{scale}.png'))


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_the_three_kinds(written, scale):
    clean, jpeg, noisy = (lr(written, kind, scale) for kind in ('clean', 'jpeg40', 'noise10'))
    assert clean.shape == (84 // scale, 96 // scale, 3)
    file = io.BytesIO()
    Image.fromarray(clean).save(file, 'JPEG', quality=40)
    assert np.array_equal(jpeg, np.asarray(Image.open(file).convert('RGB')))
    inside = (clean > 40) & (clean < 215)  # where nothing is clipped
    noise = (noisy.astype(float) - clean)[inside]
    assert abs(noise.mean()) < 1.5 and 8.5 < noise.std() < 11.5


def test_the_images_are_the_same_the_next_time(written):
    before = {path: path.read_bytes() for path in (written / 'out').rglob('*.png')}
    assert len(before) == 9
    degraded.main([str(written / 'HR'), '-o', str(written / 'out')])
    assert before == {path: path.read_bytes() for path in (written / 'out').rglob('*.png')}


def test_the_option_file_measures_them(written, monkeypatch, capsys):
    monkeypatch.chdir(written)
    options = yaml.safe_load((written / 'out' / 'test.yml').read_text())
    assert len(options['datasets']) == 9
    options.update(network_g={'type': 'Bicubic'}, path={}, num_gpu=0)
    (written / 'bicubic.yml').write_text(yaml.safe_dump(options))
    assert cli.main(['test', '-opt', 'bicubic.yml']) == 0
    rows = (written / 'results' / 'degraded' / 'summary.csv').read_text()
    assert all(f'{kind}_x{scale}' in rows for kind in degraded.KINDS for scale in degraded.SCALES), rows
