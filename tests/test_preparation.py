"""``basicsr prepare``: its outputs to the bit, what is left by a kill or a full disk, and damage that is named."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import lmdb
import numpy as np
import pytest
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from helpers.pictures import ramp, save
from PIL import Image
from skimage import data
from torch.utils.data import DataLoader

from clit_basicsr import cli
from clit_basicsr.data.images import ImageSource
from clit_basicsr.data.pairs import downsample
from clit_basicsr.data.preparation import outputs, run
from clit_basicsr.data.preparation.recipe import SubImages
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset
from clit_basicsr.data.scaled_pair_dataset import ScaledPairDataset

LMDB = {'type': 'lmdb'}
ONE = ('--processes', '1')


def prepare(*arguments):
    assert cli.main(['prepare', *map(str, arguments)]) == 0


def refused(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(['prepare', *map(str, arguments)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith('basicsr: error: ')
    return '\n'.join(lines)


def values(root):
    """Every key and value of an LMDB."""
    with lmdb.open(str(root), readonly=True, lock=False) as opened, opened.begin() as transaction:
        return dict(transaction.cursor())


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """RGB, grey, 16 bits, alpha, a turned JPEG, and a sub-folder."""
    folder = tmp_path_factory.mktemp('images') / 'GT'
    (folder / 'sub').mkdir(parents=True)
    cat = data.chelsea()
    save(cat[:90, :120], folder / 'b.png')
    save(cat[100:200, 100:190], folder / 'b 2.x.png')
    save(cat[:80, :100, 1], folder / 'grey.png')
    save(np.dstack([cat[:85, :80], cat[:85, :80, :1]]), folder / 'alpha.png')
    assert cv2.imwrite(str(folder / 'deep.png'), cat[:80, :90].astype(np.uint16) * 255 + 9)
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(cat[:100, :130]).save(folder / 'turned.jpg', exif=turned)
    save(cat[200:290, 100:190], folder / 'sub' / 'b.png')
    return folder


def batches(root, backend, **loader):
    opt = {'dataroot_gt': str(root), 'io_backend': backend, 'lq_size': 16, 'num_queries': 60, 'manual_seed': 2}
    items = [(b, i) for b in range(4) for i in range(4)]
    return list(DataLoader(RandomScaleDataset(opt), 4, sampler=items, **loader))


def test_folder_and_both_lmdbs_give_the_same_batches_and_pairs(images, tmp_path):
    prepare(images, '-o', tmp_path / 'raw.lmdb', *ONE)
    prepare(images, '-o', tmp_path / 'host.lmdb', '--format', 'lmdb', *ONE)
    folder = batches(images, {'type': 'disk'})
    for root in ('raw.lmdb', 'host.lmdb'):
        os.remove(tmp_path / root / 'lock.mdb')  # as on a file system that is mounted read-only
        for batch, expected in zip(batches(tmp_path / root, LMDB), folder, strict=True):
            assert all(torch.equal(batch[key], expected[key]) for key in expected if torch.is_tensor(batch[key]))
            assert [os.path.splitext(os.path.basename(path))[0] for path in expected['gt_path']] == batch['gt_path']
        pairs = ScaledPairDataset({'dataroot_gt': str(tmp_path / root), 'io_backend': LMDB, 'scale': 2.5})
        for pair, expected in zip(pairs, ScaledPairDataset({'dataroot_gt': str(images), 'scale': 2.5}), strict=False):
            assert torch.equal(pair['lq'], expected['lq']) and torch.equal(pair['gt'], expected['gt'])
        assert len(pairs) == 6
    spawned = batches(tmp_path / 'raw.lmdb', LMDB, num_workers=1, multiprocessing_context='spawn')
    assert all(torch.equal(batch['gt'], expected['gt']) for batch, expected in zip(spawned, folder, strict=True))


def test_the_host_reads_the_encoded_lmdb(tmp_path):
    for folder, size in (('GT', (40, 60)), ('LQ', (20, 30))):
        (tmp_path / folder).mkdir()
        save(ramp(*size), tmp_path / folder / 'a.png')
        prepare(tmp_path / folder, '-o', tmp_path / f'{folder}.lmdb', '--format', 'lmdb', *ONE)
    opt = {'phase': 'val', 'scale': 2}

    def first(suffix, backend):
        roots = {'dataroot_gt': f'{tmp_path}/GT{suffix}', 'dataroot_lq': f'{tmp_path}/LQ{suffix}'}
        return PairedImageDataset(opt | roots | {'io_backend': {'type': backend}})[0]

    found, expected = first('.lmdb', 'lmdb'), first('', 'disk')
    assert found['gt_path'] == 'a' and torch.equal(found['gt'], expected['gt'])
    assert torch.equal(found['lq'], expected['lq'])
    assert (tmp_path / 'GT.lmdb/meta_info.txt').read_text() == 'a.png (40,60,3) -1\n'


def test_keys_tell_sub_folders_and_several_folders_apart(images, tmp_path, capsys):
    prepare(images, '-r', '-o', tmp_path / 'one.lmdb', *ONE)
    assert ImageSource(str(tmp_path / 'one.lmdb'), LMDB).names[-1] == 'sub/b'
    prepare(images / 'sub', images, '-o', tmp_path / 'two.lmdb', *ONE)
    names = ImageSource(str(tmp_path / 'two.lmdb'), LMDB).names
    assert names[:2] == ['sub/b', 'GT/alpha'] and len(names) == 7
    (tmp_path / 'same').mkdir()
    for name in ('a.png', 'a.bmp'):
        save(ramp(20, 30), tmp_path / 'same' / name)
    message = refused(capsys, tmp_path / 'same', '-o', tmp_path / 'three.lmdb')
    assert "would both have the key 'a'; rename or remove one" in message and not (tmp_path / 'three.lmdb').exists()


def test_folders_of_one_name_are_told_apart_by_the_names_above(tmp_path, capsys):
    folders = [folder_of(tmp_path / name / 'HR', 'a.png') for name in ('Set5', 'Set14')]
    prepare(*folders, '-o', tmp_path / 'both.lmdb', *ONE)
    assert ImageSource(str(tmp_path / 'both.lmdb'), LMDB).names == ['Set5/HR/a', 'Set14/HR/a']
    assert f'{folders[0]} is given twice; leave one out' in refused(capsys, *folders, folders[0], '-o', 'thrice.lmdb')


@pytest.mark.parametrize(
    ('side', 'cut', 'expected'),
    [
        (480, SubImages(480, 240), [0]),
        (961, SubImages(480, 240), [0, 240, 480, 481]),
        (961, SubImages(480, 240, 1), [0, 240, 480]),
        (1000, SubImages(480, 480), [0, 480, 520]),
    ],
)
def test_sub_images_start_where_the_hosts_script_has_them(side, cut, expected):
    assert cut.starts(side) == expected


def test_sub_images_are_crops_in_a_folder_and_in_lmdbs(images, tmp_path):
    cut = ('--crop-size', 48, '--step', 32, *ONE)
    prepare(images, '-o', tmp_path / 'subs', *cut)
    prepare(images, '-o', tmp_path / 'subs.lmdb', *cut)
    names = sorted(name for name in os.listdir(tmp_path / 'subs') if not name.startswith('.'))
    raw = ImageSource(str(tmp_path / 'subs.lmdb'), LMDB)
    assert [name + '.png' for name in raw.names] == names
    found = ImageSource(str(tmp_path / 'subs'))
    for name, key in zip(found.names, raw.names, strict=True):
        assert np.array_equal(found.decode(name), raw.decode(key))
    whole = ImageSource(str(images)).decode(str(images / 'turned.jpg'))  # 130 x 100 as it is looked at
    assert np.array_equal(raw.decode('turned_s004'), whole[32:80, :48])  # second row of three
    assert 'turned_s012' in raw.names and 'turned_s013' not in raw.names


def test_lr_images_are_those_of_the_data_sets(images, tmp_path):
    prepare(images, '-o', tmp_path / 'LR', '--scales', 2, 3.4, '--downsampling', 'matlab', *ONE)
    hr = ImageSource(str(images))
    for name in hr.names:
        for scale in ('2', '3.4'):
            lr = ImageSource(str(tmp_path / 'LR' / f'X{scale}'))
            made = lr.decode(os.path.join(lr.root, f'{hr.key(name)}x{scale}.png'))
            size = tuple(int(side / float(scale) + 1e-9) for side in hr.decode(name).shape[:2])
            height, width = (round(side * float(scale)) for side in size)
            assert np.array_equal(made, downsample(hr.decode(name)[:height, :width], size, 'matlab'))


@pytest.mark.parametrize('kind', ['raw', 'lmdb'])
def test_a_killed_run_continues_and_ends_the_same(tmp_path, capsys, kind):
    (tmp_path / 'GT').mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        save(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), tmp_path / 'GT' / f'{i:02d}.png')
    prepare(tmp_path / 'GT', '-o', tmp_path / 'whole.lmdb', '--format', kind, *ONE)
    # Every image is committed by itself, and each one waits for a kill.
    code = (
        'import sys, time\nfrom clit_basicsr import cli\nfrom clit_basicsr.data.preparation import outputs\n'
        'outputs.COMMIT_BYTES = 1\nwrite = outputs.LmdbOutput._write\n'
        'outputs.LmdbOutput._write = lambda *a: (write(*a), print(".", flush=True), time.sleep(0.02))\n'
        'sys.exit(cli.main(sys.argv[1:]))'
    )
    command = ['prepare', str(tmp_path / 'GT'), '-o', str(tmp_path / 'killed.lmdb'), '--format', kind, *ONE]
    for number in (1, 7):
        process = subprocess.Popen([sys.executable, '-c', code, *command], stdout=subprocess.PIPE, text=True)
        for _ in range(number + 1):  # the first line says what will be done
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / 'killed.lmdb').exists()
        assert 'unfinished work on other images' in refused(capsys, *command[1:], '--compression', 5)
    capsys.readouterr()
    prepare(*command[1:])
    assert 'from the run before' in capsys.readouterr().out
    assert values(tmp_path / 'killed.lmdb') == values(tmp_path / 'whole.lmdb')
    assert not (tmp_path / 'killed.lmdb.partial').exists()
    prepare(*command[1:])
    assert 'already complete' in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_loses_nothing(images, tmp_path, capsys):
    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = ['prepare', str(images), '-o', str(tmp_path / 'x.lmdb'), *ONE]
    code = (
        'import sys\nfrom clit_basicsr import cli\nfrom clit_basicsr.data.preparation import outputs\n'
        'outputs.COMMIT_BYTES = 1\nsys.exit(cli.main(sys.argv[1:]))'
    )
    done = subprocess.run([sys.executable, '-c', code, *command], preexec_fn=small, capture_output=True, text=True)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and ['skipped' in line for line in lines] == [True, False]
    assert 'make room if the disk is full, and run the same command again: it continues' in lines[1]
    assert not (tmp_path / 'x.lmdb').exists()
    prepare(*command[1:])
    assert 'from the run before' in capsys.readouterr().out
    assert len(ImageSource(str(tmp_path / 'x.lmdb'), LMDB).names) == 6


def test_too_little_space_is_found_before_the_work(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=1000))
    assert 'the disk has 1 KB free; make room' in refused(capsys, images, '-o', tmp_path / 'x.lmdb')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('kind', ['raw', 'lmdb'])
def test_damage_is_found_and_the_image_named(images, tmp_path, capsys, kind):
    root = tmp_path / 'x.lmdb'
    prepare(images, '-o', root, '--format', kind, *ONE)
    prepare('--info', '--verify', root)
    assert '6 images' in capsys.readouterr().out
    content = bytearray((root / 'data.mdb').read_bytes())
    value = values(root)[b'deep']
    content[content.index(value) + len(value) * 2 // 3] ^= 16
    (root / 'data.mdb').write_bytes(content)
    message = refused(capsys, '--verify', root)
    assert f"{root}: image 'deep': damaged" in message and message.count('\n') == 1
    os.truncate(root / 'data.mdb', len(content) // 2)
    assert 'data.mdb is truncated' in refused(capsys, '--verify', root)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('GT -o x', 'nothing to do: give --crop-size, --scales, or an output that ends in .lmdb'),
        ('GT', 'give the output: -o NAME.lmdb, or a folder'),
        ('GT -o x --format raw', 'the name of an output of --format raw ends in .lmdb'),
        ('GT -o x.lmdb --scales 2', 'with --scales the output is a folder'),
        ('GT -o x.lmdb --step 3', 'give their --crop-size'),
        ('GT -o x.lmdb --downsampling pil', 'give their --scales'),
        ('GT -o x --crop-size 300', 'are fewer than --crop-size 300; remove the image or lower --crop-size'),
        ('GT -o x --scales 0.5', 'a scale is at least 1; got 0.5'),
        ('GT -o GT/sub -f --crop-size 30', 'is not replaced, because b.png in it was not made by basicsr prepare'),
        ('GT -o x --crop-size 30 --step 0', '--step: at least 1; got 0'),
        ('GT -o x --scales 2 3 2.0000001', 'two of them would both be X2'),
        ('GT -o GT/x -r --crop-size 30', 'GT/x is inside GT, whose sub-folders are read'),
        ('gone -o x.lmdb', 'gone is not a folder'),
        ('--verify GT', 'GT has no data.mdb, so it is not a BasicSR LMDB'),
        ('--info', 'give the folders of the images'),
    ],
)
def test_mistakes_are_one_line(images, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(images.parent)
    before = sorted(os.listdir('.'))
    assert message in refused(capsys, *arguments.split())
    assert sorted(os.listdir('.')) == before


def test_a_damaged_image_is_named_and_removing_it_continues(tmp_path, capsys):
    (tmp_path / 'GT').mkdir()
    for name in 'abc':
        save(ramp(40, 50), tmp_path / 'GT' / f'{name}.png')
    content = bytearray((tmp_path / 'GT/b.png').read_bytes())
    content[60] ^= 1
    (tmp_path / 'GT/b.png').write_bytes(content)
    for processes in ('1', '2'):
        message = refused(capsys, tmp_path / 'GT', '-o', tmp_path / 'x.lmdb', '--processes', processes)
        assert 'b.png cannot be read; it is damaged' in message and not (tmp_path / 'x.lmdb').exists()


def folder_of(path, *names):
    """A folder with an image for each name."""
    path.mkdir(parents=True)
    for number, name in enumerate(names):
        save(np.roll(ramp(40, 50), number, axis=1), path / name)
    return path


def test_force_removes_only_what_the_command_has_made(tmp_path, capsys):
    source, out = folder_of(tmp_path / 'GT', 'a.png'), tmp_path / 'x'
    for name in ('x.replaced', 'x.lmdb.replaced', 'x.lmdb.partial'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'mine').write_text('mine')
    cut = (source, '-o', out, '--crop-size', 20, *ONE)
    prepare(*cut)
    prepare(*cut, '-f')
    assert (tmp_path / 'x.replaced' / 'mine').exists()
    for mine in ('notes.txt', 'drawn.png'):
        (out / mine).write_bytes(b'mine')
        assert f'x is not replaced, because {mine} in it' in refused(capsys, *cut, '-f')
        (out / mine).unlink()
    made = (source, '-o', tmp_path / 'x.lmdb', *ONE)
    assert 'x.lmdb.partial was not made by basicsr prepare; move it' in refused(capsys, *made, '-f')
    (tmp_path / 'x.lmdb.partial' / 'mine').unlink()
    prepare(*made)  # an empty folder is what a kill at the very beginning leaves
    assert sorted(os.listdir(tmp_path)) == ['GT', 'x', 'x.lmdb', 'x.lmdb.replaced', 'x.replaced']


def test_what_came_during_the_work_is_not_replaced(tmp_path, capsys, monkeypatch):
    source, out = folder_of(tmp_path / 'GT', 'a.png'), tmp_path / 'x.lmdb'

    def complete(self, keys, complete=outputs.LmdbOutput.complete):
        out.mkdir()
        (out / 'mine').write_text('mine')
        complete(self, keys)

    monkeypatch.setattr(outputs.LmdbOutput, 'complete', complete)
    assert 'x.lmdb already exists; -f replaces it' in refused(capsys, source, '-o', out, *ONE)
    assert os.listdir(out) == ['mine']


@pytest.mark.parametrize('arguments', [('x.lmdb',), ('x', '--crop-size', '20'), ('x', '--scales', '2')])
def test_an_output_of_which_files_were_lost_is_not_complete(tmp_path, capsys, arguments):
    command = (folder_of(tmp_path / 'GT', 'a.png'), '-o', tmp_path / arguments[0], *arguments[1:], *ONE)
    prepare(*command)
    lost = next(path for name in ('data.mdb', 'a*.png') for path in tmp_path.glob(f'x*/**/{name}'))
    lost.unlink()
    assert 'already exists; -f replaces it' in refused(capsys, *command)
    prepare(*command, '-f')
    assert lost.exists()


def test_sub_folders_are_complete_or_an_error_says_why(tmp_path, capsys, caplog, monkeypatch):
    source = folder_of(tmp_path / 'GT', 'a.png')
    folder_of(source / 'sub', 'b.png', 'c.gif')
    folder_of(tmp_path / 'elsewhere', 'd.png')
    (source / 'link').symlink_to(tmp_path / 'elsewhere')
    (source / 'sub' / 'loop').symlink_to('..')
    (source / 'broken.png').symlink_to('nowhere')
    os.mkfifo(source / 'sub' / 'pipe.png')  # reading it would wait for ever
    prepare(source, '-o', tmp_path / 'x.lmdb', '-r', *ONE)
    assert ImageSource(str(tmp_path / 'x.lmdb'), LMDB).names == ['a', 'link/d', 'sub/b']
    assert '3 images; skipped: 1 picture in a format not taken here (.gif), 1 broken link, 1 entry' in caplog.text

    def scandir(path, scandir=os.scandir):
        if str(path).endswith('sub'):
            raise PermissionError(13, 'Permission denied')
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    message = refused(capsys, source, '-o', tmp_path / 'y.lmdb', '-r', *ONE)
    assert 'sub cannot be read (Permission denied)' in message


def test_names_that_lists_cannot_hold_and_images_that_change(tmp_path, capsys, monkeypatch):
    spaces = folder_of(tmp_path / 'spaces', ' a.png')
    assert "' a': a list of images cannot hold spaces around a name" in refused(
        capsys, spaces, '-o', tmp_path / 'x.lmdb', *ONE
    )
    source = folder_of(tmp_path / 'GT', 'a.png')
    dotted = folder_of(tmp_path / 'dotted', 'a.1.png', 'b.png')
    prepare(dotted, '-o', tmp_path / 'dotted.lmdb', '--format', 'lmdb', *ONE)
    assert "1 names hold a dot, the first 'a.1'" in capsys.readouterr().err
    begin = run.prepare
    monkeypatch.setattr(run, 'prepare', lambda *a: (save(ramp(90, 90), source / 'a.png'), begin(*a))[1])
    message = refused(capsys, source, '-o', tmp_path / 'x', '--crop-size', 20, *ONE)
    assert 'a.png has changed since the command began; run it again' in message and not (tmp_path / 'x').exists()


def test_an_output_below_a_file_is_not_said_to_be_a_full_disk(tmp_path, capsys):
    source = folder_of(tmp_path / 'GT', 'a.png')
    message = refused(capsys, source, '-o', source / 'a.png' / 'x.lmdb', *ONE)
    assert 'a.png cannot be written (File exists); give another output (-o)' in message


def has_worker(parent):
    """Whether a process has started one that will take work from it."""
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            status, command = (folder / 'stat').read_text(), (folder / 'cmdline').read_bytes()
        except OSError:  # it has ended
            continue
        if int(status.rsplit(')', 1)[1].split()[1]) == parent and b'spawn_main' in command:
            return True
    return False


def test_an_interrupt_while_the_processes_start_is_one_line(tmp_path):
    source, target = folder_of(tmp_path / 'GT', 'a.png', 'b.png'), tmp_path / 'x.lmdb'
    command = [sys.executable, '-m', 'clit_basicsr', 'prepare', source, '-o', target, '--processes', '2']
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'start_new_session': True}
    pipes['preexec_fn'] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
    process = subprocess.Popen(command, **pipes)
    while not has_worker(process.pid):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130 and error == 'basicsr: interrupted; the same command continues where it left off\n'
