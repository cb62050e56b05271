"""Files that are not checkpoints, and files that would run code: one line each, and nothing is run."""

import ast
import os
import tarfile
import zipfile
from pathlib import Path

import basicsr.archs.vgg_arch
import numpy as np
import pytest
import torch
from basicsr.archs.spynet_arch import SpyNet
from helpers.tiny_network import OPTIONS, build, make_experiment
from PIL import Image
from torch import nn

from clit_basicsr import published, weights
from clit_basicsr.archs import load_checkpoint, save_checkpoint
from clit_basicsr.archs.encoders import build_encoder, load_pretrained
from clit_basicsr.base.checkpoints import read_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.cli import main
from clit_basicsr.hosts.basicsr import resume
from clit_basicsr.pictures.networks import find_checkpoint

ROOT = Path(__file__).parents[1]
WEIGHTS = b'\x80\x02' + b'not a pickle at all'


def picture(format):
    return lambda path: Image.new('RGB', (4, 4)).save(path, format)


def zipped(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('notes.txt', 'text')


def packed(path):
    with tarfile.open(path, 'w') as archive:
        archive.add(ROOT / 'README.md', 'README.md')


def npz(path):
    with open(path, 'wb') as file:
        np.savez(file, a=np.zeros(3))


def npy(path):
    with open(path, 'wb') as file:
        np.save(file, np.zeros(3))


def script(path):
    torch.jit.trace(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)).save(path)


def safetensors(path):
    save_checkpoint(path.with_suffix('.safetensors'), {'params': {'a': torch.zeros(2)}})
    path.with_suffix('.safetensors').rename(path)


def numpy_scalar(path):
    torch.save({'params': {}, 'psnr': np.float64(31.5)}, path)


def whole_module(path):
    torch.save(nn.Conv2d(1, 1, 1), path)


# How to make a file, what its message says it is, and the remedy in it.
FOREIGN = {
    'empty': (lambda path: path.write_bytes(b''), 'an empty file', 'download it again'),
    'text': (lambda path: path.write_text('Hällo, world\n' * 90), 'a text file', 'give the checkpoint'),
    'html': (lambda path: path.write_text('\n<!DOCTYPE html><html>'), 'a web page', 'from its direct address'),
    'lfs': (lambda path: path.write_text('version https://git-lfs.github.com/spec/v1\n'), 'Git LFS', 'git lfs pull'),
    'zeros': (lambda path: path.write_bytes(bytes(5000)), 'begins with zeros', 'download it again'),
    'noise': (lambda path: path.write_bytes(b'\xfe\xdc\x01' * 50), 'unknown format', 'download it again'),
    'jpeg': (picture('JPEG'), 'a JPEG picture', 'give the checkpoint'),
    'png': (picture('PNG'), 'a PNG picture', 'give the checkpoint'),
    'webp': (picture('WEBP'), 'a WebP picture', 'give the checkpoint'),
    'zip': (zipped, r'a zip archive of other files \(notes.txt\)', 'unpack it'),
    'tar': (packed, 'a tar archive', 'unpack it'),
    'npz': (npz, r'a NumPy archive \(.npz\)', 'give the checkpoint'),
    'npy': (npy, r'a NumPy array \(.npy\)', 'give the checkpoint'),
    'script': (script, 'a TorchScript program', r'state_dict\(\)'),
    'safetensors': (safetensors, 'a safetensors file', 'ends in .safetensors'),
    'numpy scalar': (numpy_scalar, r'NumPy values \(numpy', r'float\(x\)'),
    'module': (whole_module, r'Python objects \(torch.nn.modules.conv.Conv2d\)', r'state_dict\(\)'),
    'pickle': (lambda path: path.write_bytes(WEIGHTS), 'damaged', 'a.pth'),
    'folder': (lambda path: path.mkdir(), 'but a folder', 'give a file in it'),
}


@pytest.mark.parametrize('kind', FOREIGN)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore:.*TorchScript:UserWarning')
def test_what_is_not_a_checkpoint(kind, tmp_path):
    make, what, remedy = FOREIGN[kind]
    path = tmp_path / 'a.pth'
    make(path)
    for read in (read_checkpoint, load_checkpoint, published.load_file):
        with pytest.raises(UserError, match=what) as error:
            read(path)
        with pytest.raises(UserError, match=remedy):
            read(str(path))
        assert str(path) in str(error.value)
        assert '\n' not in str(error.value)


