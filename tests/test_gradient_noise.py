"""The script that measures the noise of the gradient, on a tiny network."""

import gradient_noise
import pytest
import torch
from helpers.training import changed, prepare

from clit_basicsr import archs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    prepare(tmp_path, changed())
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    options = changed()['network_g']
    archs.save_checkpoint('tiny.pth', {'params': archs.build_network(dict(options)).state_dict(), 'network_g': options})
    return tmp_path


def test_more_queries_scatter_less(folder, capsys):
    gradient_noise.main(['options.yml', '--weights', 'tiny.pth', '--queries', '1', '16', '--steps', '12'])
    rows = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert len({len(row) for row in rows}) == 1
    few, many = ([float(cell) for cell in row] for row in rows[2:])
    assert (few[0], many[0]) == (1, 16)
    assert few[2] > 2 * many[2] > 0 and few[4] > 2 * many[4] > 0  # variances of encoder and decoder
