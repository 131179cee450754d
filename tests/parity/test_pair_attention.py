"""csrc/cpu/pair_attention_kernel.h against its reference, dpsim.kernels.pair_attention: values and both backwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernel_errors import error
from torch import Tensor

from dpsim.kernels import native
from dpsim.kernels.pair_attention import Attention, pair_attention, pair_attention_reference

pytestmark = pytest.mark.skipif(native.capabilities().path is None, reason="no native library in this installation")
KIND = Attention(heads=4, gate=True, of_g=True, of_h=False, shift=20.0, n_slots=60)
SHARP = replace(KIND, shift=0.0, n_slots=0)
KINDS = [KIND, replace(KIND, of_h=True), replace(KIND, of_g=False, of_h=True, heads=3), replace(KIND, gate=False)]
KINDS += [SHARP, replace(SHARP, gate=False, of_h=True, heads=1), replace(KIND, n_slots=12)]
Inputs = tuple[Tensor, ...]


def problem(kind: Attention, d: int, dtype: torch.dtype, n: int = 7) -> Inputs:
    """g, h, w, query_key, out, offsets; atoms without neighbours and one with many."""
    generator = torch.Generator().manual_seed(d + kind.heads)
    counts = torch.randint(0, 12, (n,), generator=generator)
    counts[0] = counts[-1] = 0
    counts[2] = 35
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    m, n_values = int(offsets[-1]), d * kind.of_g + 3 * kind.of_h

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * size).to(dtype)

    w = torch.rand(m, 1, generator=generator, dtype=torch.float64).to(dtype) if kind.n_slots else normal(m, 1) * 0 + 1
    query_key, out = normal(d, kind.heads * d, size=1 / d), normal(kind.heads * n_values, n_values, size=d**-0.5)
    return normal(m, d), normal(m, 3, size=0.7), w, query_key, out, offsets


def everything(function: Callable[..., Tensor], inputs: Inputs, kind: Attention) -> list[Tensor]:
    """r, gradients of a weighted sum of r in g, h and w, and all gradients of a weighted sum of both."""
    *arrays, offsets = (x.clone() for x in inputs)
    arrays = [x.requires_grad_() for x in arrays]
    r = function(*arrays, offsets, kind)
    r_bar, *tangents = (torch.linspace(-1, 2, x.numel()).sin().to(x.dtype).view(x.shape) for x in (r, *arrays[:3]))
    r_bar.requires_grad_()
    bars = torch.autograd.grad((r * r_bar).sum(), arrays[:3], create_graph=True)
    loss = 0.1 * (r * r_bar).sum() + sum((x * t).sum() for x, t in zip(bars, tangents, strict=True))
    grads = torch.autograd.grad(loss, [*arrays, r_bar])
    return [x.detach() for x in (r, *bars, *grads)]


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
@pytest.mark.parametrize("isa", [1, 2, 3])
@pytest.mark.parametrize("d", [32, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set(
    kind: Attention, d: int, isa: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {v: k for k, v in native.ISA_NAMES.items()}
    if isa > names[native.capabilities().isa]:
        pytest.skip(f"this machine has no {native.ISA_NAMES[isa]}")
    execution = native.Execution
    monkeypatch.setattr(native, "Execution", lambda threads, _: execution(threads, isa))
    inputs = problem(kind, d, torch.float64)
    exact = everything(pair_attention_reference, inputs, kind)
    assert max(error(everything(pair_attention, inputs, kind), exact)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_is_as_good_as_the_reference(kind: Attention) -> None:
    inputs = problem(kind, 32, torch.float32, n=60)
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    exact = everything(pair_attention_reference, doubled, kind)

    def of(value: Tensor, x: Tensor) -> float:
        return float((value.double() - x).square().mean().sqrt())

    functions = pair_attention, pair_attention_reference
    mine, theirs = ([of(v, x) for v, x in zip(everything(f, inputs, kind), exact, strict=True)] for f in functions)
    assert all(a <= 2 * b for a, b in zip(mine, theirs, strict=True)), (mine, theirs)


@pytest.mark.parametrize("kind", [replace(KIND, heads=2, of_h=True, shift=2.0), replace(SHARP, heads=2)])
def test_against_finite_differences(kind: Attention) -> None:
    *arrays, offsets = problem(kind, 2, torch.float64, n=5)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), offsets.diff().clamp(max=3).cumsum(0)])
    arrays = [x[: int(offsets[-1])] if k < 3 else x for k, x in enumerate(arrays)]

    def of(*inputs: Tensor) -> Tensor:
        return pair_attention(*inputs, *arrays[len(inputs) :], offsets, kind)

    assert torch.autograd.gradcheck(of, tuple(x.requires_grad_() for x in arrays))
    assert torch.autograd.gradgradcheck(of, tuple(arrays[:3]))  # force training goes twice through all but weights


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_library_in_chunks(kind: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = problem(kind, 5, torch.float64)
    exact = everything(pair_attention, inputs, kind)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr("dpsim.kernels.pair_attention.CHUNK", 10_000)
    assert max(error(everything(pair_attention, inputs, kind), exact)) < 1e-12


def test_large_logits_and_no_edges_at_all() -> None:
    g, h, w, query_key, out, offsets = problem(SHARP, 5, torch.float32)
    inputs = (g * 100, h, w, query_key, out, offsets)
    torch.testing.assert_close(pair_attention(*inputs, SHARP), pair_attention_reference(*inputs, SHARP))
    empty = [x[:0].requires_grad_() for x in (g, h, w)]
    r = pair_attention(*empty, query_key, out, torch.zeros(3, dtype=torch.int64), KIND)
    assert r.shape == (0, 5) and torch.autograd.grad(r.sum(), empty[0])[0].shape == (0, 5)
