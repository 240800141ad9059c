import io
import sys

import pytest
import torch

import nmstep.tasks
from nmstep.tasks.cifar import parquet

pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pil = pytest.importorskip("PIL.Image")


def table(count, *, size=32, image="img", label="label", first_label=0):
    def png(index):
        file = io.BytesIO()
        pil.new("RGB", (size, size), (index, 10, 200)).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    labels = [first_label + index % 10 for index in range(count)]
    return pa.table({image: [png(index) for index in range(count)], label: labels})


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    yield
    assert list(cache.iterdir()) == []


def test_a_hub_snapshot_on_disk_is_read(tmp_path):
    folder = tmp_path / "plain_text"
    folder.mkdir()
    pq.write_table(table(20), folder / "train-00000-of-00002.parquet")
    pq.write_table(table(10), folder / "train-00001-of-00002.parquet")
    pq.write_table(table(10), folder / "test-00000-of-00001.parquet")
    task = nmstep.tasks.load("cifar10", data=str(tmp_path), augment=False)
    batch = task.batch(0, seed=0, batch_size=30)
    assert batch.targets.bincount().tolist() == [3] * 10
    red = (batch.inputs[:, 0, 0, 0] * 0.2470 + 0.4914) * 255
    assert sorted(red.round().int().tolist()) == sorted([*range(20), *range(10)])
    torch.testing.assert_close((batch.inputs[:, 2] * 0.2616 + 0.4465) * 255, torch.full((30, 32, 32), 200.0))
    assert set(task.evaluate(task.model())) == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"label": "answer"},
            "has the columns img, answer: expected images in img or image and labels in label",
        ),
        ({"size": 28}, "has an image of 28 × 28 pixels, expected 32 × 32"),
        ({"first_label": 5}, "has no labels, or one outside 0 to 9"),
    ],
)
def test_malformed_tables_are_named(tmp_path, options, message):
    for split in ("train", "test"):
        pq.write_table(table(10, **options), tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=message):
        nmstep.tasks.load("cifar10", data=str(tmp_path))


def test_a_damaged_file_is_named(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"cannot read .*train.parquet as parquet"):
        nmstep.tasks.load("cifar10", data=str(tmp_path))


def test_the_hub_name_goes_to_load_dataset(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name):
        asked.append(name)
        features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
        made = datasets.Dataset(table(10)).cast(features)
        return {"train": made, "test": made}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = nmstep.tasks.load("cifar10", data="uoft-cs/cifar10")
    assert asked == ["uoft-cs/cifar10"]
    assert sorted(task.batch(0, seed=0, batch_size=10).targets.tolist()) == list(range(10))


def test_an_unreachable_hub_says_what_else_to_give(monkeypatch):
    import datasets

    def load_dataset(name):
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ConnectionError, match=r"cannot fetch 'uoft-cs/cifar100' .*no route.*give a local folder"
    ):
        nmstep.tasks.load("cifar100", data="uoft-cs/cifar100")


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"datasets is needed .* pip install 'nmstep\[tasks\]'"):
        parquet.read_hub("uoft-cs/cifar10", ("label",), 10)
