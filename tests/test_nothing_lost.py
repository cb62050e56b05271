"""Work that could be lost: states that cannot be used, full disks, two writers, signals, changed options."""

import argparse
import copy
import errno
import logging
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from helpers.training import changed, prepare, run, train, weights

from clit_basicsr.base.errors import UserError
from clit_basicsr.cli.options import complete
from clit_basicsr.hosts.basicsr import experiment, resume
from clit_basicsr.hosts.basicsr.changes import check_changes, kept_options
from clit_basicsr.hosts.basicsr.following import follow_schedule

SHORT = {
    'network_g__num_branches': 1,
    'train__stages': [{'branches': 1, 'iters': 8, 'lr': 0.01, 'milestones': [5], 'scales': [[[1, 4]]]}],
    'val__val_freq': 8,
}


@pytest.fixture(scope='module')
def half(tmp_path_factory):
    """A run that SIGTERM ended after its fifth iteration, and what it said."""
    folder = prepare(tmp_path_factory.mktemp('half'), changed(**SHORT))
    (folder / 'stopped.py').write_text(SIGNALLED)
    return folder, run(folder, '5', 'train', '-opt', 'options.yml', program=['stopped.py'])


SIGNALLED = """
import multiprocessing, os, signal, sys
from clit_basicsr.cli import main
from clit_basicsr.models import ImplicitSRModel
step = ImplicitSRModel.optimize_parameters
number = getattr(signal, os.environ.get('SIGNAL', 'SIGTERM'))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
def optimize_parameters(self, current_iter):
    if current_iter == int(sys.argv[1]):
        if 'ALONE' not in os.environ:  # a batch system, or a terminal on Ctrl-C, sends it to every process of a run
            workers = multiprocessing.active_children()
            assert workers
            for worker in workers:
                os.kill(worker.pid, number)
        os.kill(os.getpid(), number)
    step(self, current_iter)
ImplicitSRModel.optimize_parameters = optimize_parameters
if __name__ == '__main__':
    sys.exit(main(sys.argv[2:]))
"""


def copied(half, tmp_path):
    import shutil

    return shutil.copytree(half[0], tmp_path / 'copy')


def test_sigterm_saves_a_state_and_the_run_goes_on_as_if_nothing_had_happened(half, tmp_path):
    folder, stopped = half
    assert stopped.returncode == 143
    last = stopped.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        r'basicsr: terminated after iteration 5; the last state is .*5\.state; resume with the .* --auto_resume', last
    )
    assert 'Traceback' not in stopped.stderr
    assert not list(folder.rglob('*.tmp*'))
    resumed = copied(half, tmp_path)
    train(resumed, '--auto_resume')
    whole = prepare(tmp_path / 'whole', changed(**SHORT))
    train(whole)
    for key, value in weights(whole)['params'].items():
        assert torch.equal(weights(resumed)['params'][key], value), key


def test_ctrl_c_saves_a_state_too(tmp_path, monkeypatch):
    folder = prepare(tmp_path / 'c', changed(**SHORT))
    (folder / 'stopped.py').write_text(SIGNALLED)
    monkeypatch.setenv('SIGNAL', 'SIGINT')
    result = run(folder, '5', 'train', '-opt', 'options.yml', program=['stopped.py'])
    assert result.returncode == 130
    last = result.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        r'basicsr: interrupted; stopped after iteration 5; the last state is .*5\.state; resume with .*', last
    )
    assert 'Traceback' not in result.stderr
    assert list(folder.rglob('5.state'))


@pytest.mark.parametrize('options', [{}, {'datasets__train__prefetch_mode': 'cpu'}], ids=['', 'prefetched'])
def test_sigterm_for_the_training_alone_ends_its_workers_too(tmp_path, monkeypatch, options):
    folder = prepare(tmp_path / 'alone', changed(**SHORT, **options))
    (folder / 'stopped.py').write_text(SIGNALLED)
    monkeypatch.setenv('ALONE', '1')
    result = run(folder, '3', 'train', '-opt', 'options.yml', program=['stopped.py'])
    assert result.returncode == 143
    assert 'basicsr: terminated after iteration 3; ' in result.stderr.splitlines()[-1]
    assert 'Traceback' not in result.stderr


def test_ctrl_c_in_a_resumed_run_names_the_state_that_it_came_from(half, tmp_path, monkeypatch):
    folder = copied(half, tmp_path)
    monkeypatch.setenv('SIGNAL', 'SIGINT')
    result = run(folder, '6', 'train', '-opt', 'options.yml', '--auto_resume', program=['stopped.py'])
    assert result.returncode == 130
    assert re.search(r'basicsr: interrupted; the last state is .*5\.state; resume with', result.stderr)


def options_of(folder):
    return yaml.safe_load((folder / 'options.yml').read_text())


def resumed_with(folder, options):
    (folder / 'options.yml').write_text(yaml.safe_dump(options, sort_keys=False))
    return run(folder, 'train', '-opt', 'options.yml', '--auto_resume')


