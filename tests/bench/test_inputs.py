from types import SimpleNamespace

import pytest
import torch

from nmstep.bench.inputs import given_to


def test_an_encoder_reads_as_many_tokens_as_it_has_places(bert):
    use, what, decoded = given_to(bert)
    ids = use(3).named["input_ids"]
    assert (ids.shape, what, decoded) == ((3, 40), "40 tokens", None)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 100
    assert given_to(bert, 7)[0](2).named["input_ids"].shape == (2, 7)
    assert use(1)(bert.eval()).logits.shape == (1, 2)


@pytest.mark.parametrize(("tokens", "made"), [(None, 32), (5, 5), (1000, 56)])
def test_a_decoder_makes_tokens_after_a_prompt(gpt2, tokens, made):
    use, what, decoded = given_to(gpt2.eval(), tokens)
    assert (decoded, what) == (made, f"{made} tokens decoded one by one after 8")
    made_ids = use(2)(gpt2)
    assert made_ids.shape == (2, 8 + made)


def test_a_decoder_decodes_with_a_cache(gpt2):
    lengths = []
    gpt2.transformer.h[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    given_to(gpt2.eval(), 4)[0](1)(gpt2)
    assert lengths == [8, 1, 1, 1]


def test_an_encoder_with_a_decoder_is_given_both(transformers):
    config = transformers.T5Config(d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8, vocab_size=50)
    model = transformers.T5Model(config).eval()
    assert given_to(model, 6)[0](2)(model).last_hidden_state.shape == (2, 6, 16)
    model = transformers.T5ForConditionalGeneration(config).eval()
    use, _, decoded = given_to(model, 3)
    assert (decoded, use(2)(model).shape) == (3, (2, 4))


def test_images_have_the_size_that_the_configuration_names(transformers, small):
    del small["vocab_size"]
    config = transformers.ViTConfig(**small, intermediate_size=64, image_size=16, patch_size=8)
    model = transformers.ViTForImageClassification(config).eval()
    use, what, decoded = given_to(model)
    assert (what, decoded) == ("an image of 16 x 16", None)
    assert use(3)(model).logits.shape == (3, 2)
    assert use(1)(model.to(torch.bfloat16)).logits.dtype == torch.bfloat16


def test_other_inputs_are_refused():
    model = SimpleNamespace(config=SimpleNamespace(), main_input_name="input_values")
    with pytest.raises(ValueError, match="takes input_values: only input_ids and pixel_values"):
        given_to(model)
