"""`basicsr upscale`: a picture as the network answers it, or a line that says why not."""

import os
import re
import signal
import stat
import subprocess
import sys
import termios

import numpy as np
import pytest
import torch
from helpers.awkward_pictures import SRGB, color, make
from helpers.tiny_network import OPTIONS, answer, levels, save
from PIL import Image
from skimage import data

from clit_basicsr.archs import build_network, save_checkpoint
from clit_basicsr.cli import main
from clit_basicsr.pictures import enlarge, files, formats


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
        path = f'out/{stem}{suffix if suffix.lower() in formats.FORMATS else ".png"}'
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
        (('-s', '3.5x2'), (12, 32)),
        (('--scale', '2X1'), (6, 18)),
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
    exact = {('-s', '3.7'): 3.7, ('-s', '3.5x2'): (2, 3.5)}.get(options)
    expected = answer(net, color(), **({'scale': exact} if exact else {'size': size}))
    assert np.abs(out - levels(expected)).max() < 0.51


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('-s', '0'), 'at least 1'),
        (('-s', '-2'), 'at least 1'),
        (('-s', 'nan'), 'a finite number'),
        (('-s', 'inf'), 'a finite number'),
        (('-s', '0.99'), 'only enlarge'),
        (('-s', '2x0'), 'at least 1'),
        (('-s', '2x3x4'), 'such as 2x3.5'),
        (('-s', 'twice'), 'such as 2x3.5'),
        (('-s', ''), 'such as 2x3.5'),
        (('--size', '0x10'), 'at least 1 pixel'),
        (('--size', '20'), 'width x height'),
        (('--size', '20x13.5'), 'whole number'),
        (('--size', '8x100'), 'a.png: it has 9x6 pixels, and 8x100 are asked for'),
        (('--width', '0'), 'at least 1 pixel'),
        (('--width', '9' * 30), 'no picture is as large'),
        (('--width', '8'), 'only enlarge'),
        (('--height', '3'), '-s 1 restores'),
        (('-s', '1e6'), 'GB'),
        (('-s', '1e300'), 'is too large for a picture'),
        (('-s', '1e308'), 'a.png: scale 1e+308 is too large'),
        (('-s', '2', '--tile', '7'), 'at least 8 pixels'),
        (('-s', '2', '--device', 'abacus'), 'cannot be used here'),
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


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('a.png', '-s', '2', '-o', 'pipe.png', '-f'), 'is not a regular file'),
        (('a.png', '', '-s', '2', '-o', 'b.png'), 'empty name'),
        (('a.png', '-s', '2', '-o', ''), 'empty name'),
    ],
)
def test_outputs_that_are_no_files_and_empty_names_are_refused(folder, capsys, arguments, message):
    save('a.png', color())
    os.mkfifo('pipe.png')
    assert main(['upscale', *arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert stat.S_ISFIFO(os.stat('pipe.png').st_mode)
    assert not os.path.exists('b.png')


def test_folders_that_a_pattern_means_are_no_pictures(folder):
    save('a.png', color())
    (folder / 'b.png').mkdir()
    assert main(['upscale', '*.png', '-s', '2', '-o', 'out']) == 0
    assert os.listdir('out') == ['a.png']


def test_an_experiment_by_its_folder(folder):
    save('a.png', color())
    os.makedirs('elsewhere')
    os.symlink(folder / 'experiments', 'elsewhere/runs')
    for number, name in enumerate(('experiments/tiny', './experiments/tiny', 'elsewhere/runs/tiny', 'tiny/')):
        assert main(['upscale', 'a.png', '-s', '2', '-o', f'{number}.png', '--model', name]) == 0, name


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
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith('b.png already exists; use -f to overwrite it.')
    assert second.endswith('out/b.png already exists; -f overwrites, --skip-existing leaves out what is done.')
    assert (folder / 'b.png').read_bytes() == before
    assert os.listdir('out') == ['b.png']
    assert main(['upscale', 'a.png', 'b.png', '-s', '2', '-o', 'out', '-f']) == 0
    assert files.read('out/b.png').pixels.shape == (4, 4, 3)


@pytest.mark.parametrize('force', [(), ('-f',)])
def test_what_is_read_is_never_overwritten(folder, capsys, force):
    os.mkdir('one')
    save('one/a.png', color())
    save('b.png', color(2, 2))
    os.symlink('one/a.png', 'link.png')
    os.symlink('one', 'other')
    before = (folder / 'one/a.png').read_bytes()
    for arguments in (
        ('one/a.png', '-o', 'one'),
        ('one', '-o', 'other'),
        ('one/a.png', '-o', 'one/../one/a.png'),
        ('link.png', '-o', 'one/a.png'),
        ('b.png', 'one/a.png', '-o', 'one'),
        ('b.png', 'link.png', 'one/a.png', '-o', '.'),
    ):
        assert main(['upscale', *arguments, '-s', '2', *force]) == 1
        line = capsys.readouterr().err
        assert 'inputs are never overwritten' in line and line.count('\n') == 1
    for command in (['compare', 'b.png'], ['attention', 'b.png', '--at', '0,0'], ['zoom', 'b.png']):
        output = 'b.gif' if command[0] == 'zoom' else 'b.png'
        os.link('b.png', output) if output != 'b.png' else None
        assert main([*command, '-o', output, *force]) == 1
        assert 'inputs are never overwritten' in capsys.readouterr().err
    assert (folder / 'one/a.png').read_bytes() == before
    assert files.read('b.png').pixels.shape == (2, 2, 3)


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
        (('in', '-o', 'x.png'), 'is not a folder'),
        (('in/*.bmp', '-o', 'x'), 'no file matches'),
        (('experiments', '-o', 'x'), 'holds no pictures'),
        (('in/a.png', 'pattern/a.png', '-o', 'x'), 'would both be written'),
        (('in/a.png', '-o', 'in/a.png/x.png'), 'not a folder'),
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


def test_folders_that_cannot_be_read_or_made_are_reported(folder, capsys, monkeypatch):
    save('a.png', color())
    save('b.png', color(40, 50))
    os.makedirs('locked/models')

    def refuse(part, original):
        def look(path):
            if part in str(path):
                raise PermissionError(13, 'Permission denied', path)
            return original(path)

        return look

    def message(*arguments):
        assert main(['upscale', *arguments, '-s', '1']) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    listdir = os.listdir
    monkeypatch.setattr(os, 'scandir', refuse('locked', os.scandir))
    assert message('locked', '-o', 'out') == 'basicsr: error: the folder locked cannot be read (Permission denied).'
    monkeypatch.setattr(os, 'listdir', refuse('experiments', listdir))
    assert 'the folder experiments cannot be read (Permission denied)' in message(
        'a.png', '-o', 'c.png', '--model', 'else'
    )
    os.makedirs('experiments/other/models')
    monkeypatch.setattr(os, 'listdir', refuse('other', listdir))
    assert 'models cannot be read (Permission denied)' in message('a.png', '-o', 'd.png', '--model', 'else')
    assert main(['upscale', 'a.png', '-s', '1', '-o', 'c.png', '--model', 'tiny']) == 0  # which need not look there
    capsys.readouterr()

    def full(path, *args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'makedirs', full)
    assert message('a.png', '--model', 'tiny', '-o', 'new/c.png') == (
        'basicsr: error: new/c.png cannot be written (No space left on device).'
    )
    for command in (
        ['compare', '-o', 'new/c.png'],
        ['attention', '--at', '0,0', '-o', 'new/c.png'],
        ['zoom', '-o', 'new/c.gif'],
    ):
        assert main([command[0], 'b.png', *command[1:], '--model', 'tiny']) == 1
        assert 'cannot be written (No space left on device).' in capsys.readouterr().err.splitlines()[-1]


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
    assert 'trained here: other, tiny; in the package: clit-light' in message('--model', 'else')
    assert main(['upscale', 'a.png', '-s', '1', '-o', 'c.png', '--model', 'other']) == 0
    assert 'other/models/net_g_1000.pth: LIT on cpu, single precision' in capsys.readouterr().out.replace(os.sep, '/')
    assert np.abs(files.read('c.png').pixels - levels(answer(net, color(), scale=1))).max() < 0.51
    torch.save({'params': net.state_dict()}, 'bare.pth')
    assert 'does not say which network it belongs to' in message('--model', 'bare.pth')
    torch.save({'iter': 5, 'optimizers': [], 'schedulers': []}, '5.state')
    assert '5.state is a training state, without weights; give models/net_g_*.pth' in message('--model', '5.state')
    edsr = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
    save_checkpoint('edsr.pth', {'params': build_network(edsr).state_dict(), 'network_g': edsr})
    assert 'one scale only' in message('--model', 'edsr.pth')
    assert 'a.png is not a checkpoint' in message('--model', 'a.png')


@pytest.mark.parametrize('step', ['read', 'enlarge'])
def test_a_picture_for_which_there_is_no_memory_is_reported(folder, capsys, monkeypatch, step):
    save('a.png', color())
    save('b.png', color(7, 7))
    read, paint = files.read, enlarge._paint

    def small_memory(path):
        if path == 'a.png':
            raise MemoryError
        return read(path)

    def full(network, source, *args):
        if source.shape == (6, 9, 3):
            torch.empty(1 << 57)  # a RuntimeError of the CPU's allocator
        paint(network, source, *args)

    if step == 'read':
        monkeypatch.setattr(files, 'read', small_memory)
    else:
        monkeypatch.setattr(enlarge, '_paint', full)
    assert main(['upscale', 'a.png', 'b.png', '-s', '1', '-o', 'out']) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.match(
        r'basicsr: error: a\.png: there is too little memory (for it|even for tiles of \d+\+\d+ pixels); ', lines[0]
    )
    assert os.listdir('out') == ['b.png']


def test_the_tiles_that_were_used_are_printed(folder, capsys, monkeypatch):
    save('a.png', color(50, 90))
    paint = enlarge._paint

    def full(network, source, out, target, tiles, bar):
        if tiles.size > 40:
            raise torch.OutOfMemoryError('CUDA out of memory')
        paint(network, source, out, target, tiles, bar)

    monkeypatch.setattr(enlarge, '_paint', full)
    assert main(['upscale', 'a.png', '-s', '1.5', '--tile', '80', '-o', 'b.png']) == 0
    said = capsys.readouterr().out
    assert 'tiles of 40+9 pixels' in said and 'tiles of 80' not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'code', 'said'), [(signal.SIGINT, 130, 'interrupted'), (signal.SIGTERM, 143, 'terminated')]
)
def test_a_signal_leaves_nothing(folder, number, code, said):
    """A real process, interrupted among its tiles."""
    save('a.png', np.asarray(data.astronaut()))
    command = [sys.executable, '-m', 'clit_basicsr', 'upscale', 'a.png', '-s', '8', '--tile', '16', '-o', 'b.png']
    terminal, other = os.openpty()  # bars are shown on terminals alone
    termios.tcsetwinsize(terminal, (24, 200))
    process = subprocess.Popen(
        [*command, '-m', 'tiny'],
        stderr=other,
        stdout=subprocess.DEVNULL,
        # a shell's background jobs, and what they start, are born with interrupts ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(other)  # so that reading ends with the process
    seen = ''
    while 'tile' not in seen:
        seen += os.read(terminal, 20).decode(errors='replace')
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    rest = os.read(terminal, 65536).decode(errors='replace')
    os.close(terminal)
    assert f'basicsr: {said}' in rest
    assert 'Traceback' not in seen + rest
    assert sorted(os.listdir()) == ['a.png', 'experiments']
