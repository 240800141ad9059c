import pytest
import torch
from torch import nn

from nmstep.tasks.models.transformer import Transformer

SMALL = {"vocabulary": 20, "layers": 2, "width": 16, "heads": 4, "feed_forward": 24, "context": 40}


def make(**options):
    torch.manual_seed(0)
    model = Transformer(**(SMALL | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias and no norm is at its start
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(rows, length, *, seed=0):
    return torch.randint(3, 20, (rows, length), generator=torch.Generator().manual_seed(seed))


def torch_twin(model, pre_norm):
    """torch's own Transformer with the weights of ours."""
    shape = {"dropout": 0.0, "batch_first": True, "norm_first": pre_norm}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 24, **shape), 2, nn.LayerNorm(16), enable_nested_tensor=False
    )
    twin = nn.Transformer(16, 4, 2, 2, 24, custom_encoder=encoder, **shape)

    def copy(ours, theirs):
        theirs.load_state_dict(ours.state_dict())

    def copy_self(ours, theirs):
        theirs.in_proj_weight.copy_(ours.query_key_value.weight)
        theirs.in_proj_bias.copy_(ours.query_key_value.bias)
        copy(ours.out, theirs.out_proj)

    with torch.no_grad():
        for ours, theirs in zip(model.encoder, twin.encoder.layers, strict=True):
            copy_self(ours.attention, theirs.self_attn)
            copy(ours.attention_norm, theirs.norm1)
            copy(ours.feed_forward[0], theirs.linear1)
            copy(ours.feed_forward[2], theirs.linear2)
            copy(ours.feed_forward_norm, theirs.norm2)
        for ours, theirs in zip(model.decoder, twin.decoder.layers, strict=True):
            copy_self(ours.attention, theirs.self_attn)
            copy(ours.attention_norm, theirs.norm1)
            cross = theirs.multihead_attn
            cross.in_proj_weight.copy_(torch.cat([ours.cross.query.weight, ours.cross.key_value.weight]))
            cross.in_proj_bias.copy_(torch.cat([ours.cross.query.bias, ours.cross.key_value.bias]))
            copy(ours.cross.out, cross.out_proj)
            copy(ours.cross_norm, theirs.norm2)
            copy(ours.feed_forward[0], theirs.linear1)
            copy(ours.feed_forward[2], theirs.linear2)
            copy(ours.feed_forward_norm, theirs.norm3)
        if pre_norm:
            copy(model.encoder_norm, twin.encoder.norm)
            copy(model.decoder_norm, twin.decoder.norm)
        else:
            twin.encoder.norm = twin.decoder.norm = None
    return twin


@pytest.mark.parametrize("pre_norm", [False, True])
def test_equals_torchs_transformer(pre_norm):
    model = make(pre_norm=pre_norm)
    twin = torch_twin(model, pre_norm)  # in training mode: no dropout, and no fast path of inference
    source, target = tokens(3, 7), tokens(3, 5, seed=1)
    source[0, 4:] = 0

    def embed(ids):
        place = torch.arange(ids.shape[1]).unsqueeze(1)
        angle = place / 10_000 ** (torch.arange(8) / 8)
        return model.embedding(ids) * 4 + torch.cat([angle.sin(), angle.cos()], dim=1)

    hidden = twin(
        embed(source),
        embed(target),
        tgt_mask=torch.ones(5, 5, dtype=torch.bool).triu(1),
        src_key_padding_mask=source == 0,
        memory_key_padding_mask=source == 0,
    )
    expected = hidden @ model.embedding.weight.T
    torch.testing.assert_close(model(source, target), expected, rtol=1e-4, atol=1e-4)


def test_padding_of_either_side_changes_no_logit():
    model = make()
    source, target = tokens(1, 6), tokens(1, 5, seed=1)
    longer_source = torch.cat([source, torch.zeros(1, 9, dtype=torch.int64)], dim=1)
    longer_target = torch.cat([target, torch.zeros(1, 4, dtype=torch.int64)], dim=1)
    padded = model(longer_source, longer_target)[:, :5]
    torch.testing.assert_close(padded, model(source, target), rtol=1e-5, atol=1e-5)


def test_a_later_target_token_changes_no_earlier_logit():
    model = make()
    source, target = tokens(2, 6), tokens(2, 5, seed=1)
    changed = target.clone()
    changed[:, 3] = (target[:, 3] - 3 + 1) % 17 + 3
    before, after = model(source, target), model(source, changed)
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, 3], before[:, 3], atol=1e-3)


def test_token_by_token_equals_all_at_once():
    model = make(pre_norm=True)
    source, target = tokens(3, 6), tokens(3, 8, seed=1)
    source[1, 2:] = 0
    expected = model(source, target)
    state = model.start(source)
    got = torch.cat([model.advance(target[:, place : place + 1], state) for place in range(8)], dim=1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_selected_rows_go_on_as_they_would_alone():
    model = make()
    source, target = tokens(3, 6), tokens(3, 3, seed=1)
    state = model.start(source)
    for place in range(2):
        model.advance(target[:, place : place + 1], state)
    rows = torch.tensor([2, 0, 2])
    got = model.advance(target[rows, 2:], state.select(rows))
    torch.testing.assert_close(got, model(source, target)[rows, 2:], rtol=1e-5, atol=1e-5)


def test_half_precision_comes_near_single():
    model = make()
    source, target = tokens(3, 6), tokens(3, 8, seed=1)
    expected = model(source, target)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(source, target)
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).abs().max() < 0.1 * expected.std()


def test_dropout_acts_in_training_only():
    model = make(dropout=0.5)
    source, target = tokens(2, 6), tokens(2, 8, seed=1)
    assert torch.equal(model(source, target), model(source, target))
    model.train()
    assert not torch.equal(model(source, target), model(source, target))


def test_the_base_model_has_the_published_size():
    with torch.device("meta"):
        model = Transformer(vocabulary=37_000)
    # 37,000 × 512 embedding; encoder layers of 3,152,384 and decoder layers of 4,204,032 parameters.
    assert sum(parameter.numel() for parameter in model.parameters()) == 18_944_000 + 6 * (
        3_152_384 + 4_204_032
    )


def test_projections_that_share_a_matrix_start_as_they_would_alone():
    torch.manual_seed(0)
    attention = Transformer(**(SMALL | {"width": 256, "heads": 4})).encoder[0].attention
    bound = (6 / (256 + 256)) ** 0.5
    largest = attention.query_key_value.weight.abs().max().item()
    assert 0.99 * bound < largest <= bound


def test_state_dict_holds_no_table_of_positions():
    names = make().state_dict()
    assert not any("positions" in name for name in names)
    Transformer(**(SMALL | {"context": 7})).load_state_dict(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "cannot have layers=0: give at least 1"),
        ({"width": 18}, r"width=18 cannot be split over heads=4: make it even and a multiple of heads"),
        ({"width": 15, "heads": 3}, r"width=15 cannot be split"),
        ({"dropout": 1.0}, "dropout=1.0 is not a share to leave out"),
        ({"vocabulary": 3 - 1}, "vocabulary=2 has no room for padding, beginning and end"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**(SMALL | options))


def test_what_is_too_long_or_out_of_turn_is_refused():
    model = make(context=8)
    with pytest.raises(ValueError, match="9 tokens is longer than the model's context=8"):
        model.start(tokens(1, 9))
    state = model.start(tokens(1, 4))
    model.advance(tokens(1, 2), state)
    with pytest.raises(ValueError, match="3 tokens after 2: give a state that has read none, or one token"):
        model.advance(tokens(1, 3), state)
