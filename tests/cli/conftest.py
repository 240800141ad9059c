import pytest

from nmstep.cli.main import main


@pytest.fixture
def nmstep(capsys, monkeypatch, tmp_path):
    """Runs a command line in an empty folder: returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def small():
    """Flags of a run of half a second."""
    return ["--exclude", "conv1", "--pattern", "1:16", "--steps", "6", "--batch-size", "8", "--threads", "1"]
