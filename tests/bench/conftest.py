import json

import pytest
import torch

import nmstep


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def small():
    """Sizes of a model that loads in no time."""
    return {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}


@pytest.fixture
def gpt2(transformers, small):
    torch.manual_seed(0)
    config = transformers.GPT2Config(**small, n_positions=64, bos_token_id=None, eos_token_id=None)
    return transformers.GPT2LMHeadModel(config)


@pytest.fixture
def bert(transformers, small):
    torch.manual_seed(0)
    config = transformers.BertConfig(**small, intermediate_size=64, max_position_embeddings=40)
    return transformers.BertForSequenceClassification(config)


@pytest.fixture
def saved(tmp_path):
    """Masks some of a model's weights, and writes its folder as transformers does."""

    def save(model, include, *, pattern="2:4", promise=False):
        plan = nmstep.plan(model, pattern, include=include)
        for entry, weight in zip(plan.sparse, plan.resolve(model).values(), strict=True):
            weight.data.mul_(nmstep.nm_mask(weight.data, pattern, dim=entry.dim))
        folder = tmp_path / "saved"
        model.save_pretrained(folder)
        if promise:
            config = json.loads((folder / "config.json").read_text())
            config["nm_sparsity"] = plan.to_dict()
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return save
