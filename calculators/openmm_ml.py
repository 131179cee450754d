"""dpsim in OpenMM-ML: `MLPotential("dpsim", model="water-pbe0ts")` makes pure and mixed ML/MM systems.

OpenMM-ML finds the factory by its entry point `openmmml.potentials` and imports it with every program that uses
OpenMM-ML, so nothing heavy is imported here: neither torch nor a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dpsim.errors import MissingDependencyError

try:
    import openmm
    from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory
except ImportError as error:
    raise MissingDependencyError("openmmml", "openmm", 'MLPotential("dpsim")') from error


class DpsimPotentialFactory(MLPotentialImplFactory):
    """What OpenMM-ML asks for the potential `dpsim`."""

    def createImpl(self, name: str, **args: Any) -> DpsimPotential:
        """`MLPotential(name, **args)`; args are those of `openmm_force`: model, precision, device, skin."""
        return DpsimPotential(**args)


class DpsimPotential(MLPotentialImpl):
    """A Deep Potential. Arguments given to createSystem or createMixedSystem override those given here."""

    def __init__(self, **args: Any):
        self._args = args

    def addForces(
        self,
        topology: openmm.app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **args: Any,
    ) -> None:
        """Add the model's Force for `atoms` (None: all) to a System; the name and order are OpenMM-ML's."""
        from dpsim.calculators.openmm_force import openmm_force

        periodic = topology.getPeriodicBoxVectors() is not None or system.usesPeriodicBoundaryConditions()
        settings: dict[str, Any] = {"particles": atoms, "periodic": periodic} | self._args | args
        force = openmm_force(topology, **settings)
        force.setForceGroup(forceGroup)
        system.addForce(force)

    def getMLLongRange(self) -> bool:
        """Interactions end at the cutoff."""
        return False
