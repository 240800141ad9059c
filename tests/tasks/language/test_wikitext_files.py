import socket

import pytest

from nmstep.tasks.language.plain_text import decode_part, read_plain
from nmstep.tasks.language.wikitext_files import WIKITEXT2, WIKITEXT103, read_wikitext

TEXTS = {
    "train": " = A = \n \n One two . \n",
    "valid": " \n = B = \n \n Three ü . \n \n",
    "test": " = C = \n \n Four @-@ five . \n",
}
LINES = {
    "train": [" = A = \n", " One two . \n"],
    "valid": [" = B = \n", " Three ü . \n"],
    "test": [" = C = \n", " Four @-@ five . \n"],
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(folder, ending="raw", splits=("train", "valid", "test")):
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        (folder / f"wiki.{split}.{ending}").write_text(TEXTS[split], encoding="utf-8", newline="")


def rows(split):
    """The rows of the hub's version: one a line, the blank ones empty."""
    return [line if line.strip() else "" for line in TEXTS[split].splitlines(keepends=True)]


def read(folder, split="test", source=WIKITEXT2, needs_train=True):
    return read_wikitext(source, str(folder), split=split, needs_train=needs_train)


@pytest.mark.parametrize("ending", ["raw", "tokens"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_publishers_files(tmp_path, ending, split):
    write(tmp_path, ending)
    assert read(tmp_path, split) == (LINES["train"], LINES[split])


def test_raw_comes_before_tokens_and_a_sub_folder_will_do(tmp_path):
    write(tmp_path / "wikitext-103-raw")
    write(tmp_path / "wikitext-2", "tokens", splits=("train", "test"))
    assert read(tmp_path, "valid", WIKITEXT103) == (LINES["train"], LINES["valid"])
    with pytest.raises(FileNotFoundError, match=r"'.*wikitext-2' has .* but no wiki.valid.tokens"):
        read(tmp_path, "valid")
    write(tmp_path / "wikitext-2", "raw", splits=("train", "valid"))
    assert read(tmp_path, "valid")[1] == LINES["valid"]


@pytest.mark.parametrize("folder", [".", "wikitext-2-raw-v1"])
def test_parquet_files(tmp_path, folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    for name, split in (("train", "train"), ("validation", "valid"), ("test", "test")):
        table = pyarrow.table({"text": rows(split)})
        parquet.write_table(table, place / f"{name}-00000-of-00001.parquet")
    assert read(tmp_path, "valid") == (LINES["train"], LINES["valid"])
    assert read(tmp_path, "test") == (LINES["train"], LINES["test"])


def test_a_folder_that_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = {"train": "train", "validation": "valid", "test": "test"}
    splits = {name: datasets.Dataset.from_dict({"text": rows(split)}) for name, split in names.items()}
    datasets.disable_progress_bars()
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved", "valid") == (LINES["train"], LINES["valid"])


def test_damaged_tables_are_named(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for split in ("train", "test"):
        parquet.write_table(pyarrow.table({"words": ["x"]}), tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"train.parquet' has the columns words: expected .* 'text'"):
        read(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"cannot read '.*train.parquet' as parquet"):
        read(tmp_path)
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "test.parquet").unlink()
    for split in ("train", "test"):
        (tmp_path / f"wikitext-{split}.arrow").write_bytes(b"no stream")
    with pytest.raises(
        ValueError, match=r"cannot read '.*wikitext-train.arrow' as arrow: .*; download it again"
    ):
        read(tmp_path)


def test_a_folder_without_training_text_says_where_to_get_it(tmp_path):
    write(tmp_path, splits=("valid", "test"))
    with pytest.raises(
        FileNotFoundError,
        match=r"the WikiText-2 folder '.*' has wiki.valid.raw, wiki.test.raw but no wiki.train.raw: expected "
        r"wiki.train.raw, wiki.valid.raw, wiki.test.raw side by side; .*'Salesforce/wikitext' .*https.* or "
        r"give other text to train on as train_text",
    ):
        read(tmp_path)
    assert read(tmp_path, needs_train=False) == ([], LINES["test"])
    (tmp_path / "wiki.test.raw").unlink()
    with pytest.raises(FileNotFoundError, match=r"but no wiki.test.raw: (?!.*train_text)"):
        read(tmp_path, needs_train=False)


def test_an_empty_split_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "wiki.test.raw").write_text(" \n \n")
    with pytest.raises(ValueError, match=r"'.*wiki.test.raw' holds no words: there is nothing to score"):
        read(tmp_path)


def test_other_places_say_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"WikiText-2 does not come with nmstep: give data=.*wiki.train.raw"):
        read_wikitext(WIKITEXT2, None, split="test", needs_train=True)
    with pytest.raises(FileNotFoundError, match=r"no folder '.*gone' for WikiText-2 \(given as data="):
        read(tmp_path / "gone")
    (tmp_path / "book.pdf").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no WikiText-2 in .*looked for wiki.*found book.pdf; give"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"book.pdf' is a file: WikiText-2 is a folder .* as train_text"):
        read(tmp_path / "book.pdf")


def test_the_hub_is_asked_for_its_own_name_only(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return {name: {"text": rows(split)} for name, split in (("train", "train"), ("validation", "valid"))}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("Salesforce/wikitext", "valid", WIKITEXT103) == (LINES["train"], LINES["valid"])
    assert asked == [("Salesforce/wikitext", "wikitext-103-raw-v1")]

    def offline(*_):
        raise OSError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConnectionError, match=r"wikitext-2-raw-v1\) .* no route; .*give a local folder"):
        read("Salesforce/wikitext")


def test_plain_text_of_a_folder_leaves_out_what_is_scored(tmp_path):
    write(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"two\r\n\r\nlines\r\n")
    (tmp_path / "a.md").write_text("not this")
    assert read_plain(str(tmp_path), "train_text") == ["two\n", "lines\n", *LINES["train"]]
    assert read_plain(str(tmp_path / "a.md"), "train_text") == ["not this\n"]


def test_plain_text_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no text at '.*none' \(given as train_text="):
        read_plain(str(tmp_path / "none"), "train_text")
    with pytest.raises(ValueError, match=r"train_text='.*' holds no text: looked for \*.txt"):
        read_plain(str(tmp_path), "train_text")
    (tmp_path / "latin.txt").write_bytes("abcü".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt' is not UTF-8 text: byte 3 cannot be read"):
        read_plain(str(tmp_path), "train_text")


def test_a_cut_character_is_left_out_and_other_damage_told():
    text = "aé漢b\r\nc"
    data = text.encode()
    for cut in range(len(data) + 1):
        parts = decode_part(data[:cut], None), decode_part(data[cut:], None)
        whole = text.replace("\r\n", "\n") if cut != data.index(b"\n") else text.replace("\r\n", "\n\n")
        assert "".join(parts) in (whole, whole.replace("é", ""), whole.replace("漢", ""))
    with pytest.raises(ValueError, match=r"the text at data='x' is not UTF-8: invalid .* after 1 bytes"):
        decode_part(b"a\xffb", "x")
