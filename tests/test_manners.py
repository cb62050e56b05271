"""Manners of the commands: names of results, what stays of a file, shards, sub-folders, what is said where."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.awkward_pictures import color
from helpers.tiny_network import answer, levels, save
from PIL import Image

import clit_basicsr
from clit_basicsr import cli
from clit_basicsr.base import console
from clit_basicsr.cli import main
from clit_basicsr.formats.metadata import EXIF_BLOCK, GPS_BLOCK
from clit_basicsr.pictures import files


@pytest.mark.parametrize(
    ('options', 'name', 'size'),
    [
        (('-s', '3.7'), 'photo_x3.7.jpg', (22, 33)),
        (('-s', '2x3.5'), 'photo_x2x3.5.jpg', (21, 18)),
        (('--size', '20X13'), 'photo_20x13.jpg', (13, 20)),
        (('--width', '20'), 'photo_w20.jpg', (13, 20)),
        (('--height', '13'), 'photo_h13.jpg', (13, 20)),
    ],
)
def test_without_o_the_result_is_beside_the_picture_and_over_no_file(folder, capsys, options, name, size):
    (folder / 'my pictures').mkdir()
    save('my pictures/photo.jpg', color())
    assert main(['upscale', 'my pictures/photo.jpg', *options]) == 0
    assert sorted(os.listdir('my pictures')) == sorted(['photo.jpg', name])
    path = folder / 'my pictures' / name
    assert files.read(str(path)).pixels.shape == (*size, 3)
    before = path.read_bytes()
    save('my pictures/photo.jpg', color(8, 12))
    assert main(['upscale', 'my pictures/photo.jpg', *options]) == 1
    assert 'already exists' in capsys.readouterr().err
    assert path.read_bytes() == before


def exif():
    block = Image.Exif()
    block.update({270: 'holiday', 271: 'Canon', 272: 'EOS', 274: 6, 306: '2020:02:03 04:05:06', 315: 'Anna'})
    block.get_ifd(EXIF_BLOCK).update({33434: 0.01, 36867: '2020:02:03 04:05:06', 37500: bytes(99), 40962: 9})
    block.get_ifd(GPS_BLOCK)[1] = 'N'
    return block


def described(path):
    with Image.open(path) as im:
        found = im.getexif()
        return found, found.get_ifd(EXIF_BLOCK), found.get_ifd(GPS_BLOCK), im.info.get('dpi'), im.size


@pytest.mark.parametrize(('source', 'target'), [('jpg', 'jpg'), ('jpg', 'png'), ('webp', 'webp'), ('png', 'jpg')])
def test_date_camera_place_and_resolution_stay_and_orientation_is_normal(folder, source, target):
    Image.fromarray(color()).save(f'a.{source}', exif=exif(), dpi=(300, 200))
    assert main(['upscale', f'a.{source}', '-s', '2', '-o', f'b.{target}']) == 0
    block, shot, place, dpi, size = described(f'b.{target}')
    assert size == (12, 18)  # turned by a quarter
    assert {tag: block[tag] for tag in (270, 271, 272, 306, 315)} == {
        tag: exif()[tag] for tag in (270, 271, 272, 306, 315)
    }
    assert block.get(274, 1) == 1
    assert shot == {33434: 0.01, 36867: '2020:02:03 04:05:06'} and place == {1: 'N'}
    if source != 'webp':
        assert dpi == pytest.approx((300, 200), abs=0.02)


def test_descriptions_of_deep_and_other_pictures_stay(folder, capsys):
    """16 bits, TIFF to PNG and back, and formats that hold no EXIF data."""
    Image.fromarray(color()).save('a.jpg', exif=exif(), dpi=(300, 200))
    assert main(['upscale', 'a.jpg', '-s', '1', '-o', 'b.tif']) == 0
    block, *_, dpi, _ = described('b.tif')
    assert [block[tag] for tag in (270, 271, 306)] == ['holiday', 'Canon', '2020:02:03 04:05:06'] and dpi == (300, 200)
    deep = files.read('b.tif')
    assert deep.metadata.exif and deep.metadata.dpi == (300, 200)
    pixels = deep.pixels.astype(np.uint16) * 257
    files.write('deep.tif', files.Picture(pixels, metadata=deep.metadata))
    for name in ('deep.png', 'again.tif'):
        assert main(['upscale', 'deep.tif', '-s', '2', '-o', name]) == 0
        found = files.read(name)
        assert found.pixels.dtype == np.uint16
        block, *_, dpi, _ = described(name)
        assert block[272] == 'EOS' and dpi == pytest.approx((300, 200), abs=0.02)
    capsys.readouterr()
    assert main(['upscale', 'a.jpg', '-s', '1', '-o', 'b.bmp']) == 0
    assert 'the EXIF data are lost: BMP holds none' in capsys.readouterr().out


def test_damaged_exif_data_do_not_matter(folder):
    Image.fromarray(color()).save('a.jpg', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + bytes(range(60)))
    assert main(['upscale', 'a.jpg', '-s', '2', '-o', 'b.jpg']) == 0
    assert files.read('b.jpg').pixels.shape == (12, 18, 3)


def test_pillow_pictures_keep_theirs_too(net):
    image = Image.fromarray(color())
    image.info.update(exif=exif().tobytes(), dpi=(300, 200))
    out = clit_basicsr.upscale(image, 2, model=net)
    assert out.size == (12, 18) and out.info['dpi'] == (300, 200)  # turned
    assert out.getexif()[271] == 'Canon' and out.getexif().get(274, 1) == 1


def test_quality(folder):
    save('a.png', np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    sizes = []
    for quality in (30, 95, 100):
        for suffix in ('jpg', 'webp'):
            assert main(['upscale', 'a.png', '-s', '1', '--quality', str(quality), '-o', f'{quality}.{suffix}']) == 0
            sizes.append(os.path.getsize(f'{quality}.{suffix}'))
    assert main(['upscale', 'a.png', '-s', '1', '-o', 'default.jpg']) == 0
    assert sizes[0] < sizes[2] < sizes[4] and sizes[1] < sizes[3] < sizes[5]
    assert os.path.getsize('default.jpg') == sizes[2]


def tree(root):
    return sorted(os.path.relpath(os.path.join(path, name), root) for path, _, names in os.walk(root) for name in names)


def test_sub_folders_and_shards(folder, capsys):
    names = ('a.png', 'b/a.png', 'b/c/d.jpg', 'e.png', 'f.png')
    for i, name in enumerate(names):
        os.makedirs(os.path.dirname(f'in/{name}'), exist_ok=True)
        save(f'in/{name}', color(5 + i, 6))
    os.symlink('..', 'in/b/up')  # a circle
    os.makedirs('elsewhere')
    save('elsewhere/g.png', color())
    os.symlink('../elsewhere', 'in/linked')
    names = (*names, 'linked/g.png')
    save('in/b/.hidden.png', color())
    assert main(['upscale', 'in', '-s', '1', '-o', 'flat']) == 0
    assert tree('flat') == ['a.png', 'e.png', 'f.png']
    assert main(['upscale', 'in', '-s', '1', '-r', '-o', 'in/out']) == 0
    assert tree('in/out') == sorted(names)
    assert main(['upscale', 'in', '-s', '1', '-r', '-f', '-o', 'in/out']) == 0  # whose pictures are not taken again
    assert tree('in/out') == sorted(names)
    done = []
    for i in (1, 2, 3):
        assert main(['upscale', 'in', '-s', '1', '-r', '--shard', f'{i}/3', '-o', 'parts']) in (0,)
        done.append(set(tree('parts')).difference(*done))
    assert set.union(*done) >= set(names) and sum(map(len, done)) == len(tree('parts'))
    assert max(map(len, done)) - min(map(len, done)) <= 1
    capsys.readouterr()
    assert main(['upscale', 'in/a.png', '-s', '1', '--shard', '2/2', '-o', 'x.png']) == 0
    assert 'nothing to do: there are only 1 pictures for 2 shards' in capsys.readouterr().out
    for text in ('0/3', '4/3', '3', '1/0', 'a/b', '-1/3'):
        assert main(['upscale', 'in/a.png', '-s', '1', f'--shard={text}', '-o', 'x.png']) == 1
        assert '--shard: give I/N' in capsys.readouterr().err
    assert not os.path.exists('x.png')


def test_a_batch_is_continued_without_what_is_done(folder, capsys):
    for name in ('a.png', 'b.png', 'c.png'):
        save(name, color(5, 6))
    assert main(['upscale', 'a.png', 'b.png', 'c.png', '-s', '2', '-o', 'out']) == 0
    os.remove('out/b.png')
    before = {name: os.stat(f'out/{name}').st_mtime_ns for name in ('a.png', 'c.png')}
    batch = ['upscale', 'a.png', 'b.png', 'c.png', '-s', '2', '-o', 'out']
    capsys.readouterr()
    assert main(batch) == 1
    message = capsys.readouterr().err
    assert 'out/a.png (and 1 more) already exists; -f overwrites, --skip-existing leaves out what is done' in message
    assert main([*batch, '--skip-existing', '-f']) == 1
    assert 'give one of the two' in capsys.readouterr().err
    assert main([*batch, '--skip-existing']) == 0
    assert '2 of 3 results exist already and are skipped' in capsys.readouterr().out
    assert tree('out') == ['a.png', 'b.png', 'c.png']
    assert {name: os.stat(f'out/{name}').st_mtime_ns for name in before} == before
    assert main([*batch, '--skip-existing']) == 0
    assert '3 of 3 results exist already' in capsys.readouterr().out


def test_x_comes_before_y(folder, net, capsys):
    save('a.png', color())
    assert main(['upscale', 'a.png', '-s', '2x3.5', '-o', 'b.png']) == 0
    found = files.read('b.png').pixels
    assert found.shape == (21, 18, 3)
    assert np.abs(found - levels(answer(net, color(), scale=(3.5, 2)))).max() < 0.51


def test_quiet_and_verbose(folder, capsys, monkeypatch):
    monkeypatch.setattr(console, '_level', console.NORMAL)
    save('a.png', color())
    assert main(['upscale', 'a.png', '-s', '2', '-o', 'b.png', '-q']) == 0
    assert capsys.readouterr() == ('', '')
    assert main(['upscale', 'gone.png', '-s', '2', '-o', 'c.png', '-q']) == 1
    streams = capsys.readouterr()
    assert streams.out == '' and streams.err == 'basicsr: error: gone.png does not exist.\n'
    assert main(['upscale', 'gone.png', '-s', '2', '-o', 'c.png', '-v']) == 1
    err = capsys.readouterr().err
    assert err.startswith('clit-basicsr ') and 'Traceback' in err and err.endswith('gone.png does not exist.\n')
    assert main(['upscale', 'a.png', '-s', '2', '-o', 'b.png', '-f']) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(SystemExit) as stop:
        main(['-V'])
    assert stop.value.code == 0 and capsys.readouterr().out == f'clit-basicsr {clit_basicsr.__version__}\n'


def test_bars_are_for_terminals(monkeypatch):
    code = 'from clit_basicsr.base import console as c; print(c.hides_bars()); c.set_level({}); print(c.hides_bars())'
    terminal, other = os.openpty()
    for stderr, level, expected in (
        (other, console.NORMAL, 'False False'),
        (other, console.QUIET, 'False True'),
        (subprocess.PIPE, console.NORMAL, 'True True'),
    ):
        command = [sys.executable, '-c', code.format(level)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True)
        assert done.stdout.split() == expected.split()
    os.close(terminal)
    os.close(other)


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_every_help_ends_with_examples_that_can_be_parsed(name, capsys):
    module = cli.module_of(name)
    with pytest.raises(SystemExit):
        main([name, '--help'])
    text = capsys.readouterr().out
    assert text.rstrip().endswith(module.EXAMPLES[-1].rstrip())
    for example in module.EXAMPLES:
        words = shlex.split(example, comments=True)
        words = words[words.index('clit_basicsr') + 1 :] if words[0] == 'torchrun' else words[1:]
        assert cli.make_parser().parse_args(words).command == name


def test_option_files_are_listed_and_copied(folder, capsys):
    assert main(['options']) == 0
    names = capsys.readouterr().out.split()
    assert 'train_clit_edsr' in names and 'ablations/table4_grid_7' in names
    assert main(['options', 'train_clit_edsr']) == 0
    assert capsys.readouterr().out == 'options/train_clit_edsr.yml\n'
    root = cli.module_of('options').option_files()[0]
    assert (folder / 'options/train_clit_edsr.yml').read_bytes() == (root / 'train_clit_edsr.yml').read_bytes()
    assert main(['options', 'train_clit_edsr.yml']) == 1
    assert 'already exists' in capsys.readouterr().err
    assert main(['options', 'train_clit_esdr']) == 1
    assert 'the nearest is train_clit_edsr' in capsys.readouterr().err


def test_an_option_file_that_is_there_already_is_no_mistake(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    before = Path('options/train_clit_edsr.yml').read_bytes()
    assert main(['options', 'train_clit_edsr']) == 0
    assert capsys.readouterr().out == 'options/train_clit_edsr.yml is there already\n'
    assert Path('options/train_clit_edsr.yml').read_bytes() == before
