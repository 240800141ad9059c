"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import integrated
import nmstep
from nmstep.tasks.quiet import quiet_transformers

README = Path(__file__).parents[1] / "README.md"


class WithLoss(nn.Sequential):
    """A model that returns its loss, as transformers' do."""

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=super().forward(x).square().mean())


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_two_lines_in_your_own_loop() -> None:
    code = code_blocks()[0]
    assert "total_steps=10_000" in code
    model = WithLoss(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    names = {"model": model, "loader": [torch.randn(4, 8) for _ in range(6)]}
    exec(code.replace("10_000", "6"), names)
    assert float((model[0].weight != 0).float().mean()) == 0.5


def test_packing_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    code = code_blocks()[-1]
    model = two_layers()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(nmstep.nm_mask(layer.weight, "2:4"))
    names = {"model": model, "MyModel": two_layers, "nmstep": nmstep, "torch": torch}
    exec(code, names)
    assert names["model"] is not model
    for name, weight in model.state_dict().items():
        assert torch.equal(names["model"].state_dict()[name], weight)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def test_with_transformers_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    model = integrated.tiny_bert()
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, save_steps=4, report_to=[], use_cpu=True, disable_tqdm=True
    )
    names = {"model": model, "args": args, "train_dataset": integrated.examples(), "nmstep": nmstep}
    with quiet_transformers(transformers):
        exec(code_blocks()[1], {**names, "Trainer": transformers.Trainer})
    assert integrated.is_sparse(tmp_path / "checkpoint-4")


def test_with_lightning() -> None:
    lightning = pytest.importorskip("lightning")
    names = {"nmstep": nmstep, "lightning": lightning}
    exec(code_blocks()[2], names)
    assert names["trainer"].max_steps == 10_000
    assert any(type(c).__name__ == "SparsityCallback" for c in names["trainer"].callbacks)


def test_with_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = two_layers()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 8)))
    names = {
        "model": model,
        "optimizer": nmstep.AdamW(model.parameters()),
        "nmstep": nmstep,
        "loader": loader,
    }
    exec(code_blocks()[3], {**names, "accelerator": accelerate.Accelerator(cpu=True)})
    assert float((model[0].weight != 0).float().mean()) == 0.5


def test_every_command_of_the_readme_is_one() -> None:
    text = README.read_text(encoding="utf-8")
    targets = set(
        re.findall(r"^(\w+):", (README.parent / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for target in re.findall(r"^\$ make (\w+)", text, re.MULTILINE):
        assert target in targets
    commands = pytest.importorskip("nmstep.cli.commands")
    for command in re.findall(r"^\$ nmstep (\w+)", text, re.MULTILINE):
        assert command in Path(commands.__file__).read_text(encoding="utf-8").lower()
