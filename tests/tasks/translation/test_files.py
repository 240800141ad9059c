import socket
import sys

import pytest

from nmstep.tasks.translation import parquet
from nmstep.tasks.translation.files import read_parallel


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(folder, stem, count=3, *, source="de", target="en", targets=None):
    for language, lines in ((source, count), (target, count if targets is None else targets)):
        text = "".join(f"{stem} {language} {line}\n" for line in range(lines))
        (folder / f"{stem}.{language}").write_text(text, encoding="utf-8")


def read(folder, **options):
    return read_parallel(str(folder), **({"source": "de", "target": "en"} | options))


def test_lines_are_paired_by_number(tmp_path):
    write(tmp_path, "train", 2)
    write(tmp_path, "test", 1)
    corpus = read(tmp_path)
    assert corpus.train.source == ["train de 0", "train de 1"]
    assert corpus.train.target == ["train en 0", "train en 1"]
    assert (corpus.test.source, corpus.test.target) == (["test de 0"], ["test en 0"])
    back = read(tmp_path, source="en", target="de")
    assert (back.test.source, back.test.target) == (["test en 0"], ["test de 0"])


@pytest.mark.parametrize(
    ("stems", "chosen"),
    [
        (["val", "test_2016_flickr", "test_2017_flickr", "test_2017_mscoco"], "test_2016_flickr"),  # Multi30k
        (["newstest2013", "newstest2014"], "newstest2014"),  # WMT
        (["valid", "test", "test_b"], "test"),
        (["newstest2013", "dev", "valid"], "newstest2013"),
        (["other", "dev", "val"], "val"),
        (["dev.tok"], "dev.tok"),
    ],
)
def test_the_held_out_set_is_the_one_that_one_expects(tmp_path, stems, chosen):
    for stem in ["train", *stems]:
        write(tmp_path, stem)
    assert read(tmp_path).test_name == chosen
    for stem in stems:
        asked = read(tmp_path, test=stem)
        assert asked.test_name == stem
        assert asked.test.source[0] == f"{stem} de 0"


def test_several_training_files_are_joined_in_order_of_name(tmp_path):
    write(tmp_path, "train.news", 1)
    write(tmp_path, "train.europarl", 2)
    write(tmp_path, "test")
    corpus = read(tmp_path)
    assert corpus.train.source == ["train.europarl de 0", "train.europarl de 1", "train.news de 0"]
    assert corpus.train.target == ["train.europarl en 0", "train.europarl en 1", "train.news en 0"]


def test_only_line_feeds_end_a_line(tmp_path):
    write(tmp_path, "test", 1)
    (tmp_path / "train.de").write_bytes("\ufeffa\u2028b\x85c\r\n\nd".encode())
    (tmp_path / "train.en").write_bytes(b"x\ny\rz\n\n")
    corpus = read(tmp_path)
    assert corpus.train.source == ["a\u2028b\x85c", "", "d"]
    assert corpus.train.target == ["x", "y\rz", ""]


def broken(tmp_path, how):
    if how != "no training":
        write(tmp_path, "train", 3, targets=2 if how == "unequal" else None)
    if how == "one language":
        (tmp_path / "train.en").unlink()
    if how == "no UTF-8":
        (tmp_path / "train.en").write_bytes(b"eins\nzwei\n" + "drüben\n".encode("latin-1"))
    if how != "no held-out set":
        write(tmp_path, "dev", 0 if how == "empty" else 2)
    return tmp_path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "unequal",
            r"train.de' with train.en is not parallel: 3 lines and 2 lines, expected line k .* same release",
        ),
        ("empty", r"dev.de' with dev.en is empty: expected one sentence a line; unpack"),
        (
            "one language",
            r"train.en' is missing, while train.de is there: .* add it, or choose other languages",
        ),
        ("no UTF-8", r"line 3 of '.*train.en' is not UTF-8: convert"),
        (
            "no training",
            r"no training text in .*: expected train.de, found dev; name the training files train",
        ),
        (
            "no held-out set",
            r"no held-out set in .* begins with test, newstest, .* found none; name one with test=",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path, how, message):
    with pytest.raises(ValueError, match=message):
        read(broken(tmp_path, how))


def test_an_unknown_held_out_set_lists_those_that_are_there(tmp_path):
    for stem in ("train", "val", "test_2016"):
        write(tmp_path, stem)
    with pytest.raises(ValueError, match=r"no held-out set 'test' in .* that is there: test_2016, val$"):
        read(tmp_path, test="test")


