"""Products with packed weights in Triton: against float64, on a GPU, or in Triton's interpreter without one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmstep
from nmstep import NMPattern
from nmstep.kernels.packed import PackedProduct
from nmstep.quantizing import quantized
from nmstep.tiles import Tiling, pack_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PATTERNS = ["2:4", "1:4", "1:8", "1:16", "3:8", "5:7", "1:64", "4:64", "9:33"]


@pytest.fixture(autouse=True)
def device(triton_device: torch.device) -> torch.device:
    torch.manual_seed(0)
    return triton_device


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the programs that a test launches, each once in a row."""
    from nmstep.kernels.gpu import packed

    names: list[str] = []
    inner = packed._launch

    def note(program: Any, *arguments: Any, **constants: Any) -> None:
        names.append(getattr(program, "__name__", "") or program.fn.__name__)
        inner(program, *arguments, **constants)

    def note_unpacked(*arguments: Any) -> Tensor:
        names.append("unpack")
        return unpacked(*arguments)

    unpacked = packed.unpacked
    monkeypatch.setattr(packed, "_launch", note)
    monkeypatch.setattr(packed, "unpacked", note_unpacked)
    return names


def dense(rows: int, columns: int, pattern: str, dtype: torch.dtype) -> Tensor:
    """A weight that keeps N random values of each group, as far as the last one has so many."""
    n, m = (int(part) for part in pattern.split(":"))
    generator = np.random.default_rng(rows + columns)
    weight = np.zeros((rows, columns))
    for row in range(rows):
        for start in range(0, columns, m):
            size = min(m, columns - start)
            for place in generator.permutation(size)[:n]:
                weight[row, start + place] = generator.normal() or 1.0
    return torch.from_numpy(weight).to(dtype)


