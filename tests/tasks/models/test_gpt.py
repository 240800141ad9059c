import pytest
import torch

from nmstep.tasks.models import GPT, Conv1D

SMALL = {"vocabulary": 11, "layers": 2, "width": 8, "heads": 2, "context": 6}


def test_conv1d_is_a_linear_layer_with_its_weight_transposed():
    layer = Conv1D(5, 3)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, 3)
    assert (layer.nf, layer.nx) == (5, 3)
    assert layer.weight.shape == (3, 5)
    torch.testing.assert_close(layer(x), torch.einsum("bti,io->bto", x, layer.weight) + layer.bias)
    assert repr(layer) == "Conv1D(nf=5, nx=3)"


def test_projections_agree_up_to_transposition():
    torch.manual_seed(0)
    linear, conv1d = GPT(**SMALL), GPT(**SMALL, projection="conv1d")
    transposed = {name for name, m in conv1d.named_modules() if isinstance(m, Conv1D)}
    assert len(transposed) == 8
    state = {}
    for name, value in linear.state_dict().items():
        module, _, kind = name.rpartition(".")
        state[name] = value.T if module in transposed and kind == "weight" else value
        assert conv1d.state_dict()[name].shape == state[name].shape
    conv1d.load_state_dict(state)
    tokens = torch.randint(11, (3, 6))
    torch.testing.assert_close(linear(tokens), conv1d(tokens))


def test_attention_is_causal():
    torch.manual_seed(0)
    model = GPT(**SMALL)
    tokens = torch.randint(11, (1, 6))
    changed = tokens.clone()
    changed[0, 4] = (tokens[0, 4] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("projection", ["linear", "conv1d"])
def test_starting_deviations(projection):
    torch.manual_seed(0)
    model = GPT(vocabulary=50, layers=2, width=128, heads=4, context=8, projection=projection)
    block = model.blocks[0]
    assert block.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.down.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert block.attention.out.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not block.up.bias.any()


def test_tying_shares_the_embedding():
    free, tied = GPT(**SMALL), GPT(**SMALL, tied=True)
    assert tied.head.weight is tied.tokens.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 11 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0: give at least 1"),
        ({"heads": 3}, "width=8 cannot be split over heads=3"),
        ({"projection": "conv"}, "unknown projection 'conv': choose 'linear' or 'conv1d'"),
    ],
)
def test_impossible_models_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GPT(**(SMALL | options))


def test_a_long_sequence_is_refused():
    with pytest.raises(ValueError, match="a sequence of 7 tokens is longer than the model's context=6"):
        GPT(**SMALL)(torch.zeros(1, 7, dtype=torch.int64))


def test_places_are_told_apart():
    torch.manual_seed(0)
    logits = GPT(**SMALL)(torch.zeros(1, 6, dtype=torch.int64))[0]
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)
