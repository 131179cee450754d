"""Several Deep Potentials as one ASE calculator: `atoms.calc = CommitteeCalculator(["a.dpsim", "b.dpsim"])`.

The committee's energy is the mean of its members', so its forces and stress are theirs too, and dynamics conserves it.
How far the members disagree, the model deviation, tells where they know too little. (LAMMPS's pair style moves atoms by
its first model instead.)
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dpsim.calculators.ase_calculator import DEFAULT_SKIN, EvaluatorCalculator, checked_skin
from dpsim.calculators.evaluator import Evaluator, Memory, ModelEvaluator, StudentEvaluator, evaluator_of
from dpsim.calculators.selection import Precision, model_name, resolve_model
from dpsim.data.frame import Batch, Prediction
from dpsim.errors import ConfigError, MissingDependencyError

try:
    from ase.calculators.calculator import all_changes
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "CommitteeCalculator") from error

if TYPE_CHECKING:
    from ase import Atoms

    from dpsim.models.energy_model import EnergyModel
    from dpsim.models.potential import Potential
    from dpsim.models.student import Student

Array = NDArray[np.float64]


class CommitteeCalculator(EvaluatorCalculator):
    """Mean energy, forces and stress of two or more models, and their model deviation.

    Besides ASE's properties, and whenever forces are asked for, `results` holds what `model_deviation` gives, under
    DeePMD-kit's names: devi_f (n_atoms,), max_devi_f, min_devi_f, avg_devi_f in eV/A, and, with a cell of three lattice
    vectors, max_devi_v, min_devi_v, avg_devi_v in eV. `atoms.calc.get_property("max_devi_f", atoms)` asks for one.

    Args:
        models: as for DPCalculator, two or more; elements that not all of them know are unknown to the committee.
        relative: eV/A; if given, devi_f is divided by |<F>| + relative.
        precision, device, skin, fparam, aparam: as for DPCalculator.

    Raises: as DPCalculator; ConfigError for fewer than two models, or models without a common element.
    """

    _evaluator: CommitteeEvaluator
    implemented_properties = [
        *EvaluatorCalculator.implemented_properties,
        *(f"{what}_devi_{of}" for of in "fv" for what in ("max", "min", "avg")),
        "devi_f",
    ]

    def __init__(
        self,
        models: Sequence[str | PathLike[str] | EnergyModel | Student],
        *,
        relative: float | None = None,
        precision: Precision | None = None,
        device: str = "cpu",
        skin: float = DEFAULT_SKIN,
        fparam: Sequence[float] | None = None,
        aparam: ArrayLike | str | None = None,
    ):
        if isinstance(models, str | PathLike) or len(models) < 2:
            raise ConfigError(f"`models` is {models!r}; expected two or more models. Use DPCalculator for one.")
        if relative is not None and not relative > 0:
            raise ConfigError(f"`relative` is {relative}; expected a force > 0 eV/A, or None. Correct it.")
        checked_skin(skin)
        members = [evaluator_of(resolve_model(m, precision), str(device), float(skin)) for m in models]
        names = [model_name(m) for m in models]
        settings = {"precision": precision, "device": str(device), "skin": float(skin), "relative": relative}
        super().__init__(CommitteeEvaluator(members), {"model": ", ".join(names)} | settings, fparam, aparam)

    @property
    def models(self) -> list[Potential]:
        """The members."""
        return [m.calculator.model for m in self._evaluator.members]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results` with the asked properties (and those that come for free with them)."""
        super().calculate(atoms, properties, system_changes)
        found = self._evaluator.found
        forces = [p.forces.cpu().numpy() for p in found if p.forces is not None]
        if forces:
            virials = [p.virial[0].cpu().numpy() for p in found if p.virial is not None]
            relative = self.parameters["relative"]
            self.results.update(model_deviation(np.array(forces), np.array(virials) if virials else None, relative))


