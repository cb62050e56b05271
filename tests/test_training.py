"""Training through the unmodified host: stages, kills, resumes, ranks."""

import csv
import re

import pytest
import torch
from helpers.training import changed, prepare, run, train, weights
from PIL import Image

# Runs the command and dies, as by `kill -9`, in the middle of the iteration that is named first.
KILLED = """
import os, signal, sys
from clit_basicsr.cli import main
from clit_basicsr.models import ImplicitSRModel
step = ImplicitSRModel.optimize_parameters
def optimize_parameters(self, current_iter):
    if current_iter == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, current_iter)
ImplicitSRModel.optimize_parameters = optimize_parameters
if __name__ == '__main__':
    sys.exit(main(sys.argv[2:]))
"""


def validations(folder):
    with open(folder / 'experiments' / 'tiny' / 'validation.csv', newline='') as file:
        return [(int(row['iteration']), row['dataset'], row['metric']) for row in csv.DictReader(file)]


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
    """A run through all stages, and what it printed."""
    folder = prepare(tmp_path_factory.mktemp('whole'))
    return folder, train(folder).stderr


def test_one_run_goes_through_all_stages(whole_run):
    folder, log = whole_run
    assert [int(n) for n in re.findall(r'iter: +(\d+), lr', log)] == list(range(1, 13))
    stages = re.findall(r'Iteration (\d+): stage (\d) of 3 \(branch\w* ([\d to]+),', log)
    assert stages == [('1', '1', '1'), ('5', '2', '1 to 2'), ('9', '3', '1 to 3')]
    rates = [float(rate) for rate in re.findall(r'lr:\(([\d.e+-]+)', log)]
    first, second = [0.005, 0.01, 0.005, 0.005], [0.004, 0.002, 0.002, 0.001]  # warm-up, milestones after 2; 1 and 3
    assert rates == pytest.approx(first + second + [0.002] * 4)
    assert validations(folder) == [
        (iteration, name, metric)
        for iteration in (6, 12)  # at val_freq; what the host validates at the end was just validated
        for name in ('x2', 'x6.5')
        for metric in ('psnr', 'host_psnr')
    ]


def test_pictures_of_each_set_stand_apart(whole_run):
    pictures = whole_run[0] / 'experiments' / 'tiny' / 'visualization'
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob('*') if path.is_file())
    assert names == sorted(f'{name}/{i}_{n}.png' for name in ('x2', 'x6.5') for i in range(3) for n in (6, 12))
    # 52 rows / 6.5 = 8; 61 columns / 3 = 20, so 60 of them
    assert Image.open(pictures / 'x6.5' / '1_12.png').size == (60, 52)


def test_checkpoints_tell_how_many_branches_are_trained(whole_run):
    models = whole_run[0] / 'experiments' / 'tiny' / 'models'
    for iteration, branches in ((2, 1), (4, 1), (6, 2), (8, 2), (10, 3), ('latest', 3)):
        saved = torch.load(models / f'net_g_{iteration}.pth')
        assert saved['params']['trained_branches'] == branches
        assert saved['params_ema']['trained_branches'] == branches


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_if_nothing_had_happened(whole_run, tmp_path):
    folder = prepare(tmp_path / 'killed')
    (folder / 'killed.py').write_text(KILLED)
    for iteration in (4, 6, 12):
        result = run(folder, str(iteration), 'train', '-opt', 'options.yml', '--auto_resume', program=['killed.py'])
        assert result.returncode == -9, result.stderr[-3000:]
    log = train(folder, '--auto_resume').stderr
    assert 'Resumed in stage 3 of 3' in log
    assert [int(n) for n in re.findall(r'iter: +(\d+), lr', log)] == [11, 12]
    assert [path.name for path in (folder / 'experiments').glob('[!.]*')] == ['tiny']  # nothing was archived
    expected, resumed = weights(whole_run[0]), weights(folder)
    for key in ('params', 'params_ema'):
        for name, value in expected[key].items():
            assert torch.equal(resumed[key][name], value), name


