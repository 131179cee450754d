"""csrc/cpu/neighbor_sum_kernel.h against its reference, dpsim.kernels.neighbor_sum, and against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_errors import error
from torch import Tensor

from dpsim.kernels import native
from dpsim.kernels.neighbor_sum import neighbor_dot, neighbor_dot_reference, neighbor_sum, neighbor_sum_reference

pytestmark = pytest.mark.skipif(native.capabilities().path is None, reason="no native library in this installation")
SIZES = [(3, 128), (3, 5), (1, 1), (2, 64), (4, 16), (7, 33), (32, 24)]  # K, C


def problem(k: int, c: int, dtype: torch.dtype, gathered: bool, n: int = 13) -> list[Tensor | None]:
    """h, x, offsets, index, with atoms that have no neighbours and one with many."""
    g = torch.Generator().manual_seed(k + c)
    counts = torch.randint(0, 9, (n,), generator=g)
    counts[0] = counts[5] = counts[-1] = 0
    counts[2] = 50
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    m = int(offsets[-1])
    h = torch.randn(m, k, generator=g, dtype=torch.float64).to(dtype)
    x = torch.randn(n if gathered else m, c, generator=g, dtype=torch.float64).to(dtype)
    return [h, x, offsets, torch.randint(1, n, (m,), generator=g) if gathered else None]


def with_weight(inputs: list[Tensor | None]) -> list[Tensor | None]:
    h, x, *_ = inputs
    assert h is not None and x is not None
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(h.shape[1], x.shape[1], generator=generator, dtype=torch.float64).to(h.dtype)
    return [*inputs, weight]


def everything(function: Callable[..., Tensor], inputs: list[Tensor | None]) -> list[Tensor]:
    """The value, the gradients of an energy in all numbers, and the gradients of a loss on all of that, twice."""
    given = [x.clone().requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs]
    leaves = [x for x in given if x is not None and x.requires_grad]
    z = function(*given)
    energy = (z.pow(2) + z.sin()).sum()
    first = torch.autograd.grad(energy, leaves, create_graph=True)
    loss = sum((g.pow(2) + g.cos()).sum() for g in first)
    second = torch.autograd.grad(loss, leaves, create_graph=True)
    third = torch.autograd.grad(sum(g.pow(2).sum() for g in second), leaves)
    return [y.detach() for y in (z, *first, *second, *third)]


@pytest.mark.parametrize("isa", [1, 2, 3])
@pytest.mark.parametrize("gathered", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_every_instruction_set(
    size: tuple[int, int], gathered: bool, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {v: k for k, v in native.ISA_NAMES.items()}
    if isa > names[native.capabilities().isa]:
        pytest.skip(f"this machine has no {native.ISA_NAMES[isa]}")
    inputs = problem(*size, torch.float64, gathered)
    exact = everything(neighbor_sum_reference, inputs)
    execution = native.Execution
    for threads in (1, 2, 3):
        monkeypatch.setattr(native, "Execution", lambda *_, threads=threads: execution(threads, isa))
        assert max(error(everything(neighbor_sum, inputs), exact)) < 1e-12
        first, second = (everything(neighbor_sum, inputs) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_with_a_weight(size: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = native.Execution
    monkeypatch.setattr(native, "Execution", lambda *_: execution(threads, 0))
    inputs = with_weight(problem(*size, torch.float64, gathered=True))
    assert max(error(everything(neighbor_sum, inputs), everything(neighbor_sum_reference, inputs))) < 1e-12


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_products_of_neighbors(size: tuple[int, int], weighted: bool) -> None:
    h, x, offsets, index, weight = with_weight(problem(*size, torch.float64, gathered=True))
    assert x is not None and h is not None
    z = torch.linspace(-1, 1, len(x) * h.shape[1] * x.shape[1], dtype=x.dtype).view(len(x), h.shape[1], x.shape[1])
    inputs = [z[:, 0], x, offsets, index, weight] if weighted else [z, x, offsets, index]
    assert max(error(everything(neighbor_dot, inputs), everything(neighbor_dot_reference, inputs))) < 1e-12


@pytest.mark.parametrize("gathered", [True, False])
def test_single_precision_is_as_good_as_the_reference(gathered: bool) -> None:
    h, x, offsets, index = problem(3, 64, torch.float32, gathered, n=200)
    assert h is not None and x is not None
    exact = neighbor_sum_reference(h.double(), x.double(), offsets, index)  # type: ignore[arg-type]
    errors = [
        float((f(h, x, offsets, index).double() - exact).abs().max()) for f in (neighbor_sum, neighbor_sum_reference)
    ]  # type: ignore[arg-type]
    assert errors[0] <= 2 * errors[1] + 1e-7


@pytest.mark.parametrize("gathered", [True, False])
def test_against_finite_differences(gathered: bool) -> None:
    h, x, offsets, index = problem(3, 2, torch.float64, gathered, n=6)
    assert h is not None and x is not None and offsets is not None

    def function(h: Tensor, x: Tensor) -> Tensor:
        return neighbor_sum(h, x, offsets, index)

    inputs = (h.requires_grad_(), x.requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_tensors_that_are_not_contiguous() -> None:
    h, x, offsets, index, weight = with_weight(problem(4, 16, torch.float64, gathered=True))
    assert h is not None and x is not None and weight is not None
    inputs = [h.t().contiguous(), x.t().contiguous(), offsets, index, weight.t().contiguous()]
    of_columns = [
        lambda h, x, offsets, index, weight, f=f: f(h.t(), x.t(), offsets, index, weight.t())
        for f in (neighbor_sum, neighbor_sum_reference)
    ]
    assert max(error(*(everything(f, inputs) for f in of_columns))) < 1e-12


def test_no_edges_at_all() -> None:
    x = torch.ones(4, 5, requires_grad=True)
    z = neighbor_sum(torch.zeros(0, 3), x, torch.zeros(3, dtype=torch.int64), torch.zeros(0).long())
    assert z.shape == (2, 3, 5) and not z.any()
    assert not torch.autograd.grad(z.sum(), x)[0].any()


def test_bad_index_is_refused() -> None:
    with pytest.raises(native.NativeError, match="`index` of edge 1 is 4"):
        neighbor_sum(torch.zeros(2, 3), torch.ones(4, 5), torch.tensor([0, 2]), torch.tensor([0, 4]))
