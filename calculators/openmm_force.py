"""A Deep Potential as a Force of OpenMM: `system.addForce(openmm_force(topology, "water-pbe0ts"))`.

OpenMM's units are nm and kJ/mol. The Force works with every integrator, with barostats (its energy depends on the box),
on a subset of the particles, and survives XML serialisation: the model travels inside the XML.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpsim.calculators.evaluator import Evaluator
from dpsim.calculators.members import models_name, open_evaluator
from dpsim.calculators.selection import Precision, types_of
from dpsim.errors import ConfigError, MissingDependencyError
from dpsim.units import factor

try:
    import openmm
    from openmm.app import Topology
except ImportError as error:
    raise MissingDependencyError("openmm", "openmm", "openmm_force") from error

if TYPE_CHECKING:
    from dpsim.calculators.members import Models

_ANGSTROM_PER_NM = float(factor("nm", "A"))
_KJ_PER_MOL_PER_EV = float(factor("eV", "kJ/mol"))
_SKIN = 1.0  # A; as DPCalculator
_KEPT = 2  # a barostat asks for the energy of the present structure, then of a trial, then for forces of one of them


def openmm_force(
    atoms: Topology | Sequence[str],
    model: Models = "water-pbe0ts",
    *,
    particles: Iterable[int] | None = None,
    periodic: bool | None = None,
    precision: Precision | None = None,
    device: str = "cpu",
    skin: float = _SKIN,
) -> openmm.PythonForce:
    """E = sum_i E_i(neighbours of i within rcut), as a Force for a System.

    Args:
        atoms: a Topology, or the element of each particle of the System, such as ["O", "H", "H"].
        model: name of a bundled model, path of a .dpsim file, or a model or student; of several, a committee, the mean.
        particles: indices of the particles that the model describes, alone; default: all.
        periodic: in all three directions, or in none; default: whether the Topology has box vectors.
        precision: "float32" or "float64"; None keeps the model's own.
        device: "cpu", "cuda", ...: where the model runs, whatever OpenMM's platform.
        skin: A; pairs within rcut + skin are kept from step to step: a speed setting only.

    Returns:
        openmm.PythonForce. Its errors (not finite, ...) reach the user as OpenMMException with dpsim's message.

    Raises:
        ElementError: elements the model does not know; names them and those it knows.
        ConfigError: particles out of range, or `periodic` missing where no Topology says it.
    """
    n_particles = atoms.getNumAtoms() if isinstance(atoms, Topology) else len(atoms)
    chosen = None if particles is None else _checked(particles, n_particles)
    elements = _elements(atoms, range(n_particles) if chosen is None else chosen)
    if periodic is None:
        if not isinstance(atoms, Topology):
            raise ConfigError("`periodic` is not given; expected True or False where elements are. Pass periodic=...")
        periodic = atoms.getPeriodicBoxVectors() is not None
    evaluator = open_evaluator(model, precision, device, skin, who="OpenMM")
    types = types_of(elements, evaluator.type_map, models_name(model))
    force = openmm.PythonForce(DeepPotential(evaluator, types, periodic))
    force.setUsesPeriodicBoundaryConditions(periodic)
    if chosen is not None:
        force.setParticles(chosen)
    force.setName("DeepPotential")
    return force


@dataclass(frozen=True)
class _Evaluated:
    """A structure, and its energy and forces in OpenMM's units."""

    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    energy: float
    forces: NDArray[np.float64]


class DeepPotential:
    """What OpenMM calls for energy (kJ/mol) and forces (kJ/mol/nm) of a State; it can be pickled."""

    def __init__(self, evaluator: Evaluator, types: NDArray[np.int64], periodic: bool):
        self._evaluator, self._types = evaluator, types
        self._pbc = np.full(3, periodic)
        self._recent: deque[_Evaluated] = deque(maxlen=_KEPT)

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        positions = state.getPositions(asNumpy=True)._value * _ANGSTROM_PER_NM
        cell = np.zeros((3, 3))
        if self._pbc[0]:
            cell = state.getPeriodicBoxVectors(asNumpy=True)._value * _ANGSTROM_PER_NM
        for known in reversed(self._recent):
            if np.array_equal(positions, known.positions) and np.array_equal(cell, known.cell):
                return known.energy, known.forces
        prediction = self._evaluator.evaluate(self._types, positions, cell, self._pbc, virial=False)
        assert prediction.forces is not None
        forces = prediction.forces.cpu().numpy().astype(np.float64)
        forces *= _KJ_PER_MOL_PER_EV * _ANGSTROM_PER_NM
        new = _Evaluated(positions, cell, float(prediction.energy[0]) * _KJ_PER_MOL_PER_EV, forces)
        self._recent.append(new)
        return new.energy, new.forces

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_recent": deque(maxlen=_KEPT)}


def _elements(atoms: Topology | Sequence[str], particles: Iterable[int]) -> list[str]:
    """The elements of these particles."""
    if not isinstance(atoms, Topology):
        return [str(atoms[k]) for k in particles]
    elements = [a.element for a in atoms.atoms()]
    nameless = [k for k in particles if elements[k] is None]
    if nameless:
        raise ConfigError(
            f"`element` of the atoms {nameless[:5]} of the topology is None; expected an element (virtual sites have "
            "none). Leave them out with particles=[...]."
        )
    return [elements[k].symbol for k in particles]


def _checked(particles: Iterable[int], n_particles: int) -> list[int]:
    chosen = [int(k) for k in particles]
    if len(set(chosen)) != len(chosen) or not all(0 <= k < n_particles for k in chosen):
        raise ConfigError(
            f"`particles` is {chosen[:8]}{' ...' if len(chosen) > 8 else ''}; expected different indices below "
            f"{n_particles}. Correct them."
        )
    return chosen