@pytest.mark.slow
def test_a_stage_starts_from_the_checkpoint_of_the_one_before(whole_run, tmp_path):
    """With start_stage 2 and the weights that stage 1 ended with, the run is the rest of the whole one."""
    first = whole_run[0] / 'experiments' / 'tiny' / 'models' / 'net_g_4.pth'
    options = changed(path__pretrain_network_g=str(first), train__start_stage=2, train__ema_decay=0)
    log = train(prepare(tmp_path / 'from_2', options)).stderr
    assert re.findall(r'Iteration (\d+): stage (\d) of 3', log) == [('1', '2'), ('5', '3')]
    assert [int(n) for n in re.findall(r'iter: +(\d+), lr', log)] == list(range(1, 9))


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    folder = prepare(tmp_path / 'ranks', count=5)
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'clit_basicsr']
    result = run(folder, 'train', '-opt', 'options.yml', '--launcher', 'pytorch', program=launcher)
    assert result.returncode == 0, result.stderr[-3000:]
    assert validations(folder)[-1] == (12, 'x6.5', 'host_psnr')
    assert all(value.isfinite().all() for value in weights(folder)['params'].values())


def test_self_ensemble_is_the_mean_over_flips_and_transpositions():
    from clit_basicsr.archs import Bicubic
    from clit_basicsr.models.implicit_sr_model import self_ensemble

    class Skewed(Bicubic):
        """Adds a ramp to what it sees from top to bottom and from left to right."""

        def upscale(self, lq, size=None, scale=None, tile=None):
            out = super().upscale(lq, size, scale, tile)
            down, right = torch.linspace(-1, 1, out.shape[2]), torch.linspace(-3, 3, out.shape[3])
            return out + down.view(-1, 1) + right

    lq = torch.rand(1, 3, 5, 7)
    expected = Bicubic().upscale(lq, scale=(2, 3))
    assert torch.allclose(self_ensemble(Skewed(), lq, (2, 3)), expected, atol=1e-5)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'train__perceptual_opt': {'type': 'PerceptualLoss'}}, 'perceptual_opt needs whole pictures'),
        ({'train__start_stage': 2}, 'start_stage above 1 needs path:pretrain_network_g'),
        ({'network_g__num_branches': 2}, 'stages ask for 3 branches, but network_g has 2'),
        ({'num_gpu': 2}, 'torchrun --nproc_per_node=2'),
        ({'train__precision': 'half'}, "train:precision must be one of fp32, tf32, bf16, fp16, got 'half'"),
        ({'val__precision': 'half'}, 'val:precision must be one of'),
        ({'train__precision': 'fp16'}, 'use bf16'),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
    from clit_basicsr.archs import build_network
    from clit_basicsr.base.errors import UserError
    from clit_basicsr.models import CumulativeSRModel

    opt = {**changed(**changes), 'is_train': True, 'dist': False}
    with pytest.raises(UserError, match=message):
        CumulativeSRModel.check_options(opt)
        CumulativeSRModel.check_network(opt, build_network(opt['network_g']))


STAGES_OF_ONE_BRANCH = [
    {'branches': 1, 'iters': 2, 'lr': 0.01, 'milestones': [], 'scales': [[[1, 4]]]},
    {'branches': 1, 'iters': 2, 'lr': 0.01, 'milestones': [1], 'scales': [[[1, 4]], [[4, 12]]]},
]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['LIIF', 'LTE'])
def test_cumulative_training_of_the_peers_with_a_pretrained_encoder(kind, tmp_path):
    from basicsr.archs.edsr_arch import EDSR

    from clit_basicsr.archs import load_checkpoint

    host = EDSR(3, 3, num_feat=4, num_block=1)
    torch.save({'params_ema': host.state_dict()}, tmp_path / 'edsr.pth')
    encoder = {'type': 'EDSR', 'num_feat': 4, 'num_block': 1, 'frozen': True}
    options = changed(
        network_g={'type': kind, 'encoder': encoder, 'hidden_dims': [8]},
        path__pretrain_network_encoder=str(tmp_path / 'edsr.pth'),
        train__stages=STAGES_OF_ONE_BRANCH,
        train__ema_decay=0.9,
    )
    folder = prepare(tmp_path / kind, options)
    log = train(folder).stderr
    assert 'edsr.pth' in log
    assert 'features times 0.007843' in log
    path = str(folder / 'experiments' / 'tiny' / 'models' / 'net_g_4.pth')
    for key in ('params', 'params_ema'):
        net = load_checkpoint(path, key)
        assert net.encoder.input_range.item() == 255
        assert net.encoder.feat_scale.item() == pytest.approx(2 / 255)
        assert torch.allclose(net.encoder.conv_first.weight, host.conv_first.weight, atol=1e-6)
    assert torch.equal(load_checkpoint(path, 'params').encoder.conv_first.weight, host.conv_first.weight)