class Case:
    """A packed weight, and the dense one that it stands for."""

    def __init__(
        self, rows: int, columns: int, pattern: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight = dense(rows, columns, pattern, dtype).to(device)
        self.tiling = Tiling(rows, columns, NMPattern.parse(pattern))
        self.values, self.indices = pack_rows(self.weight, self.tiling.pattern)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return PackedProduct(self.tiling)(x, self.values, self.indices, None, bias)

    def check(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        found = self(x, bias)
        added = 0 if bias is None else bias.double()
        expected = x.double() @ self.weight.double().T + added
        size = x.double().abs() @ self.weight.double().abs().T
        eps = torch.finfo(x.dtype).eps
        assert found.dtype == x.dtype
        assert bool(((found.double() - expected).abs() <= 2e-6 * size + eps * expected.abs()).all())
        return found


@pytest.mark.parametrize("batch", [1, 6, 20, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_values(batch: int, dtype: torch.dtype, device: torch.device) -> None:
    case = Case(37, 72, "2:4", torch.float32, device)
    values, scales, _ = quantized(case.values)
    x, bias = torch.randn(batch, 72, device=device).to(dtype), torch.randn(37, device=device).to(dtype)
    step = case.weight.double().abs().amax(1, keepdim=True) / 127
    expected = x.double() @ ((case.weight.double() / step).round() * step).T + bias.double()
    found = PackedProduct(case.tiling)(x, values, case.indices, scales, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-5 + torch.finfo(dtype).eps
    )


def slices(monkeypatch: pytest.MonkeyPatch, multiprocessors: int) -> None:
    """Makes the device one that wants so many programs at once that products are cut into slices."""
    from nmstep.kernels.gpu import packed

    monkeypatch.setattr(packed, "_multiprocessors", lambda _: multiprocessors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern(pattern: str, dtype: torch.dtype, device: torch.device) -> None:
    case = Case(37, NMPattern.parse(pattern).m + 70, pattern, dtype, device)
    for batch in (1, 3, 17):
        x = torch.randn(batch, case.tiling.columns, device=device).to(dtype)
        case.check(x)
        case.check(x, torch.randn(37, device=device).to(dtype))


@pytest.mark.parametrize("shape", [(1, 1), (16, 4), (17, 3), (64, 96), (130, 7), (5, 300)])
@pytest.mark.parametrize("batch", [1, 3, 33])
def test_any_size(shape: tuple[int, int], batch: int, device: torch.device) -> None:
    case = Case(*shape, "2:4", torch.float32, device)
    case.check(torch.randn(batch, shape[1], device=device), torch.randn(shape[0], device=device))


@pytest.mark.parametrize("values", DTYPES)
@pytest.mark.parametrize("inputs", DTYPES)
def test_values_and_inputs_of_any_two_dtypes(
    values: torch.dtype, inputs: torch.dtype, device: torch.device
) -> None:
    case = Case(20, 70, "2:4", values, device)
    for batch in (2, 6):
        x = torch.randn(batch, 70, device=device).to(inputs)
        case.check(x, torch.randn(20, device=device).to(values))


@pytest.mark.parametrize("multiprocessors", [1, 100])
@pytest.mark.parametrize("batch", [1, 4, 20])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_slices_add_up_and_do_so_in_one_order(
    batch: int,
    multiprocessors: int,
    dtype: torch.dtype,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slices(monkeypatch, multiprocessors)
    case = Case(33, 390, "2:4", dtype, device)
    x, bias = torch.randn(batch, 390, device=device).to(dtype), torch.randn(33, device=device)
    found = case.check(x, bias)
    for _ in range(3):
        assert torch.equal(case(x, bias), found)


@pytest.mark.parametrize(
    ("pattern", "batch", "program"),
    [
        ("2:4", 1, "gather"),
        ("2:4", 4, "gather"),
        ("2:4", 5, "expand"),
        ("2:4", 64, "expand"),
        ("2:4", 65, "unpack"),
        ("1:16", 16, "gather"),
        ("1:16", 17, "expand"),
        ("1:64", 64, "gather"),
        ("1:64", 65, "unpack"),
    ],
)
def test_rows_and_pattern_choose_the_program(
    pattern: str, batch: int, program: str, device: torch.device, launched: list[str]
) -> None:
    case = Case(16, 64, pattern, torch.float32, device)
    case.check(torch.randn(batch, 64, device=device), torch.randn(16, device=device))
    assert launched == [program]


@pytest.mark.parametrize("values", DTYPES)
@pytest.mark.parametrize("into", DTYPES)
@pytest.mark.parametrize("pattern", ["2:4", "5:7", "1:64"])
def test_unpacked_is_the_dense_weight_to_the_bit(
    pattern: str, into: torch.dtype, values: torch.dtype, device: torch.device
) -> None:
    from nmstep.kernels.gpu.packed import unpacked

    case = Case(70, 200, pattern, values, device)
    found = unpacked(case.tiling, case.values, case.indices, into)
    assert torch.equal(found, case.weight.to(into))


@pytest.mark.parametrize("pattern", ["2:4", "3:5", "1:16", "3:33"])
@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("columns", [70, 96])
def test_any_word_reads_the_input_or_beside_it_zeros(
    columns: int, pattern: str, batch: int, device: torch.device
) -> None:
    """Places that no packing writes: nothing beside the input is read, where NaN stands."""
    case = Case(20, columns, pattern, torch.float32, device)
    around = torch.full((batch + 2, columns), torch.nan, device=device)
    around[1:-1] = 1.0
    for words in (torch.full_like(case.indices, -1), torch.randint_like(case.indices, -(2**31), 2**31 - 1)):
        case.indices = words
        found = case(around[1:-1])
        assert bool((found.abs() <= case.values.abs().sum() * 1.01).all())


@pytest.mark.parametrize("pattern", ["3:5", "3:33"])
def test_a_place_beyond_its_group_is_no_column_of_the_next(pattern: str, device: torch.device) -> None:
    case = Case(20, 70, pattern, torch.float32, device)
    case.indices = torch.full_like(case.indices, -1)
    assert not case(torch.ones(64, 70, device=device)).any()


def test_layers_of_a_model_run_on_it(device: torch.device, launched: list[str]) -> None:
    model = nn.Sequential(nn.Conv2d(8, 20, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 24))
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight.mul_(nmstep.nm_mask(layer.weight, "2:4"))
        model.to(device)
        packed, x = nmstep.pack(model, fallback=False), torch.randn(3, 8, 2, 2, device=device)
        torch.testing.assert_close(packed(x), model(x))
    assert launched == ["expand", "gather"]
    with pytest.raises(RuntimeError, match="no backward pass"):
        packed(x.requires_grad_()).sum().backward()


def test_inputs_of_any_strides_and_none_at_all(device: torch.device) -> None:
    case = Case(20, 32, "2:4", torch.float32, device)
    x = torch.randn(32, 3, 2, device=device).permute(1, 2, 0)
    torch.testing.assert_close(case(x), F.linear(x, case.weight))
    assert case(torch.empty(2, 0, 32, device=device)).shape == (2, 0, 20)


def test_what_the_programs_do_not_take_is_unpacked(device: torch.device, launched: list[str]) -> None:
    case = Case(20, 32, "2:4", torch.float32, device)
    x = torch.randn(2, 32, device=device, dtype=torch.float64)
    torch.testing.assert_close(case(x), F.linear(x, case.weight.double()))
    case.values = torch.stack([case.values, case.values], 3)[..., 0]
    torch.testing.assert_close(case(x.float()), F.linear(x.float(), case.weight))
    assert not launched


COMPILE = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nmstep.kernels.gpu import packed_programs as programs

def compiled(program, target, dtype, **constants):
    names = program.arg_names
    of = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}[dtype]
    stored = "*i16" if dtype == "bfloat16" else of
    x = "*fp32" if constants.get("AT") == 4 else of  # turned, and of that dtype
    types = {"words": "*i32", "partial": "*fp32", "x": x, "values": of, "bias": of, "y": stored, "weight": stored}
    even = ("rows", "columns", "kept", "depth")
    source = ASTSource(
        fn=program,
        signature={n: "constexpr" if n in constants else types.get(n, "i32") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in types or n in even},
    )
    options = {"num_stages": 1} if program is programs.expand else {}
    return triton.compile(source, target=target, options=options).asm

ends = dict(WHOLE=False, BIASED=True)
for target, name in ((GPUTarget("cuda", 80, 32), "ptx"), (GPUTarget("cuda", 90, 32), "ptx"),
                     (GPUTarget("hip", "gfx942", 64), "amdgcn")):
    for n, m, dtype in ((2, 4, "bfloat16"), (5, 7, "float32")):
        width = 1 << (m - 1).bit_length()
        bits = (m - 1).bit_length()
        pattern = dict(N=n, M=m, FIELDS=32 // bits, BITS=bits, BF16=dtype == "bfloat16")
        one = compiled(programs.gather, target, dtype, **pattern, **ends, K=128, AT=1, EXACT=m == 4)
        few = compiled(programs.gather, target, dtype, **pattern, **ends, K=64, AT=4, EXACT=m == 4)
        wide = dtype == "float32"
        piece = dict(WIDTH=width, G=(32 if wide else 128) // width, R=64)
        many = compiled(programs.expand, target, dtype, **pattern, **ends, **piece, AT=16, WIDE=wide)
        compiled(programs.unpack, target, dtype, **pattern, **piece)
        if name == "ptx" and dtype == "bfloat16":
            loop = one["ttgir"].partition("scf.for")[2].partition("scf.yield")[0]
            assert "convert_layout" not in loop, loop  # nothing moves between threads
            # two of values and four of words, which is all but the inputs
            assert len(re.findall(r"ld\\.global\\S*v4", one[name])) == 6, one[name]
            # three of the weight, and an input of all four rows for each of eight values
            assert len(re.findall(r"ld\\.global\\S*v4", few[name])) == 11, few[name]
            assert "mma.sync" in many[name]
            assert not any(".local" in asm[name] for asm in (one, few, many))
compiled(programs.add_slices, GPUTarget("cuda", 90, 32), "bfloat16", BLOCK=1024, BF16=True, BIASED=True)
print("compiled")
"""


def test_they_compile_for_gpus_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("NMSTEP_KERNELS", raising=False)
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr
