"""Layers in torch.sparse's semi-structured form: converted on the CPU by CUTLASS's packer, run on a GPU if any."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

import nmstep
from nmstep.deploy import SemiStructured, SemiStructuredLinear, semi_structured, to_semi_structured

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.sparse multiplies on a GPU only")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def masked(weight: Tensor, pattern: str, dim: int = 1) -> None:
    with torch.no_grad():
        weight.mul_(nmstep.nm_mask(weight, pattern, dim=dim))


def mlp(pattern: str = "2:4", dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32, bias=False), nn.Linear(32, 10))
    for place in (0, 2, 3):
        masked(model[place].weight, pattern)
    return model.to(dtype)


def on_cpu(model: nn.Module) -> SemiStructured:
    return to_semi_structured(model, backend="cutlass")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2", "1:8", "1:16", "1:32"])
def test_weights_are_the_same_to_the_bit(pattern: str, dtype: torch.dtype) -> None:
    model = mlp(pattern, dtype).eval()
    for source in (model, nmstep.pack(model, pattern, exclude=["3"])):
        result = on_cpu(source)
        assert [type(layer) for layer in result.model][:3:2] == [SemiStructuredLinear] * 2
        for place in (0, 2):
            layer, weight = result.model[place], model[place].weight
            assert isinstance(layer.weight.detach(), SparseSemiStructuredTensorCUTLASS)
            assert torch.equal(layer.weight.to_dense(), weight)
            # half of the weights, and the places
            assert layer.weight.packed.numel() * 2 == weight.numel()
            assert not layer.training
        assert result.model[0].bias.data_ptr() == model[0].bias.data_ptr()
        assert result.model[2].bias is None
        assert type(result.model[3]) is nn.Linear
        assert result.model[3].weight.data_ptr() == model[3].weight.data_ptr()
    assert type(model[0]) is nn.Linear


def test_the_report_says_what_was_converted_and_why_the_rest_was_not() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 8:11] = 1.0
    result = on_cpu(model)
    assert [(e.name, e.shape, e.why_not) for e in result.layers][::2] == [
        ("0", (64, 128), ""),
        ("3", (10, 32), "outputs and inputs must be multiples of 32 and 64 for cutlass"),
    ]
    assert "more than two weights of four: [3, 8:12] = (1, 1, 1, " in result.layers[1].why_not
    assert str(result).splitlines()[0] == "0  64x128  converted"
    assert str(result).splitlines()[-1] == "1 of 3 layers converted, by cutlass"


class Derived(nn.Linear):
    pass


def hooked() -> nn.Linear:
    layer = nn.Linear(64, 32)
    layer.register_forward_hook(lambda *_: None)
    return layer


def holding(value: float) -> nn.Linear:
    layer = nn.Linear(64, 32)
    masked(layer.weight, "2:4")
    with torch.no_grad():
        layer.weight[1, 1] = value
    return layer


WRONG: list[tuple[nn.Module, str]] = [
    (nn.Linear(64, 32), "more than two weights of four"),
    (nn.Linear(64, 48), "must be multiples of 32 and 64"),
    (nn.Linear(96, 32), "must be multiples of 32 and 64"),
    (nn.Conv2d(64, 32, 1), "a convolution: torch.sparse multiplies matrices"),
    (Derived(64, 32), "a Derived of a derived class, or with hooks"),
    (hooked(), "a Linear of a derived class, or with hooks"),
    (holding(float("nan")), "holds NaN or infinity"),
    (holding(float("inf")), "holds NaN or infinity"),
    (nn.ReLU(), "it has no Linear layer"),
]


@pytest.mark.parametrize(("layer", "match"), WRONG)
def test_what_cannot_be_converted_is_named(layer: nn.Module, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        on_cpu(nn.Sequential(layer).to(torch.bfloat16))


def test_float32_and_the_cpu_are_refused_unless_asked_for() -> None:
    with pytest.raises(ValueError, match=r"no layer of this Sequential .*\n  0: its weight is torch.float32"):
        on_cpu(mlp(dtype=torch.float32))
    for backend in (None, "cusparselt"):
        with pytest.raises(ValueError, match="0: its weight lies on cpu: move the model to a GPU before"):
            to_semi_structured(mlp(), backend=backend)
    with pytest.raises(ValueError, match="lies on meta"):
        on_cpu(nn.Linear(64, 64, device="meta", dtype=torch.float16))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="backend='cuda': expected 'cusparselt' or 'cutlass', or None"):
        to_semi_structured(mlp(), backend="cuda")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a module, got a Tensor"):
        to_semi_structured(torch.zeros(2))  # type: ignore[arg-type]


def test_a_packed_layer_that_stays_packed_is_warned_of() -> None:
    packed = nmstep.pack(mlp())
    with pytest.warns(
        UserWarning, match=r"1 packed layer\(s\) stay packed: '3': outputs and inputs"
    ) as caught:
        result = on_cpu(packed)
    assert caught[0].filename == __file__
    assert type(result.model[3]) is type(packed[3])
    assert result.model[3].values.data_ptr() == packed[3].values.data_ptr()


def test_torch_giving_other_weights_back_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = SparseSemiStructuredTensorCUTLASS.to_dense
    monkeypatch.setattr(SparseSemiStructuredTensorCUTLASS, "to_dense", lambda tensor: 2 * inner(tensor))
    with pytest.raises(ValueError, match="0: cutlass gave other weights back"):
        on_cpu(mlp())


def test_a_gpu_of_before_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(Tensor, "is_cuda", True)
    with pytest.raises(ValueError, match="no sparse matrix units"):
        on_cpu(mlp())


def test_a_conv1d_of_transformers_becomes_a_linear() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv1d(32, 64)).to(torch.float16)
    masked(model[0].weight, "2:4", dim=0)
    for source in (model, nmstep.pack(model, "2:4")):
        weight = on_cpu(source).model[0].weight
        assert torch.equal(weight.to_dense(), model[0].weight.T)


def test_layers_that_share_a_weight_share_it_afterwards() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    masked(model[0].weight, "2:4")
    model[1].weight = model[0].weight
    model.to(torch.bfloat16)
    for source in (model, nmstep.pack(model)):
        made = on_cpu(source).model
        assert made[0].weight.packed.data_ptr() == made[1].weight.packed.data_ptr()


def test_a_model_that_is_one_layer() -> None:
    model = mlp()[0]
    assert isinstance(on_cpu(model).model, SemiStructuredLinear)
    assert repr(on_cpu(model).model) == (
        "SemiStructuredLinear(in_features=128, out_features=64, bias=True, dtype=torch.bfloat16)"
    )


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (
            torch.zeros(2, 128, dtype=torch.bfloat16),
            r"of 128 inputs got torch.bfloat16 .* on cpu: .*on a GPU",
        ),
        (torch.zeros(2, 64, dtype=torch.bfloat16), r"shape \(2, 64\)"),
        (torch.zeros(2, 128), "got torch.float32"),
    ],
)
def test_inputs_that_torch_cannot_multiply_are_refused(x: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        on_cpu(mlp()).model[0](x)


def test_sizes_are_those_that_torch_asks_for() -> None:
    backends: dict[Any, Any] = {
        "cusparselt": SparseSemiStructuredTensorCUSPARSELT,
        "cutlass": SparseSemiStructuredTensorCUTLASS,
    }
    for backend, kind in backends.items():
        for dtype in semi_structured._DTYPES:
            sizes = kind._DTYPE_SHAPE_CONSTRAINTS[dtype]
            assert (sizes.sparse_min_rows, sizes.sparse_min_cols) == semi_structured._MULTIPLES[backend]


def test_torchs_warning_of_a_prototype_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.sparse.SparseSemiStructuredTensor, "_PROTOTYPE_WARNING_SHOWN", False)
    monkeypatch.setattr(SparseSemiStructuredTensorCUTLASS, "_PROTOTYPE_WARNING_SHOWN", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_cpu(mlp())


@ON_GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 64), (2, 5, 64), (0, 64)])
def test_products_on_a_gpu(shape: tuple[int, ...], pattern: str, dtype: torch.dtype) -> None:
    dense = nn.Linear(64, 96)
    masked(dense.weight, pattern)
    dense = dense.to("cuda", dtype)
    layer = to_semi_structured(nmstep.pack(dense, pattern)).model
    x = torch.randn(shape, device="cuda", dtype=dtype)
    with torch.no_grad():
        expected = F.linear(x.double(), dense.weight.double(), dense.bias.double())
        found = layer(x)
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)
        if x.dim() == 3:
            torch.testing.assert_close(layer(x.transpose(0, 1)), found.transpose(0, 1))
