"""Kills at random moments: whatever a run has saved is what an uninterrupted one saves, to the bit.

CLIT_KILLS sets how many: one here (other tests kill at chosen moments), 40 for the figure in a release note.
"""

import os
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from helpers.training import prepare, train

KILLS = int(os.environ.get('CLIT_KILLS', '1'))


def saved(folder):
    """Iteration -> weights of every checkpoint that has its final name."""
    models = folder / 'experiments' / 'tiny' / 'models'
    return {path.stem: torch.load(path, weights_only=True) for path in models.glob('net_g_*.pth')}


def compare(folder, expected):
    found = saved(folder)
    for name, content in found.items():
        for key in ('params', 'params_ema'):
            for weight, value in content[key].items():
                assert torch.equal(value, expected[name][key][weight]), (name, key, weight)
    return len(found)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_saves_what_an_uninterrupted_one_does(tmp_path):
    rng = random.Random(2)
    whole = prepare(tmp_path / 'whole')
    began = time.monotonic()
    train(whole)
    duration = time.monotonic() - began
    expected = saved(whole)
    folder, kills, compared = prepare(tmp_path / 'killed'), 0, 0
    command = [sys.executable, '-m', 'clit_basicsr', 'train', '-opt', 'options.yml', '--auto_resume']
    while kills < KILLS:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            output, _ = process.communicate(timeout=rng.uniform(0.3, 1) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            kills += 1
        assert 'Traceback' not in output, output[-2000:]
        compared += compare(folder, expected)
        if process.returncode == 0:  # it was done before the kill: the next one begins anew
            shutil.rmtree(folder / 'experiments')
    train(folder, '--auto_resume')
    compared += compare(folder, expected)
    assert compared >= 7  # those of the last run, which is whole
    assert not list(folder.rglob('*.tmp*'))
    assert [path.name for path in (folder / 'experiments').glob('[!.]*')] == ['tiny']
    print(f'{kills} kills, {compared} checkpoints compared')
