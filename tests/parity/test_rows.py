"""dpsim.kernels.rows against its reference and against finite differences."""

import pytest
import torch

from dpsim.kernels.rows import scaled_rows, scaled_rows_reference


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("factor", [True, False])
def test_values_and_two_derivatives(center: bool, factor: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 7, generator=g, dtype=torch.float64, requires_grad=True)
    f = torch.randn(3, 4, 1, generator=g, dtype=torch.float64, requires_grad=True) if factor else 1.7
    inputs = (x, f) if isinstance(f, torch.Tensor) else (x,)

    def function(x: torch.Tensor, f: torch.Tensor | float = 1.7) -> torch.Tensor:
        return scaled_rows(x, f, center, 1e-3)

    torch.testing.assert_close(function(*inputs), scaled_rows_reference(x, f, center, 1e-3), rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_single_precision_is_as_good_as_the_reference() -> None:
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(1))
    exact = scaled_rows_reference(x.double(), 1.0, True, 1e-5)
    errors = [float((f(x, 1.0, True, 1e-5).double() - exact).abs().max()) for f in (scaled_rows, scaled_rows_reference)]
    assert errors[0] <= 2 * errors[1] + 1e-7
