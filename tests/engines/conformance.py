"""What every engine must do; `class TestMyEngine(EngineConformance)` runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diary import DIARY, Diary
from dpsim.analysis.statistics import mean_with_error
from dpsim.engines.ase_engine import atoms_from_state, state_from_atoms
from dpsim.engines.base import Engine, RunControl, StageSettings, State
from dpsim.engines.output import RESTART, START, THERMO, TRAJECTORY, load_checkpoint, read_thermo
from dpsim.errors import ConfigError, SimulationError
from dpsim.trajectory import count_frames, read_frame
from dpsim.units import BOLTZMANN_EV_PER_K
from pair_calculators import BondedCalculator, FailingCalculator, PairCalculator, argon

COMMON: dict[str, Any] = {
    "n_steps": 60,
    "timestep_fs": 5.0,
    "initial_temperature_K": 60.0,
    "trajectory_every": 7,
    "thermo_every": 1,
}
NPT: dict[str, Any] = {
    "temperature_K": 60.0,
    "thermostat_damping_fs": 100.0,
    "pressure_bar": 500.0,
    "barostat_damping_fs": 300.0,
}
STAGES = {
    "minimise": StageSettings("minimise", 40, force_eV_per_A=1e-4, trajectory_every=7),
    "nve": StageSettings("nve", **COMMON),
    "bussi": StageSettings("nvt", **COMMON, temperature_K=60.0, thermostat="bussi", thermostat_damping_fs=50.0),
    "langevin": StageSettings("nvt", **COMMON, temperature_K=60.0, thermostat="langevin", thermostat_damping_fs=50.0),
    "npt isotropic": StageSettings("npt", **COMMON, **NPT, cell_change="isotropic"),
    "npt anisotropic": StageSettings("npt", **COMMON, **NPT, cell_change="anisotropic"),
    "npt triclinic": StageSettings("npt", **COMMON, **NPT, cell_change="triclinic"),
}


class Killed(BaseException):
    """Stands for a kill: nothing that handles errors catches it."""


class EngineConformance:
    """Name an engine; it runs argon, by a calculator that can be made to fail."""

    engine: Engine

    def state(self, periodic: bool = True) -> State:
        atoms = argon(pbc=periodic)
        if not periodic:
            atoms.cell = None
        return state_from_atoms(atoms)

    def calculator(self, fail_at_call: int | None = None, error: BaseException | None = None) -> Any:
        return PairCalculator() if fail_at_call is None else FailingCalculator(fail_at_call, error or RuntimeError())

    def run(self, stage: StageSettings, directory: Path, calculator: Any = None, **control: Any) -> Any:
        options: dict[str, Any] = {"seed": 0, "name": "stage", "checkpoint_seconds": 1e9} | control
        return self.engine.run_stage(
            self.state(), calculator or self.calculator(), stage, directory, RunControl(**options)
        )

    @pytest.mark.parametrize("name", [n for n in STAGES if n != "minimise"])
    def test_total_steps_and_output(self, name: str, tmp_path: Path) -> None:
        stage = STAGES[name]
        result = self.run(stage, tmp_path)
        thermo = read_thermo(tmp_path / THERMO)
        assert result.finished
        assert result.step == 60
        np.testing.assert_array_equal(thermo["step"], np.arange(61))
        np.testing.assert_allclose(thermo["time_ps"], np.arange(61) * 0.005, rtol=1e-12)
        np.testing.assert_allclose(
            thermo["total_energy_eV"], thermo["potential_energy_eV"] + thermo["kinetic_energy_eV"], rtol=1e-12
        )
        assert count_frames(tmp_path / TRAJECTORY) == 9
        assert [read_frame(tmp_path / TRAJECTORY, k).step for k in range(9)] == list(range(0, 60, 7))

    @pytest.mark.parametrize("name", [n for n in STAGES if n != "minimise"])
    def test_conserved_quantity(self, name: str, tmp_path: Path) -> None:
        stage = replace(STAGES[name], n_steps=200)
        self.run(stage, tmp_path)
        thermo = read_thermo(tmp_path / THERMO)
        conserved, total = thermo["conserved_eV"], thermo["total_energy_eV"]
        # 5 fs on argon: the shadow energy differs by 1e-4 of the kinetic energy, 7e-4 where the cell moves too;
        # thermostats move E by a thousand times as much
        scale = thermo["kinetic_energy_eV"].mean()
        assert conserved.std() < 0.002 * scale
        if name != "nve":
            assert total.std() > 200.0 * conserved.std()

    def test_conserved_quantity_improves_with_the_square_of_the_time_step(self, tmp_path: Path) -> None:
        spread = []
        for k in (1, 2):
            stage = replace(STAGES["nve"], n_steps=150 * k, timestep_fs=10.0 / k)
            self.run(stage, tmp_path / str(k))
            spread.append(read_thermo(tmp_path / str(k) / THERMO)["total_energy_eV"].std())
        assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.05)

    @pytest.mark.parametrize("name", list(STAGES))
    def test_interrupted_anywhere_equals_uninterrupted(self, name: str, tmp_path: Path) -> None:
        stage = STAGES[name]
        whole = self.run(stage, tmp_path / "whole")
        for attempt, call in enumerate((5, 17, 3, 20, 2, 1)):
            with pytest.raises(Killed):
                # checkpoints every step at first, then none but the first: both ways must agree
                self.run(
                    stage,
                    tmp_path / "parts",
                    self.calculator(call, Killed()),
                    checkpoint_seconds=0.0 if attempt % 2 == 0 else 1e9,
                )
        parts = self.run(stage, tmp_path / "parts")
        assert parts.step == whole.step
        for file in (THERMO, TRAJECTORY):
            assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
        for field in ("positions", "momenta", "cell"):
            np.testing.assert_array_equal(getattr(parts.state, field), getattr(whole.state, field))

    @pytest.mark.parametrize("name", ["minimise", "langevin", "npt isotropic"])
    def test_an_observer_sees_every_step_once_whatever_happens(self, name: str, tmp_path: Path) -> None:
        stage = replace(STAGES[name], thermo_every=3)
        self.run(stage, tmp_path / "unseen")
        diary = Diary(every=4)
        self.run(stage, tmp_path / "whole", observers=(diary,))
        assert [step for step, _ in diary.seen] == list(range(0, stage.n_steps + 1, 4))[: len(diary.seen)]
        assert len(diary.seen) > 5
        for attempt, call in enumerate((6, 17, 3)):
            with pytest.raises(Killed):
                often = 0.0 if attempt % 2 == 0 else 1e9
                fails = self.calculator(call, Killed())
                self.run(stage, tmp_path / "parts", fails, checkpoint_seconds=often, observers=(Diary(every=4),))
        self.run(stage, tmp_path / "parts", observers=(Diary(every=4),))
        whole = tmp_path / "whole"
        for file in (THERMO, TRAJECTORY):  # looking changes nothing
            assert (tmp_path / "unseen" / file).read_bytes() == (whole / file).read_bytes(), file
        for file in (THERMO, TRAJECTORY, DIARY):
            assert (tmp_path / "parts" / file).read_bytes() == (whole / file).read_bytes(), file

    @pytest.mark.parametrize("name", ["minimise", "bussi"])
    def test_an_observer_ends_the_stage(self, name: str, tmp_path: Path) -> None:
        stage = replace(STAGES[name], thermo_every=3)
        result = self.run(stage, tmp_path, observers=(Diary(every=4, end_at=8),))
        assert result.finished
        assert result.step == 8
        assert result.ended_early == "the diary is full at step 8"
        before = {file: (tmp_path / file).read_bytes() for file in (THERMO, TRAJECTORY, DIARY)}
        assert before[DIARY].count(b"\n") == 4
        longer = replace(stage, n_steps=90)
        again = self.run(longer, tmp_path, self.calculator(1, Killed()), observers=(Diary(every=4, end_at=8),))
        assert (again.finished, again.step, again.ended_early) == (True, 8, result.ended_early)
        np.testing.assert_array_equal(again.state.positions, result.state.positions)
        assert before == {file: (tmp_path / file).read_bytes() for file in before}

    def test_stop_request_saves_and_continues(self, tmp_path: Path) -> None:
        stage = STAGES["langevin"]
        whole = self.run(stage, tmp_path / "whole")
        seen: list[int] = []

        def stop_after_ten() -> bool:
            seen.append(0)
            return len(seen) >= 10

        first = self.run(stage, tmp_path / "parts", should_stop=stop_after_ten, checkpoint_seconds=1e9)
        assert not first.finished
        assert first.step == 10
        second = self.run(stage, tmp_path / "parts")
        np.testing.assert_array_equal(second.state.positions, whole.state.positions)

    def test_a_checkpoint_of_the_start_goes_on_without_writing_it_again(self, tmp_path: Path) -> None:
        self.run(STAGES["bussi"], tmp_path)
        before = {file: (tmp_path / file).read_bytes() for file in (THERMO, TRAJECTORY)}
        (tmp_path / RESTART).write_bytes((tmp_path / START).read_bytes())
        self.run(STAGES["bussi"], tmp_path)
        assert {file: (tmp_path / file).read_bytes() for file in before} == before

    def test_finished_stage_is_not_run_again(self, tmp_path: Path) -> None:
        first = self.run(STAGES["nve"], tmp_path)
        before = (tmp_path / THERMO).read_bytes()
        again = self.run(STAGES["nve"], tmp_path, self.calculator(2, Killed()))
        assert again.finished
        np.testing.assert_array_equal(again.state.positions, first.state.positions)
        assert (tmp_path / THERMO).read_bytes() == before

    def test_larger_total_extends(self, tmp_path: Path) -> None:
        longer = replace(STAGES["bussi"], n_steps=90)
        whole = self.run(longer, tmp_path / "whole")
        self.run(STAGES["bussi"], tmp_path / "parts")
        extended = self.run(longer, tmp_path / "parts")
        assert extended.step == 90
        np.testing.assert_array_equal(extended.state.positions, whole.state.positions)
        assert (tmp_path / "parts" / THERMO).read_bytes() == (tmp_path / "whole" / THERMO).read_bytes()
        with pytest.raises(ConfigError, match="already done 90"):
            self.run(STAGES["bussi"], tmp_path / "parts")

    def test_other_settings_are_refused(self, tmp_path: Path) -> None:
        self.run(STAGES["nve"], tmp_path)
        with pytest.raises(ConfigError, match=r"timestep_fs was 5\.0, is 4\.0"):
            self.run(replace(STAGES["nve"], timestep_fs=4.0), tmp_path)
        with pytest.raises(ConfigError, match="seed was 0, is 1"):
            self.run(STAGES["nve"], tmp_path, seed=1)

    def test_seeds(self, tmp_path: Path) -> None:
        stage = STAGES["langevin"]
        zero, again, one = (self.run(stage, tmp_path / f"{k}", seed=s) for k, s in enumerate((0, 0, 1)))
        np.testing.assert_array_equal(zero.state.positions, again.state.positions)
        assert np.abs(zero.state.positions - one.state.positions).max() > 1e-3

    def test_nan_names_step_and_atom_and_keeps_the_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(
            SimulationError, match=r"after step \d+ of 60.*atom 3.*last checkpoint, of step \d+"
        ) as info:
            self.run(STAGES["nve"], tmp_path, self.calculator(20, SimulationError("NaN on atom 3.")))
        saved = load_checkpoint(tmp_path / RESTART)
        assert saved is not None
        assert f"of step {saved.step}," in str(info.value)
        assert np.isfinite(saved.state.positions).all()

    def test_exploding_temperature_stops(self, tmp_path: Path) -> None:
        with pytest.raises(SimulationError, match="expected at most 30 K. The fastest atom is Ar atom"):
            self.run(replace(STAGES["nve"], max_temperature_K=30.0), tmp_path)

    def test_total_momentum_stays_zero(self, tmp_path: Path) -> None:
        for name in ("nve", "bussi", "npt triclinic"):
            state = self.run(STAGES[name], tmp_path / name).state
            assert np.abs(state.momenta.sum(axis=0)).max() < 1e-10

    def test_molecule_without_cell(self, tmp_path: Path) -> None:
        stage = replace(STAGES["nve"], initial_temperature_K=20.0)
        control = RunControl(seed=0, name="cluster")
        state = self.state(periodic=False)
        self.engine.run_stage(state, self.calculator(), stage, tmp_path, control)
        thermo = read_thermo(tmp_path / THERMO)
        assert np.isnan(thermo["volume_A3"]).all()
        assert np.isnan(thermo["pressure_bar"]).all()
        with pytest.raises(ConfigError, match="periodic in all three"):
            self.engine.run_stage(state, self.calculator(), STAGES["npt isotropic"], tmp_path / "npt", control)

    def test_minimisation_goes_downhill_and_ends(self, tmp_path: Path) -> None:
        stage = StageSettings("minimise", 500, force_eV_per_A=0.002, thermo_every=1, trajectory_every=10)
        result = self.run(stage, tmp_path)
        energy = read_thermo(tmp_path / THERMO)["potential_energy_eV"]
        assert result.finished
        assert 0 < result.step < 500
        assert energy[-1] < energy[0]
        assert not result.state.momenta.any()

    @pytest.mark.parametrize("name", ["bussi", "langevin"])
    @pytest.mark.slow
    def test_thermostat_samples_the_kinetic_energy_of_its_temperature(self, name: str, tmp_path: Path) -> None:
        """K is gamma distributed: of mean f kT/2 and variance f (kT)^2 / 2 for f degrees of freedom."""
        stage = replace(STAGES[name], n_steps=3200, timestep_fs=10.0, trajectory_every=3200, thermo_every=4)
        calculator = BondedCalculator(atoms_from_state(self.state()))
        self.run(stage, tmp_path, calculator, checkpoint_seconds=1e9)
        temperature = read_thermo(tmp_path / THERMO)["temperature_K"][80:]
        mean = mean_with_error(temperature)
        assert mean.error < 2.0
        assert abs(mean.value - 60.0) < 4.0 * mean.error
        variance = mean_with_error((temperature - 60.0) ** 2)
        expected = 2.0 * 60.0**2 / stage.degrees_of_freedom(self.state().n_atoms)
        assert variance.error < 0.3 * expected
        assert abs(variance.value - expected) < 4.0 * variance.error

    @pytest.mark.slow
    def test_barostat_samples_its_pressure_and_temperature(self, tmp_path: Path) -> None:
        stage = replace(STAGES["npt isotropic"], n_steps=3200, timestep_fs=10.0, trajectory_every=3200, thermo_every=4)
        calculator = BondedCalculator(atoms_from_state(self.state()))
        self.run(stage, tmp_path, calculator, checkpoint_seconds=1e9)
        thermo = {name: values[150:] for name, values in read_thermo(tmp_path / THERMO).items()}
        pressure, temperature = (mean_with_error(thermo[name]) for name in ("pressure_bar", "temperature_K"))
        assert thermo["volume_A3"].std() > 0.002 * thermo["volume_A3"].mean()
        assert pressure.error < 80.0
        assert abs(pressure.value - 500.0) < 4.0 * pressure.error
        assert abs(temperature.value - 60.0) < 4.0 * temperature.error

    def test_drawn_velocities_are_maxwellian(self) -> None:
        state = self.state()
        random = np.random.default_rng(0)
        kinetic = [state.with_velocities(60.0, random).kinetic_energy() for _ in range(400)]
        expected = 0.5 * (3 * state.n_atoms - 3) * BOLTZMANN_EV_PER_K * 60.0
        assert np.mean(kinetic) == pytest.approx(expected, rel=4.0 / np.sqrt(400 * 1.5 * state.n_atoms))
