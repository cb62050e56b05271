"""The command: mistakes are one line before anything is created, and the host's own option files run unmodified."""

import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from clit_basicsr import cli
from clit_basicsr.base.errors import UserError
from clit_basicsr.cli import option_file, options
from clit_basicsr.hosts.basicsr import plugin

# As BasicSR's own options/train/EDSR/train_EDSR_Lx4_f256b32_DIV2K_300k_B16G1_204pretrain_wandb.yml, made small.
EDSR = """
name: EDSR_tiny
model_type: SRModel
scale: 4
num_gpu: auto
manual_seed: 10

datasets:
  train:
    name: images
    type: PairedImageDataset
    dataroot_gt: GT
    dataroot_lq: LR
    filename_tmpl: '{}x4'
    io_backend:
      type: disk
    gt_size: 32
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 1
    batch_size_per_gpu: 2
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
  val:
    name: val
    type: PairedImageDataset
    dataroot_gt: GT
    dataroot_lq: LR
    filename_tmpl: '{}x4'
    io_backend:
      type: disk

network_g: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 4, img_range: 255.}

path:
  pretrain_network_g: ~
  strict_load_g: true
  resume_state: ~

train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [5], gamma: 0.5}
  total_iter: 8
  warmup_iter: -1
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}

val:
  val_freq: !!float 1e2
  save_img: true
  metrics:
    psnr: {type: calculate_psnr, crop_border: 4, test_y_channel: false}

logger:
  print_freq: 1
  save_checkpoint_freq: !!float 2
  use_tb_logger: false
  wandb:
    project: ~
    resume_id: ~

dist_params:
  backend: nccl
  port: 29500
"""

CLIT = """
name: clit_tiny
model_type: CumulativeSRModel
num_gpu: 0
manual_seed: 0
datasets:
  train:
    {name: images, type: RandomScaleDataset, dataroot_gt: GT, io_backend: {type: disk}, lq_size: 8, num_queries: 16,
     batch_size_per_gpu: 2, num_worker_per_gpu: 0}
  val_x2: {name: x2, type: ScaledPairDataset, dataroot_gt: GT, io_backend: {type: disk}, scale: 2}
network_g:
  {type: CLIT, encoder: {type: EDSR, num_feat: 8, num_block: 1, img_range: 2, rgb_mean: [0.5, 0.5, 0.5]},
   num_branches: 2, dim: 8, num_heads: 2, grid_size: 3, hidden_dims: [8]}
path: {pretrain_network_g: ~}
train:
  optim_g: {type: Adam}
  pixel_opt: {type: L1Loss}
  stages:
    - {branches: 1, iters: 2, lr: 0.001, milestones: [1], scales: [[[1, 4]]]}
    - {branches: 2, iters: 3, lr: 0.001, milestones: [1], scales: [[[1, 4]], [[1, 4], [1, 2]]]}
logger: {print_freq: 1, save_checkpoint_freq: 2}
"""

