"""csrc/cpu/radial_kernel.h against its reference, dpsim.kernels.radial: values, derivatives, parameter gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpsim.kernels import native, radial
from dpsim.models.nets import MLP

pytestmark = pytest.mark.skipif(native.capabilities().path is None, reason="no native library in this installation")
NETS = [
    ([25, 50, 100], False),
    ([25, 50], True),
    ([7, 14, 14], True),
    ([2, 4, 8], False),
    ([1, 2], False),
    ([16], False),
]


def net(widths: list[int], timestep: bool, dtype: torch.dtype) -> MLP:
    generator = torch.Generator().manual_seed(1)
    return MLP(1, widths, "tanh", timestep=timestep, generator=generator, dtype=torch.float64).to(dtype)


def problem(channels: int, dtype: torch.dtype, n_centers: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    """env, s, offsets with very uneven numbers of neighbours, none included."""
    g = torch.Generator().manual_seed(2)
    counts = torch.randint(0, 40, (n_centers,), generator=g)
    counts[3] = counts[-1] = 0
    counts[5] = 200
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    n = int(offsets[-1])
    env = torch.randn(n, channels, generator=g, dtype=torch.float64)
    s = torch.rand(n, generator=g, dtype=torch.float64) * 8
    return env.to(dtype), s.to(dtype), offsets


def everything(function: object, env: Tensor, s: Tensor, offsets: Tensor, mlp: MLP) -> list[Tensor]:
    """A, the gradients of an energy in env and s, and parameter gradients of a loss on energy and those gradients."""
    env, s = env.clone().requires_grad_(), s.clone().requires_grad_()
    a = function(env, s, offsets, mlp.tensors())  # type: ignore[operator]
    energy = (a.pow(2).sum((1, 2)) + a.sin().sum((1, 2))).sum()
    env_bar, s_bar = torch.autograd.grad(energy, (env, s), create_graph=True)
    loss = energy.pow(2) * 1e-6 + env_bar.pow(2).sum() + (s_bar * torch.arange(len(s), dtype=s.dtype)).sum() * 1e-3
    grads = torch.autograd.grad(loss, list(mlp.parameters()))
    return [x.detach() for x in (a, env_bar, s_bar, *grads)]


def error(values: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((v.double() - e).abs().max() / e.abs().max()) for v, e in zip(values, exact, strict=True)]


@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize(("widths", "timestep"), NETS)
def test_double_precision(widths: list[int], timestep: bool, channels: int) -> None:
    mlp = net(widths, timestep, torch.float64)
    exact = everything(radial.radial_contract_reference, *problem(channels, torch.float64), mlp)
    got = everything(radial.radial_contract, *problem(channels, torch.float64), mlp)
    assert max(error(got, exact)) < 1e-12


@pytest.mark.parametrize(("widths", "timestep"), NETS)
def test_single_precision_is_as_good_as_the_reference(widths: list[int], timestep: bool) -> None:
    mlp = net(widths, timestep, torch.float32)
    doubled = net(widths, timestep, torch.float32).double()
    env, s, offsets = problem(4, torch.float32)
    exact = everything(radial.radial_contract_reference, env.double(), s.double(), offsets, doubled)
    reference = everything(radial.radial_contract_reference, env, s, offsets, mlp)
    got = everything(radial.radial_contract, env, s, offsets, mlp)
    for k, (mine, theirs) in enumerate(zip(error(got, exact), error(reference, exact), strict=True)):
        # Gradients of parameters are sums over all edges of terms of either sign: how well a reference rounds them
        # depends on the machine's BLAS (1e-6 on one, 4e-7 on another), so it is no measure of the last digit.
        assert mine <= 2 * theirs + (5e-7 if k < 3 else 4e-6)


def test_without_kept_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large systems evaluate G again instead of keeping it: the same numbers."""
    mlp = net([6, 12], True, torch.float64)
    kept = everything(radial.radial_contract, *problem(4, torch.float64), mlp)
    monkeypatch.setattr(radial, "KEEP_BYTES", 0)
    again = everything(radial.radial_contract, *problem(4, torch.float64), mlp)
    assert max(error(again, kept)) < 1e-13


@pytest.mark.parametrize("isa", [1, 2, 3])
def test_every_instruction_set(isa: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {v: k for k, v in native.ISA_NAMES.items()}
    if isa > names[native.capabilities().isa]:
        pytest.skip(f"this machine has no {native.ISA_NAMES[isa]}")
    mlp = net([25, 50], True, torch.float64)
    exact = everything(radial.radial_contract_reference, *problem(4, torch.float64), mlp)
    execution = native.Execution
    monkeypatch.setattr(native, "Execution", lambda threads, _: execution(threads, isa))
    assert max(error(everything(radial.radial_contract, *problem(4, torch.float64), mlp), exact)) < 1e-12


def test_deterministic_for_a_number_of_threads() -> None:
    mlp = net([25, 50], False, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = everything(radial.radial_contract, *problem(4, torch.float32), mlp)
        second = everything(radial.radial_contract, *problem(4, torch.float32), mlp)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_embedding_alone() -> None:
    mlp = net([25, 50], True, torch.float64)
    s = problem(4, torch.float64)[1]
    got, exact = radial.embedding(s, mlp.tensors()), radial.embedding_reference(s, mlp.tensors())
    u, v = torch.randn_like(exact[0]), torch.randn_like(exact[0])
    grads = [torch.autograd.grad((g * u).sum() + (dg * v).sum(), list(mlp.parameters())) for g, dg in (got, exact)]
    assert max(error([x.detach() for x in got], [x.detach() for x in exact])) < 1e-13
    assert max(error(list(grads[0]), list(grads[1]))) < 1e-12


def test_other_activations_use_the_reference() -> None:
    mlp = MLP(1, [5, 10], "gelu", generator=torch.Generator().manual_seed(0))
    args = problem(4, torch.float64)
    assert torch.equal(
        radial.radial_contract(*args, mlp.tensors()), radial.radial_contract_reference(*args, mlp.tensors())
    )
