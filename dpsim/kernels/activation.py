"""The activation functions by name (DeePMD-kit v2, II.A.5), and their derivatives."""

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


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function called `name`; gelu is the tanh form, as in the paper."""
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
