"""The nets every model is made of: dense layers with residuals, embedding nets of one distance, layer norm.

A layer is y = act(x W + b) * idt (+ x, or + [x, x] where the width stays or doubles), W of shape (in, out).
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 48-49 and the activation list of II.A.5.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpsim.kernels.activation import activation
from dpsim.kernels.radial import DenseLayer
from dpsim.kernels.rows import scaled_rows


def normal_parameter(
    shape: tuple[int, ...], std: float, mean: float, generator: torch.Generator | None, dtype: torch.dtype
) -> nn.Parameter:
    """Random numbers, drawn in float64; on the meta device, where a file's will take their place, none are drawn.

    There torch would load its compiler to do so: 70 MiB.
    """
    if torch.get_default_device().type == "meta":
        return nn.Parameter(torch.empty(shape, dtype=dtype))
    return nn.Parameter((torch.randn(shape, generator=generator, dtype=torch.float64) * std + mean).to(dtype))


class Layer(nn.Module):
    """y = act(x W + b) * idt, plus a residual where `resnet` is on and the widths allow it."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        act: str,
        *,
        bias: bool = True,
        timestep: bool = False,
        resnet: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        self.n_in, self.n_out, self.act = n_in, n_out, act
        self.function = activation(act)
        self.residual = {n_in: 1, 2 * n_in: 2}.get(n_out, 0) if resnet else 0

        def normal(shape: tuple[int, ...], std: float, mean: float = 0.0) -> nn.Parameter:
            return normal_parameter(shape, std, mean, generator, dtype)

        self.weight = normal((n_in, n_out), 1 / math.sqrt(n_in + n_out))
        self.bias = normal((n_out,), 1.0) if bias else None
        # A time step scales the increment of a residual layer; without the residual there is nothing to scale.
        self.idt = normal((n_out,), 0.001, 0.1) if timestep and self.residual else None

    def tensors(self) -> DenseLayer:
        """The layer as plain tensors, for the kernels."""
        return DenseLayer(self.weight, self.bias, self.idt, self.residual, self.act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(nn.functional.linear(x, self.weight.t(), self.bias))
        if self.idt is not None:
            y = y * self.idt
        if self.residual == 1:
            y = y + x
        elif self.residual == 2:
            y = y + torch.cat([x, x], -1)
        return y

    def of_parts(self, parts: Sequence[Tensor]) -> Tensor:
        """act([parts] W + b) of parts that are not concatenated: each meets its rows of W. Not for residual layers."""
        rows = self.weight.split([part.shape[-1] for part in parts])
        z = parts[0] @ rows[0]
        for part, weight in zip(parts[1:], rows[1:], strict=True):
            z = z + part @ weight
        return self.function(z if self.bias is None else z + self.bias)


class MLP(nn.Sequential):
    """Layers of the given widths, each with the same activation and residual rule."""

    def __init__(
        self,
        n_in: int,
        widths: list[int],
        act: str,
        *,
        bias: bool = True,
        timestep: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        layers = [
            Layer(i, o, act, bias=bias, timestep=timestep, generator=generator, dtype=dtype)
            for i, o in zip([n_in, *widths], widths, strict=False)
        ]
        super().__init__(*layers)

    def tensors(self) -> list[DenseLayer]:
        """The layers as plain tensors, for the kernels."""
        return [layer.tensors() for layer in self]  # type: ignore[operator]

    def of_one_number(self, t: Tensor) -> list[DenseLayer]:
        """The net N([s, t]) as a net of the number s alone: t, fixed, enters the first bias."""
        first, *others = self.tensors()
        if first.residual:  # x = [s, t] itself is passed on: make it with a linear layer
            eye = torch.eye(1, len(first.weight), dtype=t.dtype, device=t.device)
            return [DenseLayer(eye, torch.cat([t.new_zeros(1), t]), None, 0, "linear"), first, *others]
        bias = t @ first.weight[1:] + (0 if first.bias is None else first.bias)
        return [first._replace(weight=first.weight[:1], bias=bias), *others]


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(var + eps) * w + b over the last axis, with the biased variance."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, scaled_rows(x, 1.0, True, self.eps), self.weight)