def test_a_resume_obeys_the_file_and_logs_what_has_changed(half, tmp_path):
    folder = copied(half, tmp_path)
    options = options_of(folder)
    options['train']['stages'][0].update(lr=0.004, milestones=[6])
    options['val']['val_freq'] = 4
    result = resumed_with(folder, options)
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.findall(r'lr:\(([\d.e+-]+)', result.stderr) == ['4.000e-03', '2.000e-03', '2.000e-03']
    for line in (
        'train:stages:0:lr: 0.004, before 0.01',
        'train:stages:0:milestones: [6], before [5]',
        'val:val_freq: 4, before 8',
    ):
        assert f'Changed since the state was saved: {line}.' in result.stderr


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda opt: opt['network_g'].update(dim=8), 'network_g:dim: 8, but 4 when the training state was saved'),
        (
            lambda opt: opt['datasets']['train'].update(batch_size_per_gpu=3),
            'datasets:train:batch_size_per_gpu: 3, but 2',
        ),
        (lambda opt: opt.update(manual_seed=4), 'manual_seed: 4, but 3'),
        (lambda opt: opt['train']['stages'][0].update(iters=4, milestones=[]), 'beyond the last one, 4|in stage'),
    ],
)
def test_what_a_state_cannot_have_ends_before_anything_is_touched(change, message, half, tmp_path, monkeypatch):
    folder = copied(half, tmp_path)
    opt = options_of(folder)
    change(opt)
    before = sorted(path for path in folder.rglob('*') if path.suffix != '.lock')
    monkeypatch.chdir(folder)
    args = argparse.Namespace(auto_resume=True, launcher='none', debug=False, opt='options.yml')
    with pytest.raises(UserError) as caught:
        resume.load_resume_state(complete(opt, args, str(folder), is_train=True))
    assert re.search(message, str(caught.value)), caught.value
    assert sorted(path for path in folder.rglob('*') if path.suffix != '.lock') == before


def test_a_finished_stage_may_not_change():
    saved = kept_options({**changed(), 'world_size': 1})
    opt = {**changed(), 'world_size': 1}
    opt['train']['total_iter'] = 12
    assert check_changes(saved, copy.deepcopy(opt), 7) == []
    opt['train']['stages'][0]['lr'] = 0.5
    with pytest.raises(UserError, match=r'train:stages:0:lr: 0\.5, but 0\.01 .*that stage is finished'):
        check_changes(saved, opt, 7)
    assert check_changes(saved, opt, 3) == ['train:stages:0:lr: 0.5, before 0.01']


def test_auto_resume_does_not_start_anew_where_there_is_something_to_lose(half, tmp_path):
    folder = copied(half, tmp_path)
    experiment_folder = folder / 'experiments' / 'tiny'
    for state in (experiment_folder / 'training_states').iterdir():
        state.write_bytes(state.read_bytes()[:300])
    result = run(folder, 'train', '-opt', 'options.yml', '--auto_resume')
    assert result.returncode == 1
    assert 'none of the 3 training states can be used' in result.stderr.strip().splitlines()[-1]
    assert [path.name for path in (folder / 'experiments').glob('[!.]*')] == ['tiny']
    for state in (experiment_folder / 'training_states').iterdir():
        state.unlink()
    paths = {'training_states': str(experiment_folder / 'training_states'), 'models': str(experiment_folder / 'models')}
    with pytest.raises(UserError, match='start anew without --auto_resume'):
        resume.newest_usable_state({'path': paths})
    assert (experiment_folder / 'models' / 'net_g_5.pth').is_file()


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('MultiStepRestartLR', {'milestones': [3, 5], 'gamma': 0.1}),
        ('MultiStepRestartLR', {'milestones': [2, 9], 'gamma': 0.5, 'restarts': [0, 6], 'restart_weights': [1, 0.3]}),
        ('CosineAnnealingRestartLR', {'periods': [4, 20], 'restart_weights': [1, 0.5], 'eta_min': 1e-6}),
    ],
)
def test_new_milestones_give_the_rates_of_a_run_that_always_had_them(kind, options):
    from basicsr.models import lr_scheduler

    def make(**own):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
        return optimizer, getattr(lr_scheduler, kind)(optimizer, **own)

    def steps(optimizer, scheduler, count):
        rates = []
        for _ in range(count):
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[0]['lr'])
        return rates

    old = {'periods': [24]} if 'periods' in options else {'milestones': [1, 4], 'gamma': 0.9}
    _, before = make(**old)
    steps(before.optimizer, before, 8)
    optimizer, scheduler = make(**options)
    fresh = copy.copy(scheduler.state_dict())
    scheduler.load_state_dict(before.state_dict())
    optimizer.param_groups[0]['lr'] = before.optimizer.param_groups[0]['lr']
    follow_schedule(scheduler, fresh)
    expected = steps(*make(**options), 12)
    assert optimizer.param_groups[0]['lr'] == pytest.approx(expected[7], rel=1e-12)
    assert steps(optimizer, scheduler, 4) == pytest.approx(expected[8:], rel=1e-12)


