"""What a run records of where it took place."""

import os
import subprocess

import pytest

import nmstep
from nmstep.experiments.environment import environment


def test_looking_up_the_commit_changes_nothing_in_the_source_tree(tmp_path, monkeypatch):
    """A look that refreshes git's index leaves its lock behind where the disk is full."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("there is no git here")
    package = tmp_path / "src" / "nmstep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    os.utime(package / "__init__.py", (1, 1))  # so that a look would like to refresh the index
    before = (tmp_path / ".git" / "index").read_bytes()
    monkeypatch.setattr(nmstep, "__file__", str(package / "__init__.py"))
    assert len(environment()["commit"]) == 40
    assert (tmp_path / ".git" / "index").read_bytes() == before
