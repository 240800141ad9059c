import sys

import pytest

from nmstep.tasks.glue import parquet, sources
from nmstep.tasks.glue.files import read_glue

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(count, *, first="sentence1", second="sentence2", labels=(0, 1)):
    return pa.table(
        {
            first: [f'"{first} {i}' for i in range(count)],
            second: [f"{second} {i}" for i in range(count)],
            "label": [labels[i % len(labels)] for i in range(count)],
            "idx": list(range(count)),
        }
    )


def write(folder, train, dev, dev_split="validation"):
    folder.mkdir(parents=True)
    pq.write_table(train.slice(0, 2), folder / "train-00000-of-00002.parquet")
    pq.write_table(train.slice(2), folder / "train-00001-of-00002.parquet")
    pq.write_table(dev, folder / f"{dev_split}-00000-of-00001.parquet")


def test_a_hub_snapshot_on_disk_is_read(tmp_path):
    write(tmp_path / "rte", table(5), table(3))
    for place in (tmp_path, tmp_path / "rte"):
        train, dev = read_glue(sources.RTE, str(place))
        assert train.first == [f'"sentence1 {i}' for i in range(5)]
        assert dev.second == ["sentence2 0", "sentence2 1", "sentence2 2"]
        assert train.labels.tolist() == [0, 1, 0, 1, 0]


def test_mnli_and_sts_b_have_their_own_columns(tmp_path):
    pair = {"first": "premise", "second": "hypothesis"}
    write(tmp_path / "mnli", table(4, **pair), table(2, **pair), "validation_mismatched")
    train, dev = read_glue(sources.MNLI_MISMATCHED, str(tmp_path))
    assert (train.first[3], dev.second) == ('"premise 3', ["hypothesis 0", "hypothesis 1"])
    with pytest.raises(FileNotFoundError, match="validation_matched as parquet"):
        read_glue(sources.MNLI_MATCHED, str(tmp_path))
    write(tmp_path / "stsb", table(4, labels=(2.5, 5.0)), table(2, labels=(0.0,)))
    train, _ = read_glue(sources.STSB, str(tmp_path))
    assert train.labels.tolist() == [2.5, 5.0, 2.5, 5.0]


def test_a_data_set_saved_by_datasets_is_read(tmp_path):
    from nmstep.tasks.quiet import quiet_datasets

    splits = {"train": datasets.Dataset(table(5)), "validation": datasets.Dataset(table(3))}
    with quiet_datasets(datasets):
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "rte")
    train, dev = read_glue(sources.RTE, str(tmp_path))
    assert (len(train.first), len(dev.first)) == (5, 3)


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        (table(3, second="other"), "has the columns sentence1, other, label, idx: sentence2 missing of the"),
        (table(0), "validation-00000-of-00001.parquet holds no examples"),
        (table(3, labels=(1, -1)), "row 1, has the label -1, expected a whole number from 0 to 1"),
        (table(3, labels=(0, None)), "row 1, has the label None, expected a whole number from 0 to 1"),
        (table(3, labels=(0.5,)), "row 0, has the label 0.5, expected a whole number from 0 to 1"),
    ],
)
def test_malformed_tables_are_named(dev, message, tmp_path):
    write(tmp_path / "rte", table(4), dev)
    with pytest.raises(ValueError, match=message):
        read_glue(sources.RTE, str(tmp_path))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_damaged_files_are_named(kind, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.{kind}").write_bytes(b"not a table")
    with pytest.raises(ValueError, match=rf"cannot read '.*train\.{kind}' as {kind}: .*download it again"):
        read_glue(sources.RTE, str(tmp_path))


def test_the_hub_is_asked_for_the_task_s_configuration(monkeypatch):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return {"train": datasets.Dataset(table(4)), "validation": datasets.Dataset(table(2))}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train, dev = read_glue(sources.RTE, "nyu-mll/glue")
    assert asked == [("nyu-mll/glue", "rte")]
    assert (len(train.first), dev.first[1]) == (4, '"sentence1 1')


def test_an_unreachable_hub_says_how_to_work_offline(monkeypatch):
    def load_dataset(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ConnectionError, match=r"cannot fetch 'nyu-mll/glue' \(cola\).*no route.*local folder"
    ):
        read_glue(sources.COLA, "nyu-mll/glue")


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    write(tmp_path / "rte", table(4), table(2))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ImportError, match=r"pyarrow is needed for .* and is not installed: pip install 'nmstep\[tasks\]'"
    ):
        read_glue(sources.RTE, str(tmp_path))


def test_splits_are_not_mistaken_for_one_another(tmp_path):
    for name in ("validation_matched-0.parquet", "train_extra-0.parquet", "test-0.parquet"):
        (tmp_path / name).touch()
    assert parquet.split_files(tmp_path, "validation") == []
    assert parquet.split_files(tmp_path, "train") == []
    assert [file.name for file in parquet.split_files(tmp_path, "validation_matched")] == [
        "validation_matched-0.parquet"
    ]
