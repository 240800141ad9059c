"""What commands make of dense runs, and of folders of transformers that have no plan."""

import pytest
import torch
from safetensors import safe_open

import nmstep as nm
from nmstep.bench import load_subject

SAID = (
    "the run in 'd' is dense, as its recipe says: there is nothing to {}. Give one of another recipe, or train "
    "one: nmstep train --recipe step"
)


def test_every_command_says_the_same_of_a_dense_run(nmstep, small):
    assert nmstep("train", "--recipe", "dense", "--out", "d", *small)[0] == 0
    for command, doing in (
        (("verify", "d"), "verify"),
        (("verify", "d/model.safetensors"), "verify"),
        (("pack", "d"), "pack"),
        (("bench", "d"), "measure"),
        (("export", "d", "--out", "e"), "export"),
        (("export", "d", "--out", "e", "--format", "onnx"), "export"),
    ):
        status, _, err = nmstep(*command)
        assert (status, " ".join(err.split())) == (2, f"Error: {SAID.format(doing)}"), command
    status, out, _ = nmstep("verify", "d", "--pattern", "1:16")  # which is asked for, and counted
    assert status == 1
    assert "NOT N:M" in out


def saved(folder, pattern="2:4"):
    """Writes a tiny GPT-2, whose output matrix is its embedding, with these zeros and no plan."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=64, **ids)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for weight in nm.plan(model, pattern).resolve(model).values() if pattern else ():
            weight.mul_(nm.nm_mask(weight, pattern, dim=0))
    model.save_pretrained(folder)
    return model


def test_a_folder_of_transformers_is_packed_by_its_zeros(nmstep, tmp_path):
    saved(tmp_path / "m")
    status, out, _ = nmstep("pack", "m")
    assert status == 0
    assert "No plan in 'm'; its zeros show 4 weights 2:4, and 2 matrices dense" in out
    assert max(map(len, out.splitlines())) <= 80
    subject = load_subject(tmp_path / "m" / "packed.safetensors")
    with safe_open(tmp_path / "m" / "packed.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a mapping
    assert subject.packed.lm_head.weight is subject.packed.transformer.wte.weight
    whole = load_subject(tmp_path / "m").packed.state_dict()
    found = subject.packed.state_dict()
    assert list(found) == list(whole)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_folder_with_one_pattern_for_all_is_held_to_it(nmstep, tmp_path):
    saved(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace("{", '{"nm_sparsity": "1:4",', 1))
    status, _, err = nmstep("pack", "m")
    assert status == 2
    assert "'transformer.h.0.attn.c_attn.weight' (1:4 along dimension 0)" in " ".join(err.split())


def test_a_folder_of_transformers_is_exported_by_its_zeros(nmstep, tmp_path):
    saved(tmp_path / "m")
    status, out, _ = nmstep("export", "m", "--out", "e")
    assert status == 0
    assert "its zeros show 4 weights 2:4" in out
    assert nmstep("verify", "e")[0] == 0
    status, out, _ = nmstep("pack", "e")  # which has a plan now
    assert (status, "No plan" in out) == (0, False)


def test_a_dense_folder_of_transformers(nmstep, tmp_path):
    saved(tmp_path / "m", None)
    status, _, err = nmstep("pack", "m")
    assert status == 2
    assert "the model in 'm' is dense, there is nothing to pack" in " ".join(err.split())
