"""A folder appears whole, or not at all, and never over another."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nmstep.files import new_folder


def test_it_appears_at_the_end_with_what_was_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "new") as out:
        (out / "a").write_text("1")
        assert not (tmp_path / "deep" / "new").exists()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["new"]
    assert (tmp_path / "deep" / "new" / "a").read_text() == "1"


def test_nothing_stays_of_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "new") as out:
            (out / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_even_if_it_is_the_working_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with new_folder(Path()) as out:
        (out / "a").write_text("1")
    assert Path("a").read_text() == "1"
    assert [file.name for file in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(("kind", "match"), [("folder", "a folder that is not empty"), ("file", "is a file")])
def test_what_is_there_stays(tmp_path: Path, kind: str, match: str) -> None:
    place = tmp_path / "x"
    kept = place if kind == "file" else place / "mine"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("precious")
    with pytest.raises(FileExistsError, match=match), new_folder(place):
        pass
    assert kept.read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as out:
        (out / "secretive").touch(0o600)
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new/secretive", "plain")]
    assert modes[0] == modes[1]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), new_folder(tmp_path / "file" / "new"):
        pass