def test_places_without_parallel_text_say_what_to_give(tmp_path):
    with pytest.raises(
        ValueError, match=r"does not come with nmstep: give data=.*train.de and train.en.*wmt/wmt17"
    ):
        read_parallel(None, source="de", target="en")
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*nowhere.* give a folder with train.fr and train.en"
    ):
        read(tmp_path / "nowhere", source="fr")
    (tmp_path / "train.de.gz").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"looked for train.de with train.en, .* found train.de.gz; unpack archives"
    ):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"train.de.gz' is a file: unpack it"):
        read(tmp_path / "train.de.gz")
    with pytest.raises(ValueError, match="source and target are both 'de': give two languages"):
        read(tmp_path, target="de")


def write_parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    path.parent.mkdir(exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), path)


def pairs(stem, count):
    return [{"de": f"{stem} de {line}", "en": f"{stem} en {line}"} for line in range(count)]


@pytest.mark.parametrize("nested", [True, False])
def test_parquet_folders_are_read(tmp_path, nested, monkeypatch):
    def rows(stem, count):
        return [{"translation": pair} if nested else pair for pair in pairs(stem, count)]

    cache = tmp_path / "cache"
    cache.mkdir()
    write_parquet(tmp_path / "de-en" / "train-00000-of-00002.parquet", rows("a", 2))
    write_parquet(tmp_path / "de-en" / "train-00001-of-00002.parquet", rows("b", 1))
    write_parquet(tmp_path / "de-en" / "validation-00000-of-00001.parquet", rows("v", 2))
    write_parquet(tmp_path / "de-en" / "test-00000-of-00001.parquet", [*rows("t", 1), *rows("t", 1)])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    corpus = read(tmp_path)
    assert corpus.train.source == ["a de 0", "a de 1", "b de 0"]
    assert corpus.train.target == ["a en 0", "a en 1", "b en 0"]
    assert (corpus.test_name, corpus.test.target) == ("test", ["t en 0", "t en 0"])
    assert read(tmp_path, test="validation").test.source == ["v de 0", "v de 1"]
    assert list(cache.iterdir()) == []


def test_a_missing_language_in_parquet_is_named(tmp_path):
    for stem in ("train", "test"):
        write_parquet(tmp_path / f"{stem}.parquet", [{"translation": pair} for pair in pairs(stem, 1)])
    with pytest.raises(
        ValueError, match=r"columns translation with the languages de, en: expected columns fr and en"
    ):
        read(tmp_path, source="fr")
    for stem in ("train", "test"):
        write_parquet(tmp_path / f"{stem}.parquet", pairs(stem, 1))
    with pytest.raises(
        ValueError, match=r"train.parquet has the columns de, en: expected columns fr and en, or a"
    ):
        read(tmp_path, source="fr")


def test_a_damaged_parquet_file_is_named(tmp_path):
    pytest.importorskip("datasets")
    for stem in ("train", "test"):
        (tmp_path / f"{stem}.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"cannot read .*train.parquet as parquet: .*; download it again"):
        read(tmp_path)


@pytest.mark.parametrize(("source", "target", "config"), [("de", "en", "de-en"), ("en", "de", "de-en")])
def test_the_hub_name_goes_to_load_dataset(monkeypatch, source, target, config):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*names):
        asked.append(names)
        splits = {"train": 3, "validation": 2, "test": 1}
        return {
            split: datasets.Dataset.from_list([{"translation": pair} for pair in pairs(split, count)])
            for split, count in splits.items()
        }

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = read_parallel("wmt/wmt17", source=source, target=target)
    assert asked == [("wmt/wmt17", config)]
    assert len(corpus.train) == 3
    assert (corpus.test.source, corpus.test.target) == ([f"test {source} 0"], [f"test {target} 0"])
    assert (
        read_parallel("wmt/wmt17", source=source, target=target, test="validation").test_name == "validation"
    )


def test_an_unreachable_hub_says_what_else_to_give(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*names):
        raise ConnectionError(f"no route to {names}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ConnectionError, match=r"cannot fetch 'wmt/wmt17' \(de-en\) .*no route.*give a local folder"
    ):
        read_parallel("wmt/wmt17", source="de", target="en")


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"datasets is needed .* pip install 'nmstep\[tasks\]'"):
        parquet.read_hub("wmt/wmt17", "de", "en")