def test_a_full_disk_keeps_the_last_good_network_and_is_one_line(half, tmp_path):
    folder = copied(half, tmp_path)
    (folder / 'full.py').write_text(FULL_DISK)
    result = run(folder, 'train', '-opt', 'options.yml', '--auto_resume', program=['full.py'])
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(r'net_g_latest\.pth: no space left on device; make room and resume', last)
    assert result.stderr.count('cannot be written: No space left') <= 2
    assert (folder / 'experiments/tiny/models/net_g_5.pth').is_file()
    assert not (folder / 'experiments/tiny/models/net_g_latest.pth').exists()
    assert not list(folder.rglob('*.tmp*'))


# From the seventh iteration on, no file takes another byte.
FULL_DISK = """
import builtins, errno, logging, sys, time
import torch
from clit_basicsr.cli import main
from clit_basicsr.models import ImplicitSRModel
time.sleep = lambda seconds: None
def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')
step = ImplicitSRModel.optimize_parameters
def optimize_parameters(self, current_iter):
    step(self, current_iter)
    if current_iter == 7:
        torch.save = full
        logger = logging.getLogger('basicsr')
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.stream = open('/dev/full', 'w')
        import clit_basicsr.base.files as files
        from contextlib import contextmanager
        @contextmanager
        def replacing(path):
            raise files.UserError(f'{path} cannot be written (No space left on device).')
            yield
        import clit_basicsr.models.validation_table as table
        import clit_basicsr.models.implicit_sr_model as model
        table.replacing = model.replacing = replacing
ImplicitSRModel.optimize_parameters = optimize_parameters
if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
"""


def test_two_runs_of_one_name_do_not_mix(half, tmp_path, monkeypatch):
    folder = copied(half, tmp_path)
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(folder / 'experiments' / 'tiny')], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == 'held\n'
    before, opt = sorted(folder.rglob('*')), options_of(folder)
    monkeypatch.chdir(folder)
    args = argparse.Namespace(auto_resume=False, launcher='none', debug=False, opt='options.yml')
    with pytest.raises(UserError, match=f'is being written by process {holder.pid} on '):
        complete(opt, args, str(folder), is_train=True)
    assert sorted(folder.rglob('*')) == before
    holder.kill()
    holder.wait()
    experiment.lock(str(folder / 'experiments' / 'tiny'))  # a dead process holds nothing


HOLDER = """
import sys, time
from clit_basicsr.hosts.basicsr import experiment
experiment.lock(sys.argv[1])
print('held', flush=True)
time.sleep(100)
"""


def test_left_overs_of_a_kill_are_removed_and_nothing_else(tmp_path):
    root = tmp_path / 'experiments' / 'name'
    (root / 'models').mkdir(parents=True)
    stale = root / 'models' / '.net_g_5.1234-0a1b2c3d.tmp.pth'
    kept = [root / 'models' / name for name in ('net_g_5.pth', '.hidden', 'a.tmp', '.notes.tmp')]
    for path in (stale, *kept):
        path.write_text('x')
    experiment.take({'is_train': True, 'path': {'experiments_root': str(root)}})
    assert not stale.exists()
    assert all(path.exists() for path in kept)


def test_a_log_that_cannot_be_written_is_reported_once(tmp_path, capsys):
    logger = experiment.quiet(lambda: logging.getLogger('quiet test'))
    logging.getLogger('quiet test').addHandler(handler := logging.FileHandler(tmp_path / 'log'))
    handler.stream = open('/dev/full', 'w')  # noqa: SIM115
    for _ in range(5):
        logger().warning('x' * 10_000)
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert 'cannot be written: No space left on device' in said


def test_the_wrong_warning_about_several_sets_is_left_out(caplog):
    logger = experiment.quiet(lambda: logging.getLogger('quiet test'))()
    logger.warning(experiment.WRONG_WARNING)
    logger.warning('another')
    assert [record.message for record in caplog.records if record.name == 'quiet test'] == ['another']


def test_why_a_file_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(resume.time, 'sleep', lambda seconds: None)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, 'save', full)
    assert resume.save_atomically({}, tmp_path / 'x.pth') == 'no space left on device'
    assert list(tmp_path.iterdir()) == []


def test_a_seed_that_was_drawn_is_kept(half, tmp_path):
    opt = {'seed_drawn': True, 'manual_seed': 8, 'rank': 0, 'train': {}, 'datasets': {}}
    resume.keep_drawn_seed(opt, {'manual_seed': 77})
    assert opt['manual_seed'] == 77
    given = {'manual_seed': 8}
    resume.keep_drawn_seed(given, {'manual_seed': 77})
    assert given['manual_seed'] == 8
