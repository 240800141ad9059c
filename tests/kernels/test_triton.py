"""Triton's kernels against plain torch and the formulas: on a GPU, or in Triton's interpreter without one."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nmstep
from nmstep import AdamW, NMPattern, kernels, masks, sparsify
from nmstep.kernels import native
from nmstep.kernels.native import engine_for
from one_step import (
    GROUP,
    RECIPES,
    SETTINGS,
    check_masks,
    check_sparse_step,
    net,
    reference_step,
    step_,
    train,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def device(triton_device: torch.device) -> torch.device:
    assert engine_for(triton_device) == "triton"
    return triton_device


def layouts(m: int) -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(m)
    shapes: list[tuple[tuple[int, ...], int]] = [
        ((5, 4 * m), 1),  # Linear
        ((2 * m, 32), 0),  # GPT-2's Conv1D
        ((2 * m, 7), 0),
        ((3, 2 * m, 3, 3), 1),  # a convolution
        ((3, m + m // 2 + 1), 1),  # a short last group
        ((2, 2 * m + 1, 5), 1),
    ]
    found = [(torch.randn(shape, generator=generator), dim) for shape, dim in shapes]
    channels_last = found[3][0].contiguous(memory_format=torch.channels_last)
    return [*found, (channels_last, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "pattern", ["1:1", "2:4", "1:4", "3:4", "2:3", "5:7", "1:16", "9:16", "1:32", "7:100"]
)
def test_masks_and_splits_in_every_layout(pattern: str, dtype: torch.dtype, device: torch.device) -> None:
    for weight, dim in layouts(NMPattern.parse(pattern).m):
        check_masks(weight.to(device, dtype), pattern, dim)
        check_masks(weight.round().to(device, dtype), pattern, dim)  # many ties


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    for special in (math.nan, math.inf, -math.inf, 1e-41, -0.0, 3e38):
        for pattern in ("2:4", "3:4", "1:16"):
            weight = torch.randn(6, 32, generator=generator)
            weight[torch.rand(6, 32, generator=generator) < 0.4] = special
            check_masks(weight.to(device, dtype), pattern, 1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed(device: torch.device, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 24))
    n = data.draw(st.integers(1, m))
    shape = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    dim = data.draw(st.integers(0, len(shape) - 1))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, math.inf, math.nan, 1e-40])
    numbers = data.draw(st.lists(values, min_size=11, max_size=11))
    count = math.prod(shape)
    weight = torch.tensor(numbers, device=device).repeat(count // 11 + 1)[:count].reshape(shape)
    check_masks(weight, f"{n}:{m}", dim)


@pytest.mark.parametrize(("changes", "frozen"), SETTINGS)
@pytest.mark.parametrize("shape", [(3,), (17, 36), (50, 99)])
def test_a_dense_step_is_adams(
    changes: dict[str, Any], frozen: float | None, shape: tuple[int, ...], device: torch.device
) -> None:
    group = {**GROUP, **changes}
    p, m, v = (x.to(device) for x in (torch.randn(shape), torch.randn(shape) / 10, torch.rand(shape) + 0.1))
    exact = [x.double() for x in (p, m, v)]
    for t in range(1, 4):
        g = torch.randn(shape).to(device)
        before = v.double()
        sums = step_(group, p, g, m, v, step=t, frozen_eps_root=frozen, sums=True)
        reference_step(exact[0], g.double(), exact[1], exact[2], t, group, frozen)
        expected = ((v.double() - before).abs().sum(), v.double().sum(), v.double().square().sum())
        assert sums == pytest.approx([float(x) for x in expected], rel=1e-4, abs=1e-12)
    for ours, theirs in zip((p, m, v), exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["2:4", "1:16", "3:7"])
@pytest.mark.parametrize("frozen", [None, 1e-8])
def test_a_sparse_step_is_a_dense_one_on_the_latent_weight_and_a_split(
    pattern: str, frozen: float | None, dtype: torch.dtype, device: torch.device
) -> None:
    for start, dim in layouts(NMPattern.parse(pattern).m):
        parts = (start, start / 10, start.square() / 2, torch.randn_like(start))
        check_sparse_step(tuple(x.to(device, dtype) for x in parts), pattern, dim, frozen)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the compiled kernels work on other tensors there")
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_both_kinds_of_kernels_do_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for refine in (0.0, 0.5):
        for engine in ("triton", ""):
            monkeypatch.setenv("NMSTEP_KERNELS", engine)
            native._load.cache_clear()
            if engine == "" and engine_for(torch.device("cpu")) != "compiled":
                pytest.skip("no compiled kernels")
            torch.manual_seed(3)
            w, m, v, g = (torch.randn(24, 40).to(dtype) for _ in range(4))
            cut = kernels.Cut(pruned=masks.split_(w, "2:8"), pattern=NMPattern(2, 8), dim=1, refine=refine)
            step_(GROUP, w, g, m, v.square_(), step=7, cut=cut)
            found.append((w, cut.pruned, m, v))
        for ours, theirs in zip(*found[-2:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-7 if dtype == torch.float32 else 8e-3, atol=1e-7)


def test_a_frozen_variance_of_half_a_word_is_read_as_it_is(device: torch.device) -> None:
    w, m, v, g = (torch.randn(8, 32).to(device) for _ in range(4))
    narrow = v.square_().bfloat16()
    found = []
    for second in (narrow, narrow.float()):
        p, first = w.clone(), m.clone()
        cut = kernels.Cut(pruned=masks.split_(p, "2:4"), pattern=NMPattern(2, 4), dim=1)
        step_(GROUP, p, g, first, second, step=5, frozen_eps_root=1e-8, cut=cut)
        found.append((p, first))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_is_the_same_as_in_plain_torch(recipe: str, device: torch.device) -> None:
    found = []
    for kind in (False, None):
        model = net().to(device)
        optimizer = AdamW(model.parameters(), lr=1e-3, fused=kind)
        sparsifier = sparsify(model, optimizer, RECIPES[recipe]())
        train(model, optimizer, 12)
        found.append((model, sparsifier))
    (plain, theirs), (ours, mine) = found
    assert mine.switch_step == theirs.switch_step
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p == 0, q == 0)  # the same masks
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_parameters_of_a_kind_share_a_launch(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    from nmstep.kernels.gpu import launch

    launched = []
    inner = launch._launch
    monkeypatch.setattr(launch, "_launch", lambda *a, **k: launched.append(len(a[2])) or inner(*a, **k))
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5))).to(device)
    optimizer = AdamW(model.parameters())
    sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    launched.clear()
    model(torch.randn(2, 16, device=device)).sum().backward()
    optimizer.step()
    assert launched == [5, 5]  # the weights, the biases


COMPILE = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nmstep.kernels.gpu import programs

TYPES = {"rows": "*i64", "blocks": "*i32", "to": "*u8", "numbers": "*fp32", "partial": "*fp32"}

def compiled(program, target, **constants):
    names = program.arg_names
    source = ASTSource(
        fn=program,
        signature={n: "constexpr" if n in constants else TYPES[n] for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in constants},
    )
    return triton.compile(source, target=target).asm

def kind(n, m, flat, dtype):
    width = 1 << (m - 1).bit_length()
    return dict(N=n, M=m, WIDTH=width, GROUPS=2048 // width, FLAT=flat, EVEN=1 if flat else 16, WIDE=False,
                DTYPE=dtype, ALIGNED=True)

step = dict(SECOND="float32", SPARSE=True, VARIANCE="frozen", REFINED=True, COUPLED=False, SUMS=True)
for target, name in ((GPUTarget("cuda", 80, 32), "ptx"), (GPUTarget("cuda", 90, 32), "ptx"),
                     (GPUTarget("hip", "gfx942", 64), "amdgcn")):
    for n, m, flat, dtype in ((2, 4, True, "float32"), (1, 16, False, "bfloat16"), (5, 7, False, "float16")):
        constants = kind(n, m, flat, dtype)
        if dtype == "float16":
            compiled(programs.mask, target, **constants)
            compiled(programs.split, target, **constants)
        text = compiled(programs.adam_step, target, **constants, **step)[name]
        if name == "ptx" and dtype == "float32":
            # five tensors read and four written, four values at a time, and nothing else of that size
            assert len(re.findall(r"ld\\.global\\.v4", text)) == 20, text
            assert len(re.findall(r"st\\.global\\.v4", text)) == 12, text
            assert ".local" not in text
print("compiled")
"""


def test_they_compile_for_gpus_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("NMSTEP_KERNELS", raising=False)
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr
