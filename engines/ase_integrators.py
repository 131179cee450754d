"""ASE's integrators, each with its conserved quantity and with its complete state for restarts.

| stage | integrator | conserved |
|---|---|---|
| minimise | FIRE | - |
| nve | velocity Verlet | E |
| nvt, bussi | stochastic velocity rescaling | E - heat taken from the thermostat |
| nvt, langevin | BAOAB | E - heat taken from the bath |
| npt | Martyna-Tobias-Klein, Nose-Hoover chains | ASE's extended energy |

E = potential + kinetic energy. Where the total momentum is zero and conserved there are 3 (N - 1) degrees of freedom,
as many as N - 1 free atoms have; ASE counts 3 N in its thermostats, so they are told N - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpsim.engines.base import StageSettings
from dpsim.errors import MissingDependencyError

try:
    from ase import Atoms, units
    from ase.md.bussi import Bussi
    from ase.md.langevinbaoab import LangevinBAOAB
    from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, MaskedMTKNPT, NoseHooverChainThermostat
    from ase.md.verlet import VelocityVerlet
    from ase.optimize.fire import FIRE
except ImportError as error:
    raise MissingDependencyError("ase", "ase", "The ASE engine") from error

_CHAINS = ("_p", "_q", "_thermostat._eta", "_thermostat._p_eta", "_barostat._xi", "_barostat._p_xi")
_SYMMETRIC_CELL_MODES = 6  # ASE gives the barostat chain 9, but a symmetric stress never excites the 3 rotations


class Integrator:
    """One ASE dynamics object: `step()`, the conserved energy, and the state besides positions, momenta and cell."""

    def __init__(self, dynamics: Any, attributes: tuple[str, ...], conserved: Callable[[], float] | None = None):
        self.dynamics = dynamics
        self._attributes = attributes
        self._conserved = conserved

    def step(self) -> None:
        """Advance by one step."""
        self.dynamics.step()
        self.dynamics.nsteps += 1

    def conserved(self, total_energy: float) -> float:
        """The quantity that exact integration keeps constant, eV."""
        return total_energy if self._conserved is None else total_energy + self._conserved()

    def state(self) -> dict[str, NDArray[Any]]:
        """What `restore` needs."""
        values = {name: attrgetter(name)(self.dynamics) for name in self._attributes}
        return {name: np.array(value) for name, value in values.items() if value is not None}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue where `state` was taken."""
        for name, value in state.items():
            owner, _, attribute = name.rpartition(".")
            target = attrgetter(owner)(self.dynamics) if owner else self.dynamics
            setattr(target, attribute, value.item() if value.ndim == 0 else value.copy())


class HeatedLangevin(LangevinBAOAB):
    """BAOAB Langevin dynamics that counts the heat from its bath, so that E - heat is conserved."""

    heat = 0.0

    def _BAOAB_OU(self, drag_gamma_mod: Any = 0.0) -> None:
        before = self.atoms.get_kinetic_energy()
        super()._BAOAB_OU(drag_gamma_mod)
        self.heat += self.atoms.get_kinetic_energy() - before


def make_integrator(atoms: Atoms, stage: StageSettings, generator: np.random.Generator) -> Integrator:
    """The integrator of a stage, acting on `atoms` (which has its calculator, and momenta for dynamics)."""
    timestep = stage.timestep_fs * units.fs
    if stage.kind == "minimise":
        return Integrator(FIRE(atoms, logfile=None), ("vel", "dt", "a", "Nsteps"))
    if stage.kind == "nve":
        return Integrator(VelocityVerlet(atoms, timestep), ())
    if stage.kind == "nvt" and stage.thermostat == "langevin":
        return _langevin(atoms, stage, timestep, generator)
    if stage.kind == "nvt":
        return _bussi(atoms, stage, timestep, generator)
    return _martyna_tobias_klein(atoms, stage, timestep)


def _langevin(atoms: Atoms, stage: StageSettings, timestep: float, generator: np.random.Generator) -> Integrator:
    """B. Leimkuhler and C. Matthews, J. Chem. Phys. 138, 174102 (2013)."""
    assert stage.thermostat_damping_fs is not None
    dynamics = HeatedLangevin(
        atoms,
        timestep,
        temperature_K=stage.temperature_K,
        T_tau=stage.thermostat_damping_fs * units.fs,
        hydrostatic=True,  # without a barostat this only selects the scalar form of the friction
        rng=generator,
    )
    return Integrator(dynamics, ("heat",), lambda: -dynamics.heat)


def _bussi(atoms: Atoms, stage: StageSettings, timestep: float, generator: np.random.Generator) -> Integrator:
    """G. Bussi, D. Donadio and M. Parrinello, J. Chem. Phys. 126, 014101 (2007)."""
    assert stage.thermostat_damping_fs is not None
    damping = stage.thermostat_damping_fs * units.fs
    dynamics = Bussi(atoms, timestep, temperature_K=stage.temperature_K, taut=damping, rng=generator)
    dynamics.ndof = stage.degrees_of_freedom(len(atoms))
    dynamics.target_kinetic_energy = 0.5 * dynamics.temp * dynamics.ndof
    return Integrator(dynamics, ("transferred_energy",), lambda: -dynamics.transferred_energy)


def _martyna_tobias_klein(atoms: Atoms, stage: StageSettings, timestep: float) -> Integrator:
    """G. J. Martyna, D. J. Tobias and M. L. Klein, J. Chem. Phys. 101, 4177 (1994)."""
    assert stage.thermostat_damping_fs is not None
    assert stage.barostat_damping_fs is not None
    assert stage.pressure_bar is not None
    assert stage.temperature_K is not None
    settings: dict[str, Any] = {
        "temperature_K": stage.temperature_K,
        "pressure_au": stage.pressure_bar * units.bar,
        "tdamp": stage.thermostat_damping_fs * units.fs,
        "pdamp": stage.barostat_damping_fs * units.fs,
    }
    dynamics, attributes = _CELL_DYNAMICS[stage.cell_change or "isotropic"](atoms, timestep, settings)
    free = max(1, len(atoms) - 1)
    dynamics._num_atoms_global = free
    dynamics._thermostat = NoseHooverChainThermostat(
        num_atoms_global=free, masses=dynamics.masses, temperature_K=stage.temperature_K, tdamp=settings["tdamp"]
    )
    return Integrator(dynamics, attributes, lambda: dynamics.get_conserved_energy() - atoms.get_total_energy())


def _isotropic(atoms: Atoms, timestep: float, settings: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    return IsotropicMTKNPT(atoms, timestep, **settings), (*_CHAINS, "_eps", "_p_eps", "_volume0", "_cell0")


def _anisotropic(atoms: Atoms, timestep: float, settings: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    dynamics = MaskedMTKNPT(atoms, timestep, mask=(True, True, True), **settings)
    return dynamics, (*_CHAINS, "_h", "_h0_basis", "_p_c")


def _triclinic(atoms: Atoms, timestep: float, settings: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    dynamics: Any = MTKNPT(atoms, timestep, **settings)
    barostat = dynamics._barostat
    barostat._cell_dof = _SYMMETRIC_CELL_MODES
    barostat._R[0] = _SYMMETRIC_CELL_MODES * barostat._kT * barostat._pdamp**2
    return dynamics, (*_CHAINS, "_h", "_p_g")


_CELL_DYNAMICS = {"isotropic": _isotropic, "anisotropic": _anisotropic, "triclinic": _triclinic}
