"""Several Deep Potentials as one ASE calculator: `atoms.calc = CommitteeCalculator(["a.dpsim", "b.dpsim"])`.

The committee's energy is the mean of its members', so its forces and stress are theirs too, and dynamics conserves it.
How far the members disagree, the model deviation, tells where they know too little. (LAMMPS's pair style moves atoms by
its first model instead.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from dpsim.calculators.ase_calculator import DEFAULT_SKIN, DPCalculator, EvaluatorCalculator, checked_skin
from dpsim.calculators.deviation import UNITS, check_relative, model_deviation
from dpsim.calculators.evaluator import evaluator_of
from dpsim.calculators.members import CommitteeEvaluator, deviation_of, members_of, models_name
from dpsim.calculators.selection import Precision, resolve_model
from dpsim.errors import ConfigError, MissingDependencyError

try:
    from ase.calculators.calculator import all_changes
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "CommitteeCalculator") from error

if TYPE_CHECKING:
    from ase import Atoms

    from dpsim.calculators.members import Models
    from dpsim.models.potential import Potential

__all__ = ["CommitteeCalculator", "ase_calculator", "model_deviation"]


class CommitteeCalculator(EvaluatorCalculator):
    """Mean energy, forces and stress of two or more models, and their model deviation.

    Besides ASE's properties, and whenever forces are asked for, `results` holds what `model_deviation` gives, under
    DeePMD-kit's names: devi_f (n_atoms,), max_devi_f, min_devi_f, avg_devi_f in eV/A, devi_e in eV/atom, and, with a
    cell of three lattice vectors, max_devi_v, min_devi_v, avg_devi_v in eV/atom.
    `atoms.calc.get_property("max_devi_f", atoms)` asks for one.

    Args:
        models: as for DPCalculator, two or more; elements that not all of them know are unknown to the committee.
        relative: eV/A; if given, devi_f is divided by |<F>| + relative; relative_v: eV/atom, likewise of the virial.
        precision, device, skin, fparam, aparam: as for DPCalculator.

    Raises: as DPCalculator; ConfigError for fewer than two models, or models without a common element.
    """

    _evaluator: CommitteeEvaluator
    implemented_properties = [
        *EvaluatorCalculator.implemented_properties,
        *UNITS,
        "devi_f",
    ]

    def __init__(
        self,
        models: Models,
        *,
        relative: float | None = None,
        relative_v: float | None = None,
        precision: Precision | None = None,
        device: str = "cpu",
        skin: float = DEFAULT_SKIN,
        fparam: Sequence[float] | None = None,
        aparam: ArrayLike | str | None = None,
    ):
        chosen = members_of(models)
        if len(chosen) < 2:
            raise ConfigError(f"`models` is {models!r}; expected two or more models. Use DPCalculator for one.")
        check_relative(relative, relative_v)
        checked_skin(skin)
        self._relative: dict[str, Any] = {"relative": relative, "relative_v": relative_v}
        members = [evaluator_of(resolve_model(m, precision), str(device), float(skin)) for m in chosen]
        settings = {"precision": precision, "device": str(device), "skin": float(skin), **self._relative}
        super().__init__(CommitteeEvaluator(members), {"model": models_name(models)} | settings, fparam, aparam)

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
        if all(p.forces is not None for p in found):
            self.results.update(deviation_of(found, **self._relative))


def ase_calculator(
    models: Models,
    *,
    precision: Precision | None = None,
    device: str = "cpu",
    fparam: Sequence[float] | None = None,
) -> DPCalculator | CommitteeCalculator:
    """The ASE calculator of a model, or of a committee of several (names with commas between them, or a list)."""
    members = members_of(models)
    if len(members) > 1:
        return CommitteeCalculator(members, precision=precision, device=device, fparam=fparam)
    return DPCalculator(members[0], precision=precision, device=device, fparam=fparam)  # type: ignore[arg-type]
