"""ONNX exports: onnxruntime agrees with torch, and the zeros are where the file says."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nmstep
from nmstep.deploy.onnx_run import apart
from nmstep.deploy.tensorrt import weights_for_tensorrt

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def masked(model: nn.Module, pattern: str = "2:4") -> nn.Module:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        plan = nmstep.plan(model, pattern)
        for entry, weight in zip(plan.sparse, plan.resolve(model).values(), strict=True):
            weight.mul_(nmstep.nm_mask(weight, pattern, dim=entry.dim or 0))
    return model


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def outputs(path: Path, **feeds: Tensor) -> list[np.ndarray]:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feeds.items()})


def is_sparse(array: np.ndarray, n: int, m: int, dim: int) -> bool:
    lines = np.moveaxis(array, dim, -1)
    return bool((np.count_nonzero(lines.reshape(*lines.shape[:-1], -1, m), axis=-1) <= n).all())


def test_a_model_whose_weights_are_turned(tmp_path: Path) -> None:
    model = masked(small()).train()
    path = tmp_path / "m.onnx"
    exported = nmstep.export_onnx(model, torch.randn(1, 5, 8), path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert model.training
    assert model[0].weight.requires_grad  # type: ignore[union-attr, index]
    found = arrays(path)
    assert np.array_equal(found["0.weight.T"], model[0].weight.detach().T.numpy())  # type: ignore[index]
    assert is_sparse(found["0.weight.T"], 2, 4, 0)
    assert exported.difference < 1e-6
    assert exported.size == path.stat().st_size
    assert exported.inputs == {"input": ("batch", 5, 8)}
    entries = {
        entry["name"]: (entry["shape"], entry["dim"], entry["pattern"])
        for item in onnx.load(path).metadata_props
        for entry in json.loads(item.value)["entries"]
        if item.key == "nm_sparsity" and entry["pattern"]
    }
    assert entries == {"0.weight.T": ([8, 16], 0, "2:4"), "2.weight.T": ([16, 4], 0, "2:4")}
    assert {(t.name, t.dim) for t in nmstep.verify(path).checked} == {("0.weight.T", 0), ("2.weight.T", 0)}
    for batch in (1, 2, 7):
        x = torch.randn(batch, 5, 8)
        with torch.no_grad():
            np.testing.assert_allclose(outputs(path, input=x)[0], model.eval()(x), atol=1e-5)


def test_weights_beside_the_graph_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.onnx.ONNXProgram.save
    monkeypatch.setattr(
        torch.onnx.ONNXProgram, "save", lambda self, path: save(self, path, external_data=True)
    )
    model, path = masked(nn.Linear(64, 64)), tmp_path / "m.onnx"
    exported = nmstep.export_onnx(model, torch.randn(2, 64), path)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["m.onnx", "m.onnx.data"]
    assert exported.size == sum(file.stat().st_size for file in files)
    assert nmstep.verify(path).ok
    x = torch.randn(3, 64)
    with torch.no_grad():
        np.testing.assert_allclose(outputs(path, input=x)[0], model(x), atol=1e-5)


class Net(nn.Module):
    """A convolution, a norm that is folded into it, and an input that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Linear(32, 4)

    def forward(self, x: Tensor, mask: Tensor, flip: bool = False) -> dict[str, Tensor]:
        h = self.norm(self.conv(x)).relu().flatten(1) * mask
        return {"logits": self.head(h.flip(1) if flip else h), "h": h}