# Dies, as by `kill -9`, while the host saves its checkpoint of iteration 6: the network is written, the state is not.
KILLED_WHILE_SAVING = """
import os, signal, sys
from clit_basicsr.cli import main
from clit_basicsr.hosts.basicsr import resume as basicsr_resume
def replace(source, target, real=os.replace):
    if str(target).endswith('6.state'):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
basicsr_resume.os.replace = replace
if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with three images at two sizes and both option files."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ('GT', 'LR'):
        (tmp_path / name).mkdir()
    for i in range(3):
        image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).resize((48, 40))
        image.save(tmp_path / 'GT' / f'{i}.png')
        image.resize((12, 10)).save(tmp_path / 'LR' / f'{i}x4.png')
    (tmp_path / 'edsr.yml').write_text(EDSR)
    (tmp_path / 'clit.yml').write_text(CLIT)
    return tmp_path


def run(*arguments, program=('-m', 'clit_basicsr')):
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def refused(capsys, *arguments):
    """The error that the command line gives, which must be its only trace."""
    before = sorted(Path().rglob('*'))
    assert cli.main(arguments) == 1
    assert sorted(Path().rglob('*')) == before
    error = capsys.readouterr().err
    assert error.startswith('basicsr: error: ')
    assert error.count('\n') == 1
    return error


def iterations(folder):
    logs = sorted((folder / 'experiments/EDSR_tiny').glob('train_*.log'))
    return [[int(i) for i in re.findall(r'iter: +(\d+), lr', log.read_text())] for log in logs]


@pytest.mark.slow
def test_the_hosts_own_option_file_trains_dies_resumes_and_tests(folder):
    program = folder / 'killed.py'
    program.write_text(KILLED_WHILE_SAVING)
    killed = run('train', '-opt', 'edsr.yml', '--force_yml', 'num_gpu=0', program=(str(program),))
    assert killed.returncode == -signal.SIGKILL
    models = folder / 'experiments/EDSR_tiny/models'
    assert (models / 'net_g_6.pth').exists()  # newer than the newest state

    resumed = run('train', '-opt', 'edsr.yml', '--auto_resume', '--force_yml', 'num_gpu=0')
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert 'Resuming training from epoch: 1, iter: 4.' in resumed.stderr
    assert iterations(folder) == [[1, 2, 3, 4, 5, 6], [5, 6, 7, 8]]  # 3 images in batches of 2: the bare host ends at 5
    assert re.search(r'# psnr: [\d.]+\tBest: [\d.]+ @ 8 iter', resumed.stderr)
    assert [file.name for file in (folder / 'experiments').glob('[!.]*')] == ['EDSR_tiny']  # nothing archived
    assert sorted(torch.load(models / 'net_g_latest.pth')) == ['network_g', 'params', 'params_ema']
    pictures = (folder / 'experiments/EDSR_tiny/visualization').rglob('*.png')
    assert sorted(str(file.relative_to(folder / 'experiments/EDSR_tiny/visualization')) for file in pictures) == [
        f'val/{i}x4/{i}x4_8.png' for i in range(3)
    ]

    opt = yaml.safe_load(EDSR)
    del opt['datasets']['train']
    (folder / 'test.yml').write_text(yaml.safe_dump(opt))
    weights = f'path:pretrain_network_g={models / "net_g_latest.pth"}'
    tested = run('test', '-opt', 'test.yml', '--force_yml', 'num_gpu=0', weights)
    assert tested.returncode == 0, tested.stderr[-3000:]
    assert re.search(r'Validation val\s+# psnr: [\d.]+', tested.stderr)
    assert (folder / 'results/EDSR_tiny/visualization/val/0x4_EDSR_tiny.png').exists()


@pytest.mark.parametrize('is_train', [True, False])
@pytest.mark.parametrize('debug', [True, False])
def test_options_of_the_host_are_what_its_own_parser_makes_of_them(is_train, debug, folder, monkeypatch, capsys):
    import basicsr.utils.options as host

    opt = yaml.safe_load(EDSR)
    if not is_train:
        del opt['datasets']['train']
    opt['path'] = {'pretrain_network_g': '~/net.pth'}
    monkeypatch.setenv('HOME', str(folder))
    torch.save({'params': {'weight': torch.ones(1)}}, folder / 'net.pth')
    file = folder / 'edsr.yml'
    file.write_text(yaml.safe_dump(opt))
    flags = ['-opt', str(file), *(['--debug'] if debug else [])]
    monkeypatch.setattr(sys, 'argv', ['train.py', *flags])
    expected, _ = host.parse_options(str(folder), is_train)
    drawn = torch.rand(1)
    args = cli.make_parser().parse_args(['train', *flags])
    opt = options.complete(option_file.read_option_file(args.opt), args, str(folder), is_train)
    if not is_train:
        expected['val'].setdefault('suffix', None)  # without which the host's test path stops
    assert opt == expected
    assert torch.equal(torch.rand(1), drawn)  # seeded alike


@pytest.mark.parametrize(
    ('forced', 'message'),
    [
        (['network_g:grid_sise=3'], 'network_g:grid_sise is not an option; the nearest one is network_g:grid_size'),
        (['network_g:dim=3.5'], 'network_g:dim must be a whole number, got 3.5'),
        (['network_g:hidden_dims=64'], 'network_g:hidden_dims must be a list'),
        (
            ['network_g:encoder:num_blok=3'],
            'network_g:encoder:num_blok is not an option; the nearest one is .*:num_block',
        ),
        (['network_g:encoder:num_feat=many'], 'network_g:encoder:num_feat must be a number'),
        (
            ['network_g:encoder:type=EDRS'],
            "network_g:encoder:type: 'EDRS' is not a known encoder; the nearest is 'EDSR'",
        ),
        (['network_g:encoder=~'], 'network_g:encoder must be a block of options'),
        (['network_g:type=CLLIT'], "network_g:type: 'CLLIT' is not known; the nearest is 'CLIT'"),
        (
            ['model_type=CumulativeModel'],
            "model_type: 'CumulativeModel' is not known; the nearest is 'CumulativeSRModel'",
        ),
        (['datasets:train:type=RandomScale'], "'RandomScale' is not known; the nearest is 'RandomScaleDataset'"),
        (['datasets:train:num_querys=3'], 'datasets:train:num_querys .* datasets:train:num_queries'),
        (['datasets:train:lq_size=48.5'], 'datasets:train:lq_size must be a whole number, got 48.5'),
        (['datasets:train:use_hflip=1'], 'datasets:train:use_hflip must be true or false'),
        (['datasets:val_x2:protocoll=div2k'], 'datasets:val_x2:protocoll .* datasets:val_x2:protocol'),
        (['datasets:valid=~'], 'datasets:valid: here the names are train or val'),
        (['datasets:val_x2=3'], 'datasets:val_x2 must be a block'),
        (['datasets:valid:name=x'], 'datasets:valid: here the names are train or val'),
        (['datasets:train:batch_size_per_gpu=0'], 'batch_size_per_gpu must be at least 1'),
        (['datasets:train:dataset_enlarge_ratio=-1'], 'dataset_enlarge_ratio must be above 0'),
        (['datasets:train:persistent_workers=true'], 'persistent_workers: true needs num_worker_per_gpu'),
        (['datasets:train:prefetch_mode=gpu'], 'prefetch_mode must be ~, cpu or cuda'),
        (['datasets:train:prefetch_mode=cuda'], 'prefetch_mode: cuda needs pin_memory: true'),
        (['datasets:train:dataroot_gt=nowhere'], 'datasets:train:dataroot_gt: folder nowhere does not exist'),
        (['datasets:val_x2:dataroot_lq=nowhere'], 'datasets:val_x2:dataroot_lq: folder nowhere does not exist'),
        (['datasets:train:dataroot_gt=clit.yml'], 'datasets:train:dataroot_gt: clit.yml is a file, not a folder'),
        (['datasets:train:meta_info_file=nothing.txt'], 'meta_info_file: nothing.txt does not exist'),
        (
            ['datasets:train:io_backend:type=lmdb'],
            'GT has no data.mdb, so it is not an LMDB of BasicSR or of basicsr prepare; make one',
        ),
        (['train:stages:1:iter=5'], "train:stages: stage 2: key 'iter' .* 'iters'"),
        (['train:stages:0:lr=fast'], 'train:stages: stage 1: lr: must be a number'),
        (['train:stages:0:scales=[[[1, 4], [1, 4]]]'], 'train:stages: stage 1: scales: .* 2 ranges'),
        (['train:start_stage=3'], 'train:stages: start_stage: must be between 1 and 2'),
        (['train:start_stages=1'], 'train:start_stages is not an option; the nearest one is train:start_stage'),
        (['train:total_iter=9'], 'train:total_iter: 9, but the stages have 5 iterations'),
        (['train:optim_g=Adam'], 'train:optim_g must be a block'),
        (['train:pixel_opt:type=L1'], "train:pixel_opt:type: 'L1' is not known; the nearest is 'L1Loss'"),
        (['train:perceptual_opt:type=PerceptualLoss'], 'perceptual_opt needs whole pictures'),
        (['val:val_freq=5', 'val:metrics:psnr:type=psnr_float'], "val:metrics:psnr:type: .* 'calculate_psnr_float'"),
        (['val:val_freq=0'], 'val:val_freq must be at least 1'),
        (['val:save_img=true'], 'val:val_freq must be a number, got None'),
        (['logger:print_freqs=2'], 'logger:print_freqs is not an option; the nearest one is logger:print_freq'),
        (['path:pretrain_net_g=x.pth'], 'path:pretrain_net_g .* path:pretrain_network_g'),
        (['path:pretrain_network_g=x.pth'], 'path:pretrain_network_g: x.pth does not exist'),
        (['path:resume_state=5.state'], 'path:resume_state: 5.state does not exist'),
        (['num_gpu=two'], 'num_gpu must be a whole number'),
        (['name=~'], 'name is missing'),
        (['train=~'], 'train must be a block'),
        (['train:stages:7:iters=5'], '7 is not an index of a list of 2'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_a_mistake_is_named_before_anything_is_created(forced, message, folder, capsys):
    error = refused(capsys, 'train', '-opt', 'clit.yml', '--force_yml', *forced)
    assert re.search(message, error), error


def test_an_lmdb_without_meta_info_is_named(folder, capsys):
    (folder / 'GT.lmdb').mkdir()
    (folder / 'GT.lmdb/data.mdb').touch()
    forced = ['datasets:train:io_backend:type=lmdb', 'datasets:train:dataroot_gt=GT.lmdb']
    assert 'GT.lmdb has no meta_info.txt' in refused(capsys, 'train', '-opt', 'clit.yml', '--force_yml', *forced)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is an NVIDIA GPU')
def test_a_gpu_that_is_not_there_is_asked_for(folder, capsys):
    assert 'torch finds no GPU' in refused(capsys, 'train', '-opt', 'edsr.yml', '--force_yml', 'num_gpu=1')


def test_what_is_no_option_file_is_named(folder, capsys):
    (folder / 'broken.yml').write_text('name: x\ntrain: [1, 2\nval: 3\n')
    assert re.search(r'broken.yml, line \d', refused(capsys, 'train', '-opt', 'broken.yml'))
    assert 'no.yml: No such file' in refused(capsys, 'test', '-opt', 'no.yml')
    assert 'datasets:train: here the names are val or test' in refused(capsys, 'test', '-opt', 'clit.yml')


def test_unknown_commands_and_help(folder, capsys):
    assert "the nearest is 'train'" in refused(capsys, 'trian', '-opt', 'x.yml')
    for arguments in (['--help'], ['train', '--help']):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert all(name in told for name in (*cli.COMMANDS, '--force_yml', '--auto_resume', '--launcher', '--debug'))
    assert 'arguments are required: -opt/--opt; `basicsr train --help` lists' in refused(capsys, 'train')
    message = refused(capsys, 'upscale', 'a.png', '-s', '2', '--scael=2')
    assert 'unrecognized arguments: --scael=2, did you mean --scale?; `basicsr upscale --help` lists' in message
    assert 'unrecognized arguments: b.pth; `basicsr info --help` lists' in refused(capsys, 'info', 'a.pth', 'b.pth')


def test_stages_and_seed_reach_the_dataset_and_the_total_the_host(folder):
    args = cli.make_parser().parse_args(['train', '-opt', 'clit.yml', '--local-rank', '0'])
    opt = option_file.read_option_file('clit.yml')
    plugin.register()
    opt = options.complete(opt, args, str(folder), is_train=True)
    assert opt['train']['total_iter'] == 5
    train = opt['datasets']['train']
    assert (train['manual_seed'], train['start_stage']) == (0, 1)
    assert [stage['iters'] for stage in train['stages']] == [2, 3]
    assert 'stages' not in opt['datasets']['val_x2']


def test_an_error_in_a_worker_is_one_line(folder):
    (folder / 'GT/1.png').write_bytes(b'no image')
    flags = ['datasets:train:num_worker_per_gpu=1', 'datasets:train:prefetch_mode=cpu']
    result = run('train', '-opt', 'clit.yml', '--force_yml', *flags)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('basicsr: error: ')
    assert '1.png' in last
    assert 'Traceback' not in result.stderr


def test_the_text_of_a_wrapped_error_is_its_last_line():
    wrapped = (
        'Caught UserError in DataLoader worker process 0.\nOriginal:\n  f()\nclit_basicsr.base.errors.UserError: it is'
    )
    assert cli.one_line(UserError(wrapped)) == 'it is'
    assert cli.one_line(UserError('plain')) == 'plain'


def test_interrupted(monkeypatch, folder, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(options, 'run_pipeline', interrupt)
    assert cli.main(['train', '-opt', 'clit.yml']) == 130
    assert capsys.readouterr().err == 'basicsr: interrupted\n'


def test_other_errors_keep_their_traceback(monkeypatch, folder):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(options, 'run_pipeline', fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(['train', '-opt', 'clit.yml'])


def test_another_command_of_the_same_name_is_reported(tmp_path, monkeypatch, capsys):
    info = tmp_path / 'basicsr-2.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: basicsr\nVersion: 2.0\n')
    (info / 'entry_points.txt').write_text('[console_scripts]\nbasicsr = basicsr.command:main\n')
    cli.warn_of_other_command()
    assert capsys.readouterr().err == ''  # our own is not another
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    assert metadata.version('basicsr') == '2.0'
    cli.warn_of_other_command()
    told = capsys.readouterr().err
    assert told.count('\n') == 1
    assert 'basicsr also installs a command named basicsr (basicsr.command:main)' in told


def test_run_as_a_module_in_the_working_directory(folder):
    result = run('train', '-opt', 'clit.yml', '--force_yml', 'train:stages:0:iters=2', 'train:stages:1:iters=2')
    assert result.returncode == 0, result.stderr[-3000:]
    assert (folder / 'experiments/clit_tiny/models/net_g_latest.pth').exists()
    assert sorted(os.listdir(folder)) == ['GT', 'LR', 'clit.yml', 'edsr.yml', 'experiments']
