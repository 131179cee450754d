"""The vector T_t of each element, from its one-hot code or its electron configuration."""

from __future__ import annotations

import torch
from torch import Tensor

from dpsim.models.electron_configuration import electron_configuration
from dpsim.models.nets import MLP


class TypeEmbedding(MLP):
    """T = x W (+ b), x one-hot, or the electron configuration where `econf`.

    The layer is residual where T is as long as x or twice as long, as in DeePMD-kit.
    """

    type_input: Tensor

    def __init__(
        self,
        type_map: list[str],
        dim: int,
        *,
        econf: bool = False,
        bias: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        n_types = len(type_map)
        one_hot = torch.zeros(n_types, n_types, dtype=dtype).fill_diagonal_(1)  # not torch.eye: see normal_parameter
        type_input = electron_configuration(type_map).to(dtype) if econf else one_hot
        super().__init__(type_input.shape[1], [dim], "linear", bias=bias, generator=generator, dtype=dtype)
        self.register_buffer("type_input", type_input, persistent=False)
        self.econf = econf

    def forward(self) -> Tensor:  # type: ignore[override]  # its input is its own
        """T (n_types, dim)."""
        return super().forward(self.type_input)
