"""A training under MMagic that is terminated, or whose folder another one writes."""

import re

import pytest
import torch
from helpers.mmagic import config, needs_mmagic, write
from helpers.training import changed, prepare, run

from clit_basicsr.hosts.basicsr import experiment

pytestmark = needs_mmagic
STAGES = [
    {'branches': 1, 'iters': 4, 'lr': 0.01, 'milestones': [2], 'scales': [[[1, 4]]]},
    {'branches': 2, 'iters': 4, 'lr': 0.01, 'milestones': [], 'scales': [[[1, 2], [1, 2]]]},
]
# SIGTERM in an iteration, or in the validation after one: to every process, as from a batch system.
SIGNALLED = """
import multiprocessing, os, signal, sys
from clit_basicsr.cli import main
from clit_basicsr.hosts.mmagic import plugin
plugin.register_all()
from clit_basicsr.hosts.mmagic.train_loop import CumulativeTrainLoop
def terminate():
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
where, when = sys.argv[1], int(sys.argv[2])
run_iter = CumulativeTrainLoop.run_iter
def terminated_run_iter(self, batch):
    if self.iter + 1 == when and where == 'iteration':
        terminate()
    run_iter(self, batch)
    if self.iter == when and where == 'validation':
        def validate():
            batches = iter(self.runner.val_loop.dataloaders[0])
            next(batches)  # its workers run
            terminate()
        self.runner.val_loop.run = validate
CumulativeTrainLoop.run_iter = terminated_run_iter
if __name__ == '__main__':
    sys.exit(main(sys.argv[3:]))
"""


def training(folder):
    opt = changed(network_g__num_branches=2, train__stages=STAGES, val__val_freq=3, logger__save_checkpoint_freq=100)
    prepare(folder, opt)
    content = config(opt)
    for loader in content['val_dataloader']:
        loader['num_workers'] = 1
    write(folder, content)
    return folder


def weights(folder):
    return torch.load(folder / 'work' / 'iter_8.pth', weights_only=True)['state_dict']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = training(tmp_path_factory.mktemp('whole'))
    result = run(folder, 'mmtrain', 'config.json')
    assert result.returncode == 0, result.stderr[-3000:]
    return weights(folder)


@pytest.mark.slow
@pytest.mark.parametrize(('where', 'when'), [('iteration', 5), ('validation', 3)])
def test_sigterm_saves_a_checkpoint_and_the_run_goes_on_as_if_nothing_had_happened(tmp_path, where, when, whole):
    folder = training(tmp_path)
    (folder / 'stopped.py').write_text(SIGNALLED)
    result = run(folder, where, str(when), 'mmtrain', 'config.json', program=['stopped.py'])
    assert result.returncode == 143, result.stderr[-3000:]
    last = result.stderr.strip().splitlines()[-1]
    expected = rf'basicsr: terminated after iteration {when}; the last checkpoint is .*iter_{when}\.pth; resume with .*'
    assert re.fullmatch(expected, last)
    assert 'Traceback' not in result.stderr
    result = run(folder, 'mmtrain', 'config.json', '--resume')
    assert result.returncode == 0, result.stderr[-3000:]
    found = weights(folder)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], value) for key, value in whole.items())


def test_a_second_training_in_the_same_folder_is_refused(tmp_path):
    folder = training(tmp_path)
    root = str(folder / 'work')
    experiment.lock(root)
    try:
        result = run(folder, 'mmtrain', 'config.json')
    finally:
        experiment._locks.pop(root).close()
    assert result.returncode == 1
    assert re.search(
        r'work is being written by process \d+ on .*; wait for it, or choose another --work-dir', result.stderr
    )
    assert not list(folder.glob('work/*.pth'))
