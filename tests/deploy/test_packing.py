"""Packed models: the same outputs, the same weights back, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from threading import Thread

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import nmstep
from nmstep.deploy import PackedLinear, packed_layers
from nmstep.deploy import layer as layer_module
from nmstep.kernels.packed import PackedProduct

PATTERNS = ["2:4", "1:4", "1:8", "2:8", "1:16"]


def masked(model: nn.Module, pattern: str) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.in_features % nmstep.NMPattern.parse(pattern).m == 0:
                module.weight.mul_(nmstep.nm_mask(module.weight, pattern))
    return model


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def mlp(pattern: str = "2:4") -> nn.Sequential:
    model = nn.Sequential(nn.Linear(32, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 16, bias=False))
    masked(model, pattern)
    return model


def close(packed: Tensor, dense: Tensor) -> bool:
    return torch.allclose(packed, dense, rtol=1e-5, atol=1e-5 * float(dense.abs().max()))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(32,), (1, 32), (7, 32), (2, 65, 32), (0, 32)])
def test_outputs_are_those_of_the_dense_model(pattern: str, shape: tuple[int, ...]) -> None:
    model = mlp(pattern)
    packed = nmstep.pack(model)
    x = torch.randn(shape)
    with torch.no_grad():
        dense, found = model(x), packed(x)
    assert found.shape == dense.shape
    assert found.dtype == dense.dtype
    assert close(found, dense) if x.numel() else True
    assert [str(layer.pattern) for layer in packed_layers(packed).values()] == [pattern, pattern]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    packed = nmstep.pack(model)
    x = torch.randn(9, 32, dtype=dtype)
    with torch.no_grad():
        dense, found = model(x), packed(x)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), dense.double(), atol=3 * torch.finfo(dtype).eps)


def test_values_can_be_held_narrower_than_inputs() -> None:
    model = mlp()
    packed = nmstep.pack(model, dtype=torch.bfloat16)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for module in (rounded[0], rounded[3]):
            module.weight.copy_(module.weight.bfloat16())
        x = torch.randn(5, 32)
        assert close(packed(x), rounded(x))


def test_a_conv1d_of_transformers_is_packed() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv1d(24, 16))
    with torch.no_grad():
        model[0].bias.normal_()
        model[0].weight.mul_(nmstep.nm_mask(model[0].weight, "2:4", dim=0))
    packed = nmstep.pack(model, "2:4")
    x = torch.randn(3, 16)
    with torch.no_grad():
        assert close(packed(x), model(x))
    back = nmstep.unpack(packed)
    assert type(back[0]) is conv1d
    assert torch.equal(back[0].weight, model[0].weight)
    with torch.no_grad():
        assert torch.equal(back(x), model(x))


def test_unpacked_weights_are_the_packed_ones_to_the_bit() -> None:
    model = mlp("1:4").eval()
    back = nmstep.unpack(nmstep.pack(model))
    assert not packed_layers(back)
    assert not back.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, back.state_dict()[name]), name
    assert [type(module) for module in back] == [type(module) for module in model]
    assert repr(back) == repr(model)


def test_the_model_is_left_as_it_was_and_shares_what_stays_dense() -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    packed = nmstep.pack(model)
    assert isinstance(model[0], nn.Linear)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert packed[1].weight.data_ptr() == model[1].weight.data_ptr()
    assert packed[0].bias.data_ptr() == model[0].bias.data_ptr()


def test_casting_the_packed_model_leaves_the_other_as_it_is() -> None:
    model = mlp()
    packed = nmstep.pack(model).to(torch.bfloat16)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    x = torch.randn(3, 32)
    with torch.no_grad():
        dense = model.to(torch.bfloat16)(x.bfloat16())
        assert torch.allclose(packed(x.bfloat16()).float(), dense.float(), atol=0.05)
    assert {p.dtype for p in nmstep.unpack(packed).parameters()} == {torch.bfloat16}


def test_values_held_narrower_unpack_to_the_layers_own_dtype() -> None:
    model = mlp().requires_grad_(False)
    back = nmstep.unpack(nmstep.pack(model, dtype=torch.bfloat16))
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in back.parameters())
    with torch.no_grad():
        assert torch.equal(back[0].weight, model[0].weight.bfloat16().float())
        back(torch.randn(2, 32))


def test_what_would_be_lost_stays_dense() -> None:
    model = nn.Sequential(*[masked(nn.Linear(16, 16), "2:4") for _ in range(4)])
    model[0].register_forward_hook(lambda *_: None)
    model[1].forward = lambda x: x  # type: ignore[method-assign]
    model[2].register_buffer("scale", torch.ones(1))
    with pytest.warns(UserWarning, match=r"3 sparse parameter\(s\) stay dense.*without hooks"):
        assert list(packed_layers(nmstep.pack(model, "2:4"))) == ["3"]


def test_layers_that_share_a_weight_share_what_is_packed() -> None:
    model = nn.Sequential(masked(nn.Linear(16, 16), "2:4"), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    packed = nmstep.pack(model, "2:4")
    assert packed[0].values is packed[1].values
    back = nmstep.unpack(packed)
    assert back[0].weight is back[1].weight


def test_a_packed_model_is_not_packed_again() -> None:
    with pytest.raises(ValueError, match="is packed already"):
        nmstep.pack(nmstep.pack(mlp()))


def test_a_layer_of_two_names_is_packed_once() -> None:
    layer = masked(nn.Linear(16, 16), "2:4")
    packed = nmstep.pack(nn.ModuleDict({"a": layer, "b": layer}))
    assert packed["a"] is packed["b"]


def test_a_single_layer_can_be_packed() -> None:
    assert isinstance(nmstep.pack(masked(nn.Linear(16, 16), "2:4")), PackedLinear)


def test_what_is_tied_to_an_embedding_stays_dense() -> None:
    model = nn.Sequential(nn.Embedding(32, 16), masked(nn.Linear(16, 16), "2:4"), nn.Linear(16, 32))
    model[2].weight = model[0].weight
    packed = nmstep.pack(model, "2:4")
    assert list(packed_layers(packed)) == ["1"]
    assert packed[2].weight is packed[0].weight


def test_each_layer_has_the_pattern_of_its_zeros() -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 32), nn.Linear(32, 8))
    masked(model[0], "1:16")
    masked(model[1], "2:4")
    patterns = {name: str(layer.pattern) for name, layer in packed_layers(nmstep.pack(model)).items()}
    assert patterns == {"0": "1:16", "1": "2:4"}


@pytest.mark.parametrize(
    ("pattern", "columns", "place", "found", "message"),
    [
        (
            "2:4",
            4,
            slice(0, 3),
            "3:4",
            r"has 3:4 because of 1 of its 64 groups of 4: all others are 2:4; first \[5, 0:4\] = ",
        ),
        ("2:4", 4, slice(0, 4), None, "has no pattern because of 1 of its 64 groups of 4"),
        ("2:4", 64, slice(8, 11), "33:64", r"all others are 2:4; first \[5, 8:12\] = .* with 3 non-zeros"),
        (
            "1:16",
            64,
            slice(16, 20),
            "7:64",
            r"of its 256 groups of 16: all others are 1:16; first \[5, 16:32\]",
        ),
    ],
)
def test_one_damaged_group_is_named(
    pattern: str, columns: int, place: slice, found: str | None, message: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(columns, 64), masked(nn.Linear(64, 16), "1:2"))
    with torch.no_grad():
        model[0].weight.copy_(nmstep.nm_mask(torch.randn(64, columns), pattern) * 1.5)
        m = int(pattern.partition(":")[2])
        model[0].weight[5, place.start : place.start + m] = 0
        model[0].weight[5, place] = 2.0
    with pytest.warns(UserWarning, match=f"'0.weight'.*{message}"):
        packed = nmstep.pack(model)
    layers = packed_layers(packed)
    assert (str(layers["0"].pattern) if "0" in layers else None) == found
    with pytest.raises(nmstep.NotSparseError, match=r"0\.weight"):
        nmstep.pack(model, pattern, include=["0"])


def test_zeros_of_no_mask_are_not_called_damaged() -> None:
    torch.manual_seed(0)
    for share in (0.05, 0.3, 0.5, 0.9, 0.99):
        model = nn.Sequential(nn.Linear(256, 256))
        with torch.no_grad():
            model[0].weight.mul_(torch.rand(256, 256) > share)
        with contextlib.suppress(ValueError):  # warnings are errors here
            nmstep.pack(model)


def test_a_plan_says_what_is_packed() -> None:
    model = mlp()
    plan = nmstep.plan(model, "2:4", exclude=["3"])
    assert list(packed_layers(nmstep.pack(model, plan=plan))) == ["0"]
    assert list(packed_layers(nmstep.pack(model, "2:4", exclude=["0"]))) == ["3"]
    assert list(packed_layers(nmstep.pack(model, include=["0"]))) == ["0"]


def test_a_padded_layer_is_packed() -> None:
    model = nn.Sequential(nn.Linear(18, 20))
    plan = nmstep.plan(model, "2:4", on_indivisible="pad")
    with torch.no_grad():
        model[0].weight.mul_(nmstep.nm_mask(model[0].weight, "2:4", pad=True))
        packed = nmstep.pack(model, plan=plan)
        x = torch.randn(6, 18)
        assert close(packed(x), model(x))
    assert torch.equal(nmstep.unpack(packed)[0].weight, model[0].weight)


def test_a_layer_that_is_not_sparse_is_refused_with_its_first_group() -> None:
    model = mlp()
    with torch.no_grad():
        model[3].weight[5, 8:12] = 1.0
    with pytest.raises(nmstep.NotSparseError, match=r"(?s)3\.weight.*\[5, 8:12\]"):
        nmstep.pack(model, "2:4")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dtype": torch.int16}, "torch.float16, torch.int8, not in torch.int16"),
        ({"plan": "plan", "exclude": ["0"]}, "a plan says itself"),
        ({"pattern": "two:four"}, "cannot read pattern"),
        ({"pattern": "2:4", "exclude": ["nine"]}, "matches no parameter"),
        ({"pattern": "2:5"}, "can become sparse"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], match: str) -> None:
    model = mlp()
    if "plan" in arguments:
        arguments = {**arguments, "plan": nmstep.plan(model, "2:4")}
    with pytest.raises(ValueError, match=match):
        nmstep.pack(model, **arguments)  # type: ignore[arg-type]


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer of this Sequential is N:M"):
        nmstep.pack(nn.Sequential(nn.Linear(16, 16)))
    with pytest.raises(ValueError, match="has no packed layer"):
        nmstep.unpack(nn.Sequential(nn.Linear(16, 16)))
    with pytest.raises(TypeError, match="takes a module, got a dict"):
        nmstep.pack({})  # type: ignore[arg-type]


def test_sparse_layers_of_other_kinds_stay_dense_with_a_warning() -> None:
    model = nn.Sequential(nn.ConvTranspose1d(16, 8, 1), nn.Flatten(), masked(nn.Linear(32, 8), "2:4"))
    with torch.no_grad():
        model[0].weight.mul_(nmstep.nm_mask(model[0].weight, "2:4", dim=0))
    with pytest.warns(UserWarning, match=r"1 sparse parameter\(s\) stay dense.*'0.weight'"):
        packed = nmstep.pack(model, "2:4")
    with torch.no_grad():
        x = torch.randn(3, 16, 4)
        assert close(packed(x), model(x))


CONVOLUTIONS: list[tuple[type[nn.Conv1d | nn.Conv2d], dict[str, object], tuple[int, ...]]] = [
    (nn.Conv2d, {"kernel_size": 3}, (2, 16, 7, 9)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "stride": 2}, (2, 16, 7, 9)),
    (nn.Conv2d, {"kernel_size": (3, 1), "padding": (1, 0), "dilation": (2, 1)}, (1, 16, 9, 5)),
    (nn.Conv2d, {"kernel_size": 4, "padding": "same", "bias": False}, (2, 16, 8, 8)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, (2, 16, 8, 8)),
    (nn.Conv2d, {"kernel_size": 1}, (2, 16, 3, 3)),
    (nn.Conv2d, {"kernel_size": 3, "padding": (1, 2), "stride": (1, 2)}, (3, 16, 17, 30)),  # many windows
    (nn.Conv2d, {"kernel_size": 3}, (16, 7, 7)),
    (nn.Conv1d, {"kernel_size": 5, "padding": 2, "stride": 3}, (2, 16, 20)),
    (nn.Conv1d, {"kernel_size": 1}, (16, 20)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("pattern", ["2:4", "1:16"])
@pytest.mark.parametrize(("kind", "settings", "shape"), CONVOLUTIONS)
def test_convolutions(
    kind: type[nn.Conv2d], settings: dict[str, object], shape: tuple[int, ...], pattern: str
) -> None:
    conv = kind(16, 24, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        conv.weight.mul_(nmstep.nm_mask(conv.weight, pattern))
        packed = nmstep.pack(conv, pattern)
        for x in (torch.randn(shape), torch.randn(*shape[:-1], shape[-1] + 3)):
            assert packed(x).shape == conv(x).shape
            assert close(packed(x), conv(x))
    assert torch.equal(nmstep.unpack(packed).weight, conv.weight)  # type: ignore[arg-type]


def test_a_convolution_is_the_same_however_its_windows_are_laid_out() -> None:
    conv = nn.Conv2d(32, 24, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(nmstep.nm_mask(conv.weight, "1:4"))
        packed, x = nmstep.pack(conv), torch.randn(2, 32, 12, 12)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PackedProduct, "of_images", lambda *_: None)
            expected = packed(x)
        assert torch.equal(packed(x), expected)
        assert torch.equal(packed(x.bfloat16()), packed(x.bfloat16().requires_grad_()).detach())


def test_inputs_of_any_layout() -> None:
    conv = nn.Conv2d(16, 8, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(nmstep.nm_mask(conv.weight, "1:4"))
        packed, x = nmstep.pack(conv), torch.randn(2, 16, 6, 6)
        assert close(packed(x.to(memory_format=torch.channels_last)), conv(x))
        assert close(packed(x.mT), conv(x.mT))
        linear = nmstep.pack(masked(nn.Linear(16, 8), "1:4"))
        y = torch.randn(5, 16)
        assert close(linear(y.T.contiguous().T), linear(y))
        assert close(linear(y[::2]), linear(y)[::2])


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((2, 15, 6, 6), "16 channels got torch.float32 of shape"),
        ((16, 6), "16 channels"),
        ((2, 16, 2, 6), "does not fit"),
    ],
)
def test_inputs_that_a_convolution_does_not_take(shape: tuple[int, ...], match: str) -> None:
    conv = nn.Conv2d(16, 8, 3)
    with torch.no_grad():
        conv.weight.mul_(nmstep.nm_mask(conv.weight, "1:4"))
    with pytest.raises(ValueError, match=match):
        nmstep.pack(conv)(torch.randn(shape))


def test_convolutions_that_are_not_packed() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 16, 3))
    with torch.no_grad():
        for conv in model:
            conv.weight.mul_(nmstep.nm_mask(conv.weight, "2:4"))
    with pytest.warns(UserWarning, match=r"'0\.weight'"):
        assert list(packed_layers(nmstep.pack(model))) == ["1"]


def test_torch_attention_keeps_its_weights() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    masked(model, "2:4")
    with torch.no_grad():
        model.self_attn.in_proj_weight.mul_(nmstep.nm_mask(model.self_attn.in_proj_weight, "2:4"))
    with pytest.warns(UserWarning, match="self_attn"):
        packed = nmstep.pack(model, "2:4")
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        assert close(packed(x), model(x))


def test_weights_that_are_written_to_are_seen() -> None:
    packed = nmstep.pack(mlp())
    x, twin = torch.randn(3, 32), nmstep.pack(mlp("1:4").bfloat16().float())
    with torch.no_grad():
        packed(x)
        packed[0].bias.fill_(3.0)
        packed[0].values.mul_(2)  # type: ignore[operator]
        expected = nn.functional.linear(x, packed[0].weight, packed[0].bias)
        assert close(packed[0](x), expected)
        narrow = twin.bfloat16()
        first = narrow(x.bfloat16())
        narrow[0].bias.data.add_(1)
        assert not torch.equal(narrow(x.bfloat16()), first)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.randn(2, 31), r"32 inputs got torch.float32 of shape \(2, 31\)"),
        (torch.tensor(1.0), "32 inputs got"),
        (torch.ones(2, 32, dtype=torch.int64), "expected floating numbers"),
    ],
)
def test_inputs_that_a_layer_does_not_take(x: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        nmstep.pack(mlp())(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = mlp()
    packed, x = nmstep.pack(model), torch.randn(4, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        dense, found = model(x), packed(x)
    assert found.dtype == dense.dtype == dtype
    assert torch.allclose(found.float(), dense.float(), atol=0.05)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_records_the_product() -> None:
    packed = nmstep.pack(mlp()).requires_grad_(False)
    x, y = torch.randn(4, 32), torch.randn(4, 32)
    traced = torch.jit.trace(packed, (x,))
    recorded = make_fx(packed)(x)
    with torch.no_grad():
        assert torch.equal(traced(y), packed(y))
        assert torch.equal(recorded(y), packed(y))


def test_several_threads_with_several_weights() -> None:
    layer = nmstep.pack(masked(nn.Linear(256, 64), "2:4"))
    assert isinstance(layer, PackedLinear)
    x, wrong = torch.randn(2, 256), []

    def work(values: Tensor) -> None:
        with torch.no_grad():
            expected = PackedProduct(layer.tiling)(x, values, layer.indices, None, None)
            found = [layer._product(x, values, layer.indices, None, None) for _ in range(50)]
            wrong.extend(y for y in found if not torch.equal(y, expected))

    threads = [Thread(target=work, args=(layer.values * scale,)) for scale in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_backward_pass_is_an_error() -> None:
    packed = nmstep.pack(mlp())
    x = torch.randn(2, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="no backward pass"):
        packed(x).sum().backward()
    with pytest.raises(RuntimeError, match="no backward pass"):
        packed(torch.randn(2, 32)).sum().backward()


def copies(packed: nn.Module) -> Iterator[nn.Module]:
    yield copy.deepcopy(packed)
    yield pickle.loads(pickle.dumps(packed))
    with io.BytesIO() as file:
        torch.save(packed, file)
        file.seek(0)
        yield torch.load(file, weights_only=False)


def test_copies_and_pickles_run() -> None:
    packed = nmstep.pack(mlp())
    x = torch.randn(4, 32)
    with torch.no_grad():
        for twin in copies(packed):
            assert torch.equal(twin(x), packed(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_convolutions_export_for_any_batch() -> None:
    conv = nn.Conv2d(16, 8, 3)
    with torch.no_grad():
        conv.weight.mul_(nmstep.nm_mask(conv.weight, "1:4"))
        packed = nmstep.pack(conv)
        exported = torch.export.export(
            packed, (torch.randn(2, 16, 6, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        x = torch.randn(5, 16, 6, 6)
        assert torch.equal(exported.module()(x), packed(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compile_and_export() -> None:
    packed = nmstep.pack(mlp())
    x = torch.randn(4, 32)
    torch.compiler.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert torch.equal(torch.compile(packed, backend="eager", fullgraph=True)(x), packed(x))
        exported = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        longer = torch.randn(9, 32)
        assert torch.equal(exported.module()(longer), packed(longer))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("side", ["input", "bias"])
def test_a_compiled_model_runs_where_gradients_are_recorded(
    side: str, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_module, "is_better_dense", lambda *_: held)
    packed = nmstep.pack(mlp()).requires_grad_(side == "bias")
    x = torch.randn(4, 32, requires_grad=side == "input")
    torch.compiler.reset()
    y = torch.compile(packed, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(y, packed(x))
    with pytest.raises(RuntimeError, match="no backward pass"):
        y.sum().backward()


def test_the_operator_is_registered_as_torch_wants_it() -> None:
    layer = nmstep.pack(masked(nn.Linear(16, 24), "2:4"))
    assert isinstance(layer, PackedLinear)
    tensors = (torch.randn(3, 16), layer.values, layer.indices, None, layer.bias.detach())
    arguments = (*tensors, 24, 16, 2, 4, True)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.nmstep.packed_linear.default, arguments, test_utils=checks)
