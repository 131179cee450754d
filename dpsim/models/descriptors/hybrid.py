"""Several descriptors side by side (`hybrid`).

    D_i = [D_i^1, D_i^2, ...]

Each has its own cutoff, weights and standardisation. With `deepmd_conventions`, each takes its neighbours from one
list (`listed_in_a_hybrid`).
Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eq. 27.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dpsim.models.deepmd_conventions import listed_in_a_hybrid
from dpsim.models.descriptors.base import Descriptor, EnvironmentDescriptor
from dpsim.models.graph import Graph


class Hybrid(Descriptor):
    """See the module's docstring."""

    def __init__(self, parts: Sequence[Descriptor]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.rcut = max(part.rcut for part in parts)
        self.dim_out = sum(part.dim_out for part in parts)
        n_listed = listed_in_a_hybrid([member.sel for member in self.members])
        for member in self.members:
            member.n_listed = n_listed

    @property
    def members(self) -> list[EnvironmentDescriptor]:
        return [member for part in self.parts for member in cast(Descriptor, part).members]

    def set_second_order(self, on: bool) -> None:
        super().set_second_order(on)
        for part in self.parts:
            cast(Descriptor, part).set_second_order(on)

    def forward(self, graph: Graph) -> Tensor:
        """D (n_atoms, dim_out) of the atoms of a graph."""
        return torch.cat([part(graph.within(part.rcut)) for part in cast(list[Descriptor], self.parts)], 1)
