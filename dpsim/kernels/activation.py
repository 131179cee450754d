"""The activation functions by name (DeePMD-kit v2, II.A.5; silut: DPA-3, Eq. 24), and their derivatives."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

GELU_C = math.sqrt(2 / math.pi)


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(GELU_C * (x + 0.044715 * x**3)))


def _gelu_slope(x: Tensor) -> Tensor:
    t = torch.tanh(GELU_C * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU_C * (1 + 3 * 0.044715 * x * x)


def _silu_slope(x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    return y * (1 + x * (1 - y))


def silut_constants(name: str) -> tuple[float, float, float]:
    """t, a = silu'(t) and b = silu(t) of the function called "silut:t" (3 where t is left out).

    silut(x) = silu(x) below t, tanh(a (x - t)) + b above: bounded, with a continuous slope.
    """
    t = float(name.partition(":")[2] or 3)
    y = 1 / (1 + math.exp(-t))
    return t, y * (1 + t * (1 - y)), t * y


def _silut(name: str) -> Callable[[Tensor], Tensor]:
    t, a, b = silut_constants(name)
    return lambda x: torch.where(x < t, nn.functional.silu(x), torch.tanh(a * (x - t)) + b)


def _silut_slope(name: str) -> Callable[[Tensor], Tensor]:
    t, a, _ = silut_constants(name)
    return lambda x: torch.where(x < t, _silu_slope(x), a * (1 - torch.tanh(a * (x - t)) ** 2))


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function called `name`; gelu is the tanh form, as in the paper."""
    if name.startswith("silut"):
        return _silut(name)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": torch.tanh,
        "gelu": _gelu,
        "gelu_tf": _gelu,
        "relu": torch.relu,
        "relu6": lambda x: torch.clamp(x, 0, 6),
        "softplus": nn.functional.softplus,
        "sigmoid": torch.sigmoid,
        "silu": nn.functional.silu,
        "linear": lambda x: x,
        "none": lambda x: x,
    }
    return functions[name]


def slope(name: str) -> Callable[[Tensor], Tensor]:
    """The derivative of `activation(name)`, differentiable itself."""
    if name.startswith("silut"):
        return _silut_slope(name)
    slopes: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": lambda x: 1 - torch.tanh(x) ** 2,
        "gelu": _gelu_slope,
        "gelu_tf": _gelu_slope,
        "relu": lambda x: (x > 0).to(x.dtype),
        "relu6": lambda x: ((x > 0) & (x < 6)).to(x.dtype),
        "softplus": torch.sigmoid,
        "sigmoid": lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
        "silu": _silu_slope,
        "linear": torch.ones_like,
        "none": torch.ones_like,
    }
    return slopes[name]
