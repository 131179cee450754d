"""What the parity tests of several kernels measure alike."""

from __future__ import annotations

from torch import Tensor


def error(values: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Largest error of each value, relative to the largest number of the exact one, or to 1."""
    return [
        float((v.double() - x).abs().max() / x.abs().max().clamp(min=1)) for v, x in zip(values, exact, strict=True)
    ]
