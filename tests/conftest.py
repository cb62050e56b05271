"""Before any test imports the host; and what the tests of the commands on pictures share."""

import pytest

import clit_basicsr  # noqa: F401  makes `import basicsr` work


@pytest.fixture(scope='session')
def net():
    """The small network of experiments/tiny, in evaluation mode."""
    from tiny_network import build

    return build()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a trained experiment."""
    from tiny_network import make_experiment

    monkeypatch.chdir(tmp_path)
    make_experiment()
    return tmp_path
