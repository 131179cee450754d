"""Linear combinations of models, such as a network and a tabulated dispersion.

    E_i = sum_m c_m E_i^m + bias[t_i]

Each member counts elements in a type_map of its own, which holds those of the combination. Members keep their weights
and biases; `sum` stands for c_m = 1, `mean` for c_m = 1/n.
Source: DeePMD-kit 3.2, "Linear combination of models"; with one table, J. Chem. Phys. 159, 054801 (2023), II.A.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from dpsim.config import StrictModel
from dpsim.data.frame import Batch
from dpsim.errors import ConfigError
from dpsim.models.config import ModelConfig, Precision
from dpsim.models.descriptor_config import TypePair
from dpsim.models.energy_model import EnergyModel
from dpsim.models.pair_table import PairPotential
from dpsim.models.pair_table_config import PairPotentialConfig
from dpsim.models.potential import DTYPES, Potential


def _kind(member: Any) -> str:
    """Which of the two a member's config is."""
    own = member.get("kind") if isinstance(member, dict) else getattr(member, "kind", None)
    return "pair_potential" if own == "pair_potential" else "model"


MemberConfig = Annotated[
    Annotated[ModelConfig, Tag("model")] | Annotated[PairPotentialConfig, Tag("pair_potential")], Discriminator(_kind)
]


class LinearConfig(StrictModel):
    """A linear combination of models."""

    type_map: list[str] = Field(min_length=1, description="element symbols; types index into it")
    members: list[MemberConfig] = Field(min_length=1, description="the models' own configurations")
    weights: list[float] | Literal["sum", "mean"] = Field("sum", description="their coefficients")
    precision: Precision = Field("float32", description="of all members")
    atom_exclude_types: list[int] = Field([], description="types whose atoms carry no energy")
    pair_exclude_types: list[TypePair] = Field([], description="pairs of types that never are neighbours")

    @property
    def coefficients(self) -> list[float]:
        """c_m."""
        if isinstance(self.weights, list):
            return self.weights
        n = len(self.members)
        return [1.0 if self.weights == "sum" else 1 / n] * n

    @property
    def caveat(self) -> str:
        """What everybody who uses such a model must know; "" where there is nothing."""
        return next((c for member in self.members if (c := getattr(member, "caveat", ""))), "")

    @model_validator(mode="after")
    def _check(self) -> LinearConfig:
        if len(self.coefficients) != len(self.members):
            raise ValueError(f"`weights` is {self.weights}; expected a number for each of {len(self.members)} members.")
        for k, member in enumerate(self.members):
            if missing := sorted(set(self.type_map) - set(member.type_map)):
                raise ValueError(f"`members.{k}.type_map` is {member.type_map}; expected {missing} in it too.")
        n, types = len(self.type_map), [*self.atom_exclude_types, *(t for p in self.pair_exclude_types for t in p)]
        if len(set(self.type_map)) != n or any(not 0 <= t < n for t in types):
            raise ValueError(
                f"`type_map` is {self.type_map} and excluded types are {types}; expected every element once, and "
                f"indices from 0 to {n - 1}."
            )
        return self


class LinearModel(Potential):
    """See the module's docstring."""

    def __init__(self, config: LinearConfig):
        super().__init__()
        same = [member.model_copy(update={"precision": config.precision}) for member in config.members]
        members = [EnergyModel(c) if isinstance(c, ModelConfig) else PairPotential(c) for c in same]
        self.members = nn.ModuleList(members)
        self.config = config.model_copy(update={"members": [member.config for member in members]})
        self.type_map, self.dtype, self.metadata = tuple(config.type_map), DTYPES[config.precision], {}
        self.rcut = max(member.rcut for member in members)
        self.numb_fparam = max(member.numb_fparam for member in members)
        self.numb_aparam = max(member.numb_aparam for member in members)
        self.register_buffer("energy_bias", torch.zeros(len(self.type_map), dtype=torch.float64))
        self._types = [[member.type_map.index(name) for name in self.type_map] for member in members]

    @classmethod
    def of(cls, models: Sequence[Potential], weights: Sequence[float] | Literal["sum", "mean"] = "sum") -> LinearModel:
        """The combination of models that know a common set of elements; float64 if one of them is.

        Raises: ConfigError for students and combinations among them, and without a common element.
        """
        for model in models:
            if not isinstance(model, EnergyModel | PairPotential):
                raise ConfigError(
                    f"`models` has a {type(model).__name__}; expected models and pair potentials. Use its members."
                )
        members = cast("Sequence[EnergyModel | PairPotential]", models)
        common = [name for name in members[0].type_map if all(name in member.type_map for member in members)]
        config = LinearConfig(
            type_map=common,
            members=[member.config for member in members],
            weights=weights if isinstance(weights, str) else list(weights),
            precision="float64" if any(member.dtype == torch.float64 for member in members) else "float32",
        )
        combination = cls(config)
        for own, member in zip(combination.members, members, strict=True):
            own.load_state_dict(member.state_dict())
        return combination.eval()

    def set_second_order(self, on: bool = True) -> Self:
        for member in self.members:
            cast(Potential, member).set_second_order(on)
        return super().set_second_order(on)

    def atomic_energies(self, batch: Batch, edge_vec: Tensor) -> Tensor:
        types = batch.types
        batch, edge_vec = self._visible(batch, edge_vec)
        energy = self.energy_bias[types]
        for c, own, member in zip(self.config.coefficients, self._types, self.members, strict=True):
            as_member = replace(batch, types=torch.tensor(own, device=types.device)[types])
            energy = energy + c * cast(Potential, member).atomic_energies(as_member, edge_vec)
        for t in self.config.atom_exclude_types:
            energy = energy.masked_fill(types == t, 0.0)
        return energy

    def _visible(self, batch: Batch, edge_vec: Tensor) -> tuple[Batch, Tensor]:
        """The batch and its edges without those of excluded pairs."""
        if not self.config.pair_exclude_types:
            return batch, edge_vec
        n = len(self.type_map)
        keep = torch.ones(n, n, dtype=torch.bool, device=edge_vec.device)
        for a, b in self.config.pair_exclude_types:
            keep[a, b] = keep[b, a] = False
        kept = keep[batch.types[batch.center], batch.types[batch.neighbor]]
        edges = {name: getattr(batch, name)[kept] for name in ("center", "neighbor", "shift")}
        return replace(batch, **edges), edge_vec[kept]
