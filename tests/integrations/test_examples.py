"""The examples run as they stand, offline, and end with what they promise."""

from __future__ import annotations

import gc
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import integrated
import nmstep
from nmstep.tasks.quiet import quiet_transformers

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example with these arguments and returns what it printed."""

    def go(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return go


def test_every_example_is_listed_and_none_else() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {file.name for file in EXAMPLES.glob("*.py")}
    assert files == {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert files == {f"{name}.py" for name in TESTED}


TESTED = ("glue_trainer", "causal_lm_accelerate", "lightning_digits", "lora_merge", "quantize_int8")


@pytest.mark.parametrize("name", TESTED)
def test_help_fits_80_columns(
    run: Run, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("transformers", "accelerate", "lightning", "peft", "torchao"):
        pytest.importorskip(package)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        run(f"{name}.py", "--help")
    assert end.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_glue_with_the_trainer(run: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    with quiet_transformers(transformers):
        out = run("glue_trainer.py", "--epochs", 2, "--batch-size", 32, "--out", tmp_path)
        assert "final: N:M, 13 weights checked" in out
        assert "phase sparse, masks from step" in out
        weights = load_file(tmp_path / "final" / "model.safetensors")
        assert integrated.most_kept(weights["bert.encoder.layer.1.intermediate.dense.weight"]) == 2
        assert nmstep.verify(tmp_path / "checkpoint-16").ok
        run("glue_trainer.py", "--epochs", 2, "--batch-size", 32, "--out", tmp_path, "--resume")
        again = load_file(tmp_path / "final" / "model.safetensors")
        assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_glue_from_a_folder_with_a_model_of_ones_own(run: Run, tmp_path: Path) -> None:
    import glue_tiny

    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    glue_tiny.write_task(tmp_path / "glue", "STS-B")
    settings = {"kind": "AutoModelForSequenceClassification", "num_labels": 1}
    model = glue_tiny.write_checkpoint(tmp_path / "model", **settings)
    with quiet_transformers(transformers):
        named = ("--task", "stsb", "--data", tmp_path / "glue", "--model", model, "--pattern", "1:4")
        assert "final: N:M" in run("glue_trainer.py", *named, "--epochs", 2, "--out", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "final" / "model.safetensors")
    assert integrated.most_kept(weights["bert.encoder.layer.0.output.dense.weight"]) == 1


def test_a_causal_language_model_with_accelerate(run: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 400)
    given = ("--data", tmp_path / "text.txt", "--batch-size", 8, "--context", 32, "--out", tmp_path / "out")
    with quiet_transformers(transformers):
        run("causal_lm_accelerate.py", *given, "--steps", 20, "--accumulate", 2, "--checkpoint-every", 10)
        out = run("causal_lm_accelerate.py", *given, "--steps", 20, "--resume")
    assert "step 20, phase sparse" in out
    assert "final: N:M" in out
    weights = load_file(tmp_path / "out" / "final" / "model.safetensors")
    assert integrated.most_kept(weights["transformer.h.0.mlp.c_fc.weight"].T) == 2
    lines = (tmp_path / "out" / "nm_trace.jsonl").read_text().splitlines()
    assert len(lines) == 20


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
def test_digits_with_lightning(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    out = run("lightning_digits.py", "--steps", 60, "--out", tmp_path)
    assert "step 60, phase sparse" in out
    assert "N:M True" in out
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    plan = nmstep.SparsityPlan.from_dict(torch.load(tmp_path / "best.ckpt", weights_only=True)["nm_sparsity"])
    assert plan.sparse
    for entry in plan.sparse:
        rows = best[entry.name].movedim(entry.dim or 0, -1).flatten(0, -2)
        assert integrated.most_kept(rows) == 2


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_an_adapter_merged_and_tuned(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    with quiet_transformers(transformers):
        out = run("lora_merge.py", "--steps", 20, "--rank", 2, "--out", tmp_path / "out")
    assert "out: N:M" in out
    assert "merged: 8 weights N:M" in out
    with pytest.raises(SystemExit):  # before it trains, not after
        run("lora_merge.py", "--steps", 20, "--rank", 2, "--out", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert integrated.most_kept(weights["transformer.h.1.attn.c_attn.weight"].T) == 2


@pytest.mark.parametrize("when", [[], ["--after"]], ids=["in training", "after it"])
def test_int8_in_training_and_after_it(run: Run, when: list[str]) -> None:
    pytest.importorskip("torchao")
    out = run("quantize_int8.py", "--steps", 120, *when)
    assert "N:M True" in out
    trained, rounded = (float(line.split("accuracy ")[1][:5]) for line in out.splitlines()[1:])
    assert trained > 0.9
    assert abs(rounded - trained) < 0.01
