import re
import socket

import pytest
import torch

from glue_tiny import ROWS, sentence, write_task, write_tsv
from nmstep.tasks.glue import sources
from nmstep.tasks.glue.files import read_glue

BY_TITLE = {
    "RTE": sources.RTE,
    "QNLI": sources.QNLI,
    "SST-2": sources.SST2,
    "CoLA": sources.COLA,
    "MRPC": sources.MRPC,
    "QQP": sources.QQP,
    "STS-B": sources.STSB,
    "MNLI": sources.MNLI_MATCHED,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("title", BY_TITLE)
def test_the_official_layout_is_read(title, tmp_path):
    place = write_task(tmp_path, title, train=6, dev=4)
    source = BY_TITLE[title]
    train, dev = read_glue(source, str(tmp_path))
    assert train.first == [sentence(i) for i in range(6)]
    assert dev.first == [sentence(i) for i in range(50, 54)]
    pair = title not in ("SST-2", "CoLA")
    assert train.second == ([sentence(i + 3) for i in range(6)] if pair else None)
    values = [0.0, 1.25, 5.0] if title == "STS-B" else list(range(len(ROWS[title][2])))
    expected = [values[i % len(values)] for i in range(6)]
    assert train.labels.tolist() == expected
    assert train.labels.dtype == (torch.float32 if title == "STS-B" else torch.int64)
    assert read_glue(source, str(place))[1].first == dev.first


def test_mnli_is_held_out_twice(tmp_path):
    write_task(tmp_path, "MNLI", train=3, dev=2)
    matched = read_glue(sources.MNLI_MATCHED, str(tmp_path))[1]
    mismatched = read_glue(sources.MNLI_MISMATCHED, str(tmp_path))[1]
    assert matched.first == [sentence(50), sentence(51)]
    assert mismatched.first == [sentence(100), sentence(101)]


def test_quotes_and_odd_line_breaks_are_text(tmp_path):
    write_task(tmp_path, "SST-2", dev=1)
    lines = ["sentence\tlabel", '" an open quote\t1', 'she said "" no\t0', "a\u2028b\x85c\x0bd\re\t1", ""]
    (tmp_path / "SST-2" / "train.tsv").write_bytes("\r\n".join(lines).encode())
    train, _ = read_glue(sources.SST2, str(tmp_path))
    assert train.first == ['" an open quote', 'she said "" no', "a\u2028b\x85c\x0bd\re"]
    assert train.labels.tolist() == [1, 0, 1]


def test_the_microsoft_corpus_is_read_with_a_warning(tmp_path):
    write_tsv(tmp_path / "msr_paraphrase_train.txt", "MRPC", 5)
    write_tsv(tmp_path / "msr_paraphrase_test.txt", "MRPC", 3, first=20)
    with pytest.warns(UserWarning, match=r"no train\.tsv with dev\.tsv.*scoring on msr_paraphrase_test\.txt"):
        train, test = read_glue(sources.MRPC, str(tmp_path))
    assert (len(train.first), test.first[0]) == (5, sentence(20))


def test_glue_s_own_division_of_mrpc_comes_first(tmp_path):
    place = write_task(tmp_path, "MRPC", train=4, dev=2)
    write_tsv(place / "msr_paraphrase_train.txt", "MRPC", 5)
    write_tsv(place / "msr_paraphrase_test.txt", "MRPC", 3)
    train, dev = read_glue(sources.MRPC, str(tmp_path))
    assert (len(train.first), len(dev.first)) == (4, 2)


def test_a_few_short_rows_of_qqp_are_left_out(tmp_path):
    write_task(tmp_path, "QQP", train=200)
    path = tmp_path / "QQP" / "train.tsv"
    path.write_bytes(path.read_bytes() + b"900\t7\t8\tthe cat\n")
    assert len(read_glue(sources.QQP, str(tmp_path))[0].first) == 200
    path.write_bytes(path.read_bytes() + b"x\n" * 2)
    with pytest.raises(ValueError, match=r"QQP/train\.tsv', line 202, has 4 columns, expected 6"):
        read_glue(sources.QQP, str(tmp_path))


def test_a_missing_file_is_named(tmp_path):
    write_tsv(tmp_path / "RTE" / "train.tsv", "RTE", 3)
    with pytest.raises(
        FileNotFoundError, match=r"RTE/dev\.tsv' is missing: give either a folder .*gluebench"
    ):
        read_glue(sources.RTE, str(tmp_path))


def test_an_empty_folder_is_described(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no STS-B in .*looked for train\.tsv with dev\.tsv.*found no"
    ):
        read_glue(sources.STSB, str(tmp_path))


def test_no_data_says_where_to_get_them(tmp_path):
    with pytest.raises(
        ValueError, match=r"give data=, either a folder that holds RTE/train\.tsv.*'nyu-mll/glue'"
    ):
        read_glue(sources.RTE, None)
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone.* for RTE .*hub name 'nyu-mll/glue'"):
        read_glue(sources.RTE, str(tmp_path / "gone"))
    write_tsv(tmp_path / "train.tsv", "RTE", 1)
    with pytest.raises(ValueError, match=r"train\.tsv' is a file: give as data= either a folder"):
        read_glue(sources.RTE, str(tmp_path / "train.tsv"))


@pytest.mark.parametrize(
    ("title", "text", "message"),
    [
        (
            "RTE",
            "index\tsentence1\tlabel\n",
            "line 1, has the columns index, sentence1, label: a RTE file has ",
        ),
        ("RTE", "", r"has the columns \(none\)"),
        ("RTE", ROWS["RTE"][0], "holds no examples: expected one a line, index, sentence1"),
        ("CoLA", "\n", "holds no examples: expected one a line, source, label"),
        ("RTE", ROWS["RTE"][0] + "\n0\ta\tb\tentailment\n1\ta\tb\n", "line 3, has 3 columns, expected 4"),
        (
            "RTE",
            ROWS["RTE"][0] + "\n0\ta\tb\tyes\n",
            "line 2, has the label 'yes', expected entailment or not_",
        ),
        ("CoLA", "gj04\t2\t\tthe cat\n", "line 1, has the label '2', expected 0 or 1"),
        (
            "STS-B",
            ROWS["STS-B"][0] + "\n0" + "\tx" * 8 + "\thigh\n",
            "line 2, has the score 'high', expected a",
        ),
        (
            "STS-B",
            ROWS["STS-B"][0] + "\n0" + "\tx" * 8 + "\t5.1\n",
            "line 2, has the score '5.1', expected a",
        ),
        (
            "STS-B",
            ROWS["STS-B"][0] + "\n0" + "\tx" * 8 + "\tnan\n",
            "line 2, has the score 'nan', expected a",
        ),
    ],
)
def test_a_malformed_file_is_named_with_its_line(title, text, message, tmp_path):
    place = write_task(tmp_path, title)
    (place / "dev.tsv").write_bytes(text.encode())
    with pytest.raises(ValueError, match=re.escape(str(place / "dev.tsv")) + ".*" + message):
        read_glue(BY_TITLE[title], str(tmp_path))


def test_other_encodings_are_refused(tmp_path):
    place = write_task(tmp_path, "RTE")
    (place / "dev.tsv").write_bytes("index\tsentence1\n0\tcaf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"dev\.tsv' is not UTF-8 text"):
        read_glue(sources.RTE, str(tmp_path))


def test_another_task_s_folder_is_refused(tmp_path):
    place = write_task(tmp_path, "SST-2")
    with pytest.raises(
        ValueError, match="has the columns sentence, label: a RTE file has sentence1, sentence2"
    ):
        read_glue(sources.RTE, str(place))
