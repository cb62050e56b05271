"""``basicsr prepare``: two processes never work on one output."""

import pytest
from helpers.pictures import ramp, save

from clit_basicsr import cli
from clit_basicsr.data.preparation import run


@pytest.mark.parametrize('output', ['x.lmdb', 'x'])
def test_the_output_is_locked_until_it_has_its_name(output, tmp_path, capsys, monkeypatch):
    """The verification, which takes minutes on large data sets, included."""
    (tmp_path / 'images').mkdir()
    save(ramp(40, 50), tmp_path / 'images' / 'a.png')
    command = ['prepare', str(tmp_path / 'images'), '-o', str(tmp_path / output), '--processes', '1', '-s', '1', '2']
    command = command[: -3 if output == 'x.lmdb' else None]
    verify, codes = run.inspection.check_complete, []

    def meanwhile(*arguments):
        codes.append(cli.main(command))
        verify(*arguments)

    monkeypatch.setattr(run.inspection, 'check_complete', meanwhile)
    assert cli.main(command) == 0
    assert codes and set(codes) == {1}
    assert 'another basicsr prepare is working on it; wait for it' in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(command) == 0 and 'already complete' in capsys.readouterr().out
