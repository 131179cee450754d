"""csrc/cpu/line_graph_kernel.h against its reference, dpsim.kernels.line_graph: values and both backward passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_errors import error
from torch import Tensor

from dpsim.kernels import line_graph, native
from dpsim.kernels.line_graph import line_graph_update, line_graph_update_reference

pytestmark = pytest.mark.skipif(native.capabilities().path is None, reason="no native library in this installation")
SHAPES = [(32, 64, 32), (16, 48, 16), (7, 5, 7), (5, 3, 5), (9, 10, 0), (6, 0, 6), (1, 1, 1), (40, 17, 40)]  # d, C, S
Inputs = tuple[Tensor, ...]


def problem(d: int, c: int, s: int, dtype: torch.dtype, n_alpha: int = 17, n_beta: int = 11, size: float = 1) -> Inputs:
    """e, weight, p, q, switch, step, offsets, beta; uneven numbers of edges, vertices without any, of either kind."""
    g = torch.Generator().manual_seed(d + 100 * c)
    counts = torch.randint(0, 9, (n_alpha,), generator=g)
    counts[0] = counts[4] = counts[5] = counts[-1] = 0
    counts[6] = 60
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    m = int(offsets[-1])
    beta = torch.randint(1, n_beta, (m,), generator=g)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    arrays = (normal(m, d), normal(d, c + s) * size, normal(n_alpha, c + s), normal(n_beta, c + s))
    return *arrays, normal(m).abs(), normal(s), offsets, beta


def everything(function: Callable[..., tuple[Tensor, Tensor | None]], inputs: Inputs, act: str, c: int) -> list[Tensor]:
    """u, e', the gradients of an energy in everything but parameters, and all gradients of a loss on both."""
    *arrays, offsets, beta = (x.clone() for x in inputs)
    e, weight, p, q, switch, step = arrays = [x.requires_grad_() for x in arrays]
    u, e_new = function(*arrays, offsets, beta, act, c)
    values = [u] if e_new is None else [u, e_new]
    energy = sum((x.pow(2) + x.sin()).sum() for x in values)
    bars = torch.autograd.grad(energy, (e, p, q, switch), create_graph=True, materialize_grads=True)
    loss = energy.pow(2) * 1e-4 + sum((x.pow(2) + x.cos()).sum() for x in bars)
    grads = torch.autograd.grad(loss, arrays, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in (*values, *bars, *grads) if x.numel()]


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("isa", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_instruction_set(
    shape: tuple[int, int, int], isa: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {v: k for k, v in native.ISA_NAMES.items()}
    if isa > names[native.capabilities().isa]:
        pytest.skip(f"this machine has no {native.ISA_NAMES[isa]}")
    execution = native.Execution
    monkeypatch.setattr(native, "Execution", lambda threads, _: execution(threads, isa))
    inputs = problem(*shape, torch.float64)
    exact = everything(line_graph_update_reference, inputs, "silut:1.5", shape[1])
    assert max(error(everything(line_graph_update, inputs, "silut:1.5", shape[1]), exact)) < 1e-12


@pytest.mark.parametrize("act", ["tanh", "silu", "silut:3.0", "silut"])
def test_activations_in_both_precisions(act: str) -> None:
    inputs = problem(8, 6, 8, torch.float32, n_alpha=200)
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    exact = everything(line_graph_update_reference, doubled, act, 6)
    assert max(error(everything(line_graph_update, doubled, act, 6), exact)) < 1e-12
    mine = error(everything(line_graph_update, inputs, act, 6), exact)
    theirs = error(everything(line_graph_update_reference, inputs, act, 6), exact)
    assert all(a <= 2 * b + 5e-7 for a, b in zip(mine, theirs, strict=True)), (mine, theirs)


@pytest.mark.parametrize("shape", [(3, 2, 3), (3, 0, 3), (3, 2, 0)])
def test_against_finite_differences(shape: tuple[int, int, int]) -> None:
    *arrays, offsets, beta = problem(*shape, torch.float64, n_alpha=8, n_beta=4, size=0.5)
    counts = offsets.diff().clamp(max=3)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    m = int(offsets[-1])
    arrays[0], arrays[4], beta = arrays[0][:m], arrays[4][:m], beta[:m]

    def of(inputs: tuple[Tensor, ...], fixed: dict[int, Tensor]) -> Inputs:
        inputs = iter(inputs)  # type: ignore[assignment]
        whole = [fixed[k] if k in fixed else next(inputs) for k in range(6)]  # type: ignore[call-overload]
        u, e_new = line_graph_update(*whole, offsets, beta, "silu", shape[1])
        return tuple(x for x in (u, e_new) if x is not None and x.numel())

    everything = tuple(x.requires_grad_() for x in arrays if x.numel())
    assert torch.autograd.gradcheck(lambda *x: of(x, {} if shape[2] else {5: arrays[5]}), everything)
    fixed = {1: arrays[1].detach(), 5: arrays[5].detach()}  # force training goes twice through all but parameters
    moving = tuple(arrays[k] for k in (0, 2, 3, 4))
    assert torch.autograd.gradgradcheck(lambda *x: of(x, fixed), moving)


def test_extreme_arguments() -> None:
    """Arguments beyond the range of exp, and NaN, which stays."""
    x = torch.tensor([-1e4, -800.0, -90.0, -1e-8, 0.0, 1e-8, 90.0, 800.0, 1e4])
    offsets, beta = torch.tensor([0, len(x)]), torch.zeros(len(x), dtype=torch.int64)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    for dtype in (torch.float32, torch.float64):
        for act in ("tanh", "silu", "silut:3.0"):
            arrays = (x[:, None], one, zero, zero, torch.ones(len(x)), torch.ones(1))
            inputs = tuple(a.to(dtype) for a in arrays)
            got = line_graph_update(*inputs, offsets, beta, act, 0)[1]
            torch.testing.assert_close(got, line_graph_update_reference(*inputs, offsets, beta, act, 0)[1])
    x[3] = torch.nan
    got = line_graph_update(x[:, None], one, zero, zero, torch.ones(len(x)), torch.ones(1), offsets, beta, "silu", 0)[1]
    assert got is not None and torch.equal(got.isnan()[:, 0], x.isnan())


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_deterministic_for_a_number_of_threads(threads: int) -> None:
    inputs = problem(16, 20, 16, torch.float32, n_alpha=100)
    first, second = (everything(line_graph_update, inputs, "silut:3.0", 20) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_edges_at_all() -> None:
    inputs = list(problem(4, 3, 4, torch.float64))
    inputs[0], inputs[4], inputs[7] = inputs[0][:0], inputs[4][:0], inputs[7][:0]
    inputs[6] = torch.zeros_like(inputs[6])
    exact = everything(line_graph_update_reference, tuple(inputs), "silu", 3)
    assert max(error(everything(line_graph_update, tuple(inputs), "silu", 3), exact)) == 0


@pytest.mark.parametrize("wanted", [(0,), (2, 4), (3,), (1, 5), (0, 1, 2, 3, 4, 5)])
def test_only_what_is_wanted(wanted: tuple[int, ...]) -> None:
    *arrays, offsets, beta = problem(6, 5, 6, torch.float64)
    grads = []
    for function in (line_graph_update, line_graph_update_reference):
        own = [x.clone().requires_grad_(k in wanted) for k, x in enumerate(arrays)]
        u, e_new = function(*own, offsets, beta, "silu", 5)
        assert e_new is not None
        grads.append(torch.autograd.grad(u.sin().sum() + e_new.pow(2).sum(), [own[k] for k in wanted]))
    assert max(error(list(grads[0]), list(grads[1]))) < 1e-13


def test_reference_in_chunks_and_other_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not serve, the reference takes some vertices at a time: the same numbers."""
    monkeypatch.setattr(line_graph, "CHUNK_BYTES", 1000)
    *arrays, offsets, beta = problem(6, 5, 6, torch.float64)
    results = []
    for function in (line_graph_update, line_graph_update_reference):
        own = [x.clone().requires_grad_(k not in (1, 5)) for k, x in enumerate(arrays)]
        u, e_new = function(*own, offsets, beta, "gelu", 5)
        assert e_new is not None
        energy = u.sin().sum() + e_new.pow(2).sum()
        grads = torch.autograd.grad(energy, [x for x in own if x.requires_grad])
        results.append([x.detach() for x in (u, e_new, *grads)])
    assert max(error(*results)) < 1e-13


def test_second_order_is_differentiable_any_number_of_times() -> None:
    *arrays, offsets, beta = problem(3, 2, 3, torch.float64)
    e = arrays[0].requires_grad_()
    y = line_graph_update(*arrays, offsets, beta, "silu", 2, second_order=True)[0].sum()
    for _ in range(3):
        (g,) = torch.autograd.grad(y, e, create_graph=True)
        y = g.pow(2).sum()
    assert y > 0
