"""The activation functions by name (DeePMD-kit v2, II.A.5)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

GELU_C = math.sqrt(2 / math.pi)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function called `name`; gelu is the tanh form, as in the paper."""
    return {
        "tanh": torch.tanh,
        "gelu": lambda x: 0.5 * x * (1 + torch.tanh(GELU_C * (x + 0.044715 * x**3))),
        "gelu_tf": lambda x: 0.5 * x * (1 + torch.tanh(GELU_C * (x + 0.044715 * x**3))),
        "relu": torch.relu,
        "relu6": lambda x: torch.clamp(x, 0, 6),
        "softplus": nn.functional.softplus,
        "sigmoid": torch.sigmoid,
        "silu": nn.functional.silu,
        "linear": lambda x: x,
        "none": lambda x: x,
    }[name]