def test_convolutions_names_and_several_outputs(tmp_path: Path) -> None:
    model = masked(Net()).eval()
    nn.init.uniform_(model.norm.weight)  # type: ignore[arg-type, union-attr]
    x, mask = torch.randn(2, 4, 4, 4), torch.rand(2, 32)
    path = tmp_path / "m.onnx"
    exported = nmstep.export_onnx(model, (x,), path, kwargs={"mask": mask, "flip": True})
    assert [item.name for item in onnx.load(path).graph.output] == ["logits", "h"]
    assert set(exported.inputs) == {"x", "mask"}
    found = arrays(path)
    assert is_sparse(found["conv.weight"], 2, 4, 1)
    assert is_sparse(found["head.weight"], 2, 4, 1)
    assert nmstep.verify(path, "2:4").ok
    with torch.no_grad():
        expected = model(x, mask, flip=True)
    np.testing.assert_allclose(outputs(path, x=x, mask=mask)[0], expected["logits"], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_packed_model_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = masked(small().to(dtype), "1:4")
    x, path = torch.randn(3, 8, dtype=dtype), tmp_path / "m.onnx"
    exported = nmstep.export_onnx(nmstep.pack(model), x, path)
    found = arrays(path)["0.weight"]
    assert found.dtype == (np.float32 if dtype == torch.bfloat16 else np.float16)
    assert np.array_equal(found, model[0].weight.detach().to(torch.float32).numpy())  # type: ignore[index]
    assert {str(tensor.pattern) for tensor in exported.report.checked} == {"1:4"}
    assert model[0].weight.dtype == dtype  # type: ignore[union-attr, index]
    assert exported.difference < (1e-5 if dtype == torch.bfloat16 else 1e-2)


class Scaled(nn.Module):
    """A weight that is computed with before it is used, which the exporter would do beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (3 * self.inner.weight).T


def test_a_weight_that_the_exporter_would_change_stays_as_it_is(tmp_path: Path) -> None:
    model = masked(Scaled())
    nmstep.export_onnx(model, torch.randn(3, 5, 8), tmp_path / "m.onnx")
    found = arrays(tmp_path / "m.onnx")
    assert np.array_equal(found["inner.weight"], model.inner.weight.detach().numpy())  # type: ignore[union-attr]
    assert [tensor.name for tensor in nmstep.verify(tmp_path / "m.onnx").checked] == ["inner.weight"]


class Unused(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 4)
        self.spare = nn.Linear(8, 4)


def test_a_sparse_weight_that_is_not_in_the_graph(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'spare\.weight' is in no part of the graph.*out of the plan"):
        nmstep.export_onnx(masked(Unused()), torch.randn(3, 8), tmp_path / "m.onnx")


def test_a_decoder_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = masked(transformers.GPT2LMHeadModel(config)).eval()
    ids, path = torch.randint(48, (2, 6)), tmp_path / "m.onnx"
    exported = nmstep.export_onnx(
        model, (), path, kwargs={"input_ids": ids, "attention_mask": ids.clamp(max=1)}
    )
    assert len(exported.report.checked) == 4
    assert model.config.use_cache
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 3)
    ids = torch.randint(48, (3, 6))
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    (logits,) = outputs(path, input_ids=ids, attention_mask=mask)
    np.testing.assert_allclose(logits[:, :4], expected[:, :4], atol=1e-5)


def test_what_a_tokenizer_returns(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = masked(transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes)).eval())
    batch = transformers.BatchEncoding(
        {  # in another order than the forward's
            "input_ids": torch.randint(50, (2, 7)),
            "token_type_ids": torch.randint(2, (2, 7)),
            "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
        }
    )
    exported = nmstep.export_onnx(model, batch, tmp_path / "m.onnx")
    assert exported.inputs == dict.fromkeys(batch, ("batch", 7))
    longer = {name: torch.cat([t, t.flip(0)[:1]]) for name, t in batch.items()}
    with torch.no_grad():
        expected = model(**longer).last_hidden_state
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx", **longer)[0], expected.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="return_tensors='pt'"):
        nmstep.export_onnx(model, {name: t.tolist() for name, t in batch.items()}, tmp_path / "n.onnx")


def test_hooks_are_part_of_what_is_exported(tmp_path: Path) -> None:
    model = masked(small())
    model[0].register_forward_hook(lambda _, inputs, output: output + inputs[0].sum(-1, keepdim=True))  # type: ignore[index]
    x = torch.randn(3, 8)
    nmstep.export_onnx(model, x, tmp_path / "m.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(outputs(tmp_path / "m.onnx", input=x)[0], model(x), atol=1e-5)


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else x[:, :4]


class OneBatch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(3, 8))


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand_like(x)[:, :4]


def test_what_the_exporter_cannot_do_is_told_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ValueError, match=r"this Branching cannot be exported to ONNX: .*data-dependent"):
        nmstep.export_onnx(masked(Branching(8, 4)), torch.ones(3, 8), path)
    with pytest.raises(ValueError, match=r"fixed the batch of 'x' at 3.*dynamic_batch=False"):
        nmstep.export_onnx(masked(OneBatch(8, 4)), torch.ones(3, 8), path)
    assert list(tmp_path.iterdir()) == []
    exported = nmstep.export_onnx(masked(OneBatch(8, 4)), torch.ones(3, 8), path, dynamic_batch=False)
    assert exported.inputs == {"x": (3, 8)}


def test_outputs_that_differ_are_an_error_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("precious")
    with pytest.raises(ValueError, match="differ from torch's by"):
        nmstep.export_onnx(masked(Noisy(8, 4)), torch.randn(3, 8), path)
    with pytest.raises(ValueError, match="tolerance is 1e-12"):
        nmstep.export_onnx(masked(small()), torch.randn(3, 8), path, tolerance=1e-12)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("m.onnx", "precious")]


def test_what_is_not_sparse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(nmstep.NotSparseError, match=r"'0\.weight'"):
        nmstep.export_onnx(small(), torch.randn(3, 8), tmp_path / "m.onnx", pattern="2:4")
    assert list(tmp_path.iterdir()) == []


class Starred(nn.Linear):
    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(inputs[0])


@pytest.mark.parametrize(
    ("make", "inputs", "kwargs", "match"),
    [
        (small, (torch.ones(2, 8), torch.ones(2)), None, "this Sequential does not take these inputs"),
        (small, (torch.ones(2, 8),), {"more": 1}, "does not take these inputs: .*more"),
        (lambda: Starred(8, 4), (torch.ones(2, 8),), None, r"as \*args or \*\*kwargs"),
        (small, ([torch.ones(2, 8)],), None, "not tensors in lists"),
        (small, (3,), None, "at least one tensor"),
        (small, {"input": [[1, 2], [3, 4]]}, None, r"at least one tensor .* with return_tensors='pt'"),
        (small, {"x": torch.ones(2, 8)}, None, "does not take these inputs: .*input"),
        (small, {"input": torch.ones(2, 8)}, {"input": 1}, "'input' is in both inputs and kwargs"),
    ],
)
def test_inputs_that_do_not_fit(
    tmp_path: Path, make: Any, inputs: Any, kwargs: dict[str, Any] | None, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        nmstep.export_onnx(masked(make()), inputs, tmp_path / "m.onnx", kwargs=kwargs)


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to an \.onnx file, not to 'm\.pt'"):
        nmstep.export_onnx(masked(small()), torch.ones(2, 8), "m.pt")
    with pytest.raises(OSError, match="cannot save"):
        nmstep.export_onnx(masked(small()), torch.ones(2, 8), tmp_path / "none" / "m.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is needed .*nmstep\[onnx\]"):
        nmstep.export_onnx(masked(small()), torch.ones(2, 8), tmp_path / "m.onnx")


def test_how_far_outputs_are_apart() -> None:
    nan, inf = float("nan"), float("inf")
    assert apart(torch.tensor([nan, -inf, 2.0]), torch.tensor([nan, -inf, 2.0])) == 0
    assert apart(torch.tensor([nan, 2.0]), torch.tensor([1.0, 2.0])) == inf
    assert apart(torch.tensor([1.0, 3.0]), torch.tensor([inf, 4.0])) == inf
    assert apart(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5
    assert apart(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0


def test_what_tensorrt_takes() -> None:
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)))
    plan = nmstep.plan(model, "2:4", rules={"1": "4:8", "2": "1:32"})
    assert weights_for_tensorrt(plan) == ("0.weight", "2.weight")
