import errno
import json
import os
import re
import resource
import stat

import pytest
import torch

from nmstep import files
from nmstep.experiments import checkpoint, run
from nmstep.experiments.metrics import MetricsLog, read_metrics


def state(step):
    return {"step": step, "weights": torch.full((1000,), float(step))}


@pytest.fixture
def three(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state(step), step=step)
    return tmp_path


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()


def test_the_newest_is_loaded_and_two_are_kept(three):
    assert checkpoint.load_latest(three)["step"] == 3
    assert {path.name for path in three.iterdir()} == {"checkpoint-2.pt", "checkpoint-3.pt", "latest.json"}


def test_none_yet(tmp_path):
    assert checkpoint.load_latest(tmp_path) is None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut", "is corrupted or cut short"),
        ("empty", "is corrupted or cut short (0 bytes"),
        ("flipped", "is corrupted or cut short"),
        ("missing", "cannot be read (No such file or directory)"),
    ],
)
def test_a_damaged_one_gives_way_to_the_one_before(how, said, three):
    damage(three / "checkpoint-3.pt", how)
    message = re.escape(said) + ".*going on from checkpoint-2.pt instead"
    with pytest.warns(UserWarning, match=message):
        assert checkpoint.load_latest(three)["step"] == 2


def test_two_damaged_ones_are_an_error_with_a_way_out(three):
    damage(three / "checkpoint-3.pt", "cut")
    damage(three / "checkpoint-2.pt", "flipped")
    with pytest.raises(
        ValueError, match=r"no checkpoint can be read: .*-3.pt'.*-2.pt'.*delete '.*latest.json'"
    ):
        checkpoint.load_latest(three)


@pytest.mark.parametrize("text", ["{", "[]", '{"file": 3}'])
def test_a_damaged_pointer_is_an_error(text, three):
    (three / "latest.json").write_text(text)
    with pytest.raises(ValueError, match=r"latest.json' is damaged"):
        checkpoint.load_latest(three)


def test_the_one_that_took_a_damaged_ones_place_is_kept(three):
    damage(three / "checkpoint-3.pt", "flipped")
    with pytest.warns(UserWarning, match="going on from checkpoint-2.pt"):
        checkpoint.load_latest(three)
    checkpoint.save(three, state(4), step=4)
    damage(three / "checkpoint-4.pt", "flipped")
    with pytest.warns(UserWarning, match="going on from checkpoint-2.pt"):
        assert checkpoint.load_latest(three)["step"] == 2


def test_a_pointer_never_leads_out_of_its_folder(three, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (three / "checkpoint-3.pt").rename(elsewhere / "checkpoint-3.pt")
    record = json.loads((three / "latest.json").read_text())
    record["file"] = str(elsewhere / "checkpoint-3.pt")
    (three / "latest.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="going on from checkpoint-2.pt"):
        assert checkpoint.load_latest(three)["step"] == 2


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tiny, tmp_path):
    run(tiny, tmp_path / "whole")
    run(tiny, tmp_path / "again")
    (tmp_path / "again" / "result.json").unlink()
    damage(tmp_path / "again" / "checkpoint-6.pt", "cut")
    with pytest.warns(UserWarning, match=r"checkpoint-6.pt' is corrupted"):
        run(tiny, tmp_path / "again", resume=True)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_keeps_the_earlier_checkpoint(three):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            OSError, match=r"cannot save: File too large; .*make room and resume: '.*checkpoint-4.pt'"
        ):
            checkpoint.save(three, state(4), step=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load_latest(three)["step"] == 3
    assert {path.name for path in three.iterdir()} == {"checkpoint-2.pt", "checkpoint-3.pt", "latest.json"}


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})

    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_metrics_file(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", size=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"cannot save: File too large; .*metrics.jsonl"):
            log.write([{"kind": "step", "step": step} for step in range(100)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.close()


def test_metrics_shorter_than_the_checkpoint_says_are_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"has 3 bytes, but had 10 when the checkpoint was written"):
        MetricsLog(tmp_path / "metrics.jsonl", size=10)


def test_metrics_that_changed_since_the_checkpoint_are_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write([{"kind": "step", "step": step} for step in (1, 2)])
    log.close()
    MetricsLog(path, size=log.size, sha256=log.sha256).close()
    damage(path, "flipped")
    with pytest.raises(ValueError, match=r"metrics.jsonl' are not those .*restore the file, or train again"):
        MetricsLog(path, size=log.size, sha256=log.sha256)


def test_a_metrics_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"cannot save: Is a directory.*metrics.jsonl"):
        MetricsLog(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("line", ["{", "3", "{}", "\xff", "[" * 100_000])
def test_a_damaged_line_of_metrics_is_named(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "eval"}\n' + line.encode("latin1"))
    with pytest.raises(ValueError, match=r"line 2 of '.*metrics.jsonl' is damaged"):
        read_metrics(path, "eval")


@pytest.mark.parametrize("text", ["3", "[" * 100_000])
def test_what_is_no_json_object_is_damaged(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x.json' is damaged"):
        files.read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("number", "way_out"),
    [(errno.EROFS, "allow writing there and resume"), (errno.ENOSPC, "make room and resume")],
)
def test_a_folder_that_cannot_be_written_to_is_told_as_such(number, way_out, tmp_path, monkeypatch):
    def refuse(_path, *_args, **_named):
        raise OSError(number, os.strerror(number))

    for name in ("touch", "unlink"):  # on a read-only disk nothing can be removed either
        monkeypatch.setattr(files.Path, name, refuse)
    with pytest.raises(
        OSError, match=f"cannot save: {os.strerror(number)}; what was .* intact, so {way_out}"
    ) as caught:
        files.write_json(tmp_path / "result.json", {})
    assert caught.value.errno == number
    assert caught.value.filename == str(tmp_path / "result.json")


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, files.Path.replace

    def note_sync(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def note_replace(path, target):
        done.append("renamed")
        return replace(path, target)

    monkeypatch.setattr(files.os, "fsync", note_sync)
    monkeypatch.setattr(files.Path, "replace", note_replace)
    files.write_json(tmp_path / "x.json", {})
    assert done == ["file", "renamed", "folder"]


def test_a_folder_that_cannot_be_synced_is_named(tmp_path, monkeypatch):
    real = os.fsync

    def fail_for_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", fail_for_folders)
    with pytest.raises(OSError, match=r"cannot save: No space left on device; .*x.json"):
        files.write_json(tmp_path / "x.json", {})


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("gotcha",))

    checkpoint.save(tmp_path, {"evil": Evil()}, step=1)
    with pytest.raises(ValueError, match=r"no checkpoint can be read: .*is no checkpoint of tensors"):
        checkpoint.load_latest(tmp_path)
    assert "gotcha" not in capsys.readouterr().out