def model_deviation(forces: Array, virials: Array | None = None, relative: float | None = None) -> dict[str, Any]:
    """How far models disagree: averages <.> are over the models, population (not sample) averages.

        devi_f,i = sqrt(<|F_i - <F_i>|^2>)                        max, min, mean over atoms
        devi_v,ab = sqrt(<(W_ab - <W_ab>)^2>) / N                 max, min, root mean square over the nine components

    With `relative` (eV/A) devi_f,i is divided by |<F_i>| + relative.

    Args: forces: (n_models, n_atoms, 3) eV/A; virials: (n_models, 3, 3) eV.
    Returns: devi_f (n_atoms,) and the statistics max_devi_f, ... avg_devi_v; those of no atoms are 0.
    Source: DeePMD-kit v2, J. Chem. Phys. 159, 054801 (2023), Eqs. 68-71 and 73-78; for the nine components the root
        mean square, as DeePMD-kit (and pair_style dpsim) writes it, not the mean of Eq. 77.
    """
    mean = forces.mean(axis=0)
    deviation = np.sqrt(((forces - mean) ** 2).sum(axis=-1).mean(axis=0))
    if relative is not None:
        deviation /= np.linalg.norm(mean, axis=-1) + relative
    of_atoms = deviation if len(deviation) else np.zeros(1)
    out: dict[str, Any] = {
        "devi_f": deviation,
        "max_devi_f": float(of_atoms.max()),
        "min_devi_f": float(of_atoms.min()),
        "avg_devi_f": float(of_atoms.mean()),
    }
    if virials is not None:
        spread = virials.std(axis=0) / max(forces.shape[1], 1)
        out["max_devi_v"], out["min_devi_v"] = float(spread.max()), float(spread.min())
        out["avg_devi_v"] = float(np.sqrt((spread**2).mean()))
    return out


class CommitteeEvaluator(Evaluator):
    """The mean of the members' predictions; `found` keeps the last one of each.

    Models that PyTorch evaluates and that have the same rcut share one neighbour list.
    """

    def __init__(self, members: Sequence[ModelEvaluator | StudentEvaluator]):
        self.members, self.found = list(members), list[Prediction]()
        maps = [m.type_map for m in members]
        self.type_map = tuple(e for e in maps[0] if all(e in other for other in maps))
        if not self.type_map:
            raise ConfigError(
                f"`models` know the elements {[list(m) for m in maps]}; expected common ones. Correct it."
            )
        self._types = [np.array([m.index(e) for e in self.type_map], dtype=np.int64) for m in maps]

    def evaluate(
        self,
        types: NDArray[np.int64],
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        *,
        forces: bool = True,
        virial: bool = True,
        atom_virial: bool = False,
        fparam: NDArray[np.float64] | None = None,
        aparam: NDArray[np.float64] | None = None,
    ) -> Prediction:
        wanted: dict[str, Any] = {"forces": forces, "virial": virial, "atom_virial": atom_virial}
        batches: dict[float, Batch] = {}
        self.found = []
        for member, type_of in zip(self.members, self._types, strict=True):
            own = type_of[types]
            if isinstance(member, StudentEvaluator):
                self.found.append(member.evaluate(own, positions, cell, pbc, **wanted))
                continue
            rcut = member.calculator.rcut
            if rcut not in batches:
                batches[rcut] = member.batch(own, positions, cell, pbc)
            batches[rcut].types = torch.from_numpy(own)
            batches[rcut].fparam = None if fparam is None else torch.from_numpy(fparam)[None]
            batches[rcut].aparam = None if aparam is None else torch.from_numpy(aparam)
            self.found.append(member.calculator.compute(batches[rcut], **wanted))
        return _mean(self.found)

    @property
    def takes_parameters(self) -> bool:
        return any(m.takes_parameters for m in self.members)

    @property
    def below_range(self) -> int:
        return sum(m.below_range for m in self.members)

    def memory(self) -> Memory:
        return {f"{k}.{name}": value for k, m in enumerate(self.members) for name, value in m.memory().items()}

    def recall(self, memory: Memory) -> None:
        for k, member in enumerate(self.members):
            own = f"{k}."
            member.recall({name.removeprefix(own): v for name, v in memory.items() if name.startswith(own)})


def _mean(predictions: Sequence[Prediction]) -> Prediction:
    """The mean of predictions of one frame, all of the same quantities."""

    def mean(name: str) -> Any:
        values = [getattr(p, name) for p in predictions]
        return None if values[0] is None else torch.stack(values).mean(dim=0)

    return Prediction(**{name: mean(name) for name in vars(predictions[0])})