def test_a_folder_of_checkpoints_is_reported_with_an_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_experiment()
    folder = os.path.join('experiments', 'tiny', 'models')
    with pytest.raises(UserError, match=r"models' is a folder.*such as .*net_g_latest.pth"):
        find_checkpoint(folder)
    with pytest.raises(UserError, match=r'a folder; give a file in it, such as .*net_g_latest.pth'):
        load_checkpoint(folder)


def test_no_network_at_all_has_a_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, 'FOLDER', tmp_path)  # a package without networks
    Image.new('RGB', (4, 4)).save('photo.jpg')
    assert main(['upscale', 'photo.jpg', '-s', '2', '-o', 'b.png']) == 1
    assert 'To train one: scripts/quickstart.sh' in capsys.readouterr().err
    assert main(['upscale', 'photo.jpg', '-s', '2', '-o', 'b.png', '--model', 'photo.jpg']) == 1
    assert 'photo.jpg is not a checkpoint but a JPEG picture' in capsys.readouterr().err


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_paths_of_pathlib(suffix, tmp_path):
    path = tmp_path / f'net.{suffix}'
    save_checkpoint(path, {'params': build().state_dict(), 'network_g': OPTIONS})
    assert read_checkpoint(path)['network_g']['type'] == 'LIT'
    assert torch.equal(load_checkpoint(path).conv_in.weight, build().conv_in.weight)


# Code in files


class Hostile:
    """Unpickled by Python, it makes a file of this name."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, 'w')


class Model:
    """What the host's `load_network` needs of a model."""

    def get_bare_model(self, net):
        return net


def read_state(path):
    resume.read_state({'path': {'models': str(path.parent)}}, path)


def read_vgg(path, monkeypatch):
    monkeypatch.setattr(basicsr.archs.vgg_arch, 'VGG_PRETRAIN_PATH', str(path))
    basicsr.archs.vgg_arch.VGGFeatureExtractor(['relu1_1'])


READERS = {
    'load_checkpoint': lambda path, _: load_checkpoint(path),
    'published': lambda path, _: published.load_file(path),
    'resume': lambda path, _: read_state(path),
    'pretrain_network_g': lambda path, _: resume.load_network(Model(), build(), str(path)),
    'pretrain_network_encoder': lambda path, _: load_pretrained(
        build_encoder(OPTIONS['encoder']), OPTIONS['encoder'], str(path)
    ),
    'perceptual loss': read_vgg,
    'a network with a path': lambda path, _: SpyNet(str(path)),
}


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings('ignore:Arguments other than a weight enum:UserWarning')
@pytest.mark.parametrize('forced', [False, True])
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('reader', READERS)
def test_a_file_that_would_run_code_runs_nothing(reader, zipped, forced, tmp_path, monkeypatch):
    if forced:
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    marker, path = tmp_path / 'marker', tmp_path / 'a.pth'
    content = {'params': Hostile(marker), 'model': {'name': 'liif', 'args': {}, 'sd': {}}, 'iter': 1, 'epoch': 0}
    content |= {'optimizers': [], 'schedulers': [], 'network_g': OPTIONS}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r'a\.pth') as error:
        READERS[reader](path, monkeypatch)
    assert 'open' in str(error.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is as hostile as it looks


@pytest.mark.parametrize('command', ['info', 'convert'])
def test_commands_run_nothing(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    path = tmp_path / 'a.pth'
    torch.save({'params': Hostile(tmp_path / 'marker')}, path)
    output = [str(tmp_path / 'b.pth')] if command == 'convert' else []
    assert main([command, str(path), *output]) == 1
    assert capsys.readouterr().err.count('\n') == 1
    assert [file.name for file in tmp_path.iterdir()] == ['a.pth']


def test_the_host_still_reads_weights(tmp_path):
    net = SpyNet()
    torch.save({'params': dict(net.named_parameters())}, tmp_path / 'spynet.pth')
    again = SpyNet(str(tmp_path / 'spynet.pth'))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_torch_load_is_always_of_weights_only():
    """Neither in the package nor in the scripts is there a call without weights_only=True, or another unpickler."""
    found, calls = [], 0
    for file in [*(ROOT / 'clit_basicsr').rglob('*.py'), *(ROOT / 'scripts').rglob('*.py')]:
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in ('torch.load', 'torch.jit.load', 'torch.hub.load_state_dict_from_url'):
                calls += 1
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if given.get('weights_only') != 'True':
                    found.append(f'{file.name}:{node.lineno}')
            elif name in ('pickle.load', 'pickle.loads', 'pickle.Unpickler', 'torch.serialization.load'):
                found.append(f'{file.name}:{node.lineno}')
    assert found == []
    assert calls >= 1
