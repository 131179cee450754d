"""The protocol phase-scan: what it refuses, what it plans, and what it concludes from runs that are known exactly."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from scipy.optimize import minimize_scalar

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from dpsim.analysis.phases import standard
from dpsim.analysis.statistics import Estimate
from dpsim.config import validate
from dpsim.errors import ConfigError
from dpsim.protocols import phase_scan_results
from dpsim.protocols.context import AnalysisOutput, StageRecord
from dpsim.protocols.phase_scan import PhaseScan
from dpsim.protocols.phase_scan_verdicts import ScanPoint, Series, judge_transitions
from dpsim.protocols.sweep import FinishedPoint, run_protocol
from dpsim.trajectory import TrajectoryWriter, write_topology
from pair_calculators import PairCalculator

CRITICAL_K = 640.0
REPEAT = [2, 2, 2]


def tetragonal(ratio: float = 1.0, polar: float = 0.0, volume: float = 64.0) -> Atoms:
    """One unit cell of ABO3, its cations displaced along c."""
    a = (volume / ratio) ** (1.0 / 3.0)
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    atoms = Atoms("PbTiO3", scaled_positions=sites, cell=[a, a, a * ratio], pbc=True)
    atoms.positions[:2, 2] += polar
    return atoms


def scan(tmp_path: Path, **changes: Any) -> PhaseScan:
    write(tmp_path / "pto.extxyz", tetragonal(1.05, 0.3))
    data = {
        "name": "pto",
        "protocol": "phase-scan",
        "structure": {"file": str(tmp_path / "pto.extxyz"), "repeat": REPEAT},
        "temperatures": [f"{t} K" for t in range(300, 1001, 100)],
        "duration": "2 ps",
    }
    return validate(data | changes, PhaseScan)


def finished_stage(folder: Path, temperature: float, critical: float, seed: int, n: int = 60) -> StageRecord:
    """A stage as an engine leaves it, of a crystal with P ~ sqrt(1 - T/Tc), c/a ~ 1 + 0.06 P^2."""
    random = np.random.default_rng(seed)
    p2 = max(0.0, 1.0 - temperature / critical)
    atoms = tetragonal(1.0 + 0.06 * p2, 0.4 * p2**0.5, 64.0 + 1.5e-3 * temperature).repeat(REPEAT)
    folder.mkdir(parents=True)
    write_topology(folder / "topology.pdb", list(atoms.symbols), atoms.positions, atoms.cell.array)
    with TrajectoryWriter(folder / "trajectory.trr", len(atoms)) as writer:
        for k in range(n):
            e = 2e-5 * temperature**0.5 * random.standard_normal((3, 3))
            cell = standard(atoms.cell.array @ (np.eye(3) + e + e.T))
            moved = atoms.get_scaled_positions(wrap=False) @ cell
            moved += 3e-3 * temperature**0.5 * random.standard_normal(moved.shape)
            writer.append(k, 0.02 * k, moved, cell)
    return StageRecord(folder.name, folder, None, None)  # type: ignore[arg-type]  # not looked at


def concluded(tmp_path: Path, config: PhaseScan, critical: dict[str, float], leave_out: str = "") -> AnalysisOutput:
    """What a scan concludes of runs with the given transition on each branch."""
    points = []
    for number, point in enumerate(config.points()):
        stages = {}
        for at in config.scan():
            if at.point == point.key and at.stage not in stages and at.stage != leave_out != point.key:
                folder = tmp_path / "run/points" / point.key / at.stage
                seed = 1000 * number + len(stages)
                stages[at.stage] = finished_stage(folder, at.temperature_K, critical[at.branch], seed)
        if point.key != leave_out:
            points.append(FinishedPoint(point, tmp_path, {}, stages))
    return config.conclude(points, tmp_path / "run/figures")


def test_a_ladder_and_a_ramp(tmp_path: Path) -> None:
    ladder = scan(tmp_path, pressures=["1 bar", "10000 bar"])
    points = ladder.points()
    assert len(points) == 16 and points[1].key == "heating_300K_10000bar"
    stage: Any = points[1].protocol.stages[0]
    assert (stage.temperature, stage.pressure, stage.initial_temperature) == (300.0, 1e4, 300.0)
    assert stage.cell == "triclinic"
    ramp = scan(tmp_path, mode="ramp", back=True, temperatures=["300 K", "500 K", "700 K"])
    (point,) = ramp.points()
    names = "heating_300K heating_500K heating_700K cooling_500K cooling_300K"
    assert " ".join(point.protocol.stage_names()) == names
    stages: Any = point.protocol.stages
    assert [s.initial_temperature for s in stages] == [300.0, None, None, None, None]
    assert [(s.branch, s.stage) for s in ramp.scan()][-1] == ("cooling", "heating_700K")
    squeezed = scan(tmp_path, mode="ramp", temperatures=["300 K"], pressures=["1 bar", "2 bar"])
    assert squeezed.along == "pressure" and squeezed.branches == ("compression",) and len(squeezed.points()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "ipi"}, "expected isotropic. Use"),
        ({"temperatures": ["300 K", "500 K", "400 K"]}, "expected rising or falling"),
        ({"back": True}, "expected `back_structure`"),
        ({"mode": "ramp", "back_structure": "x.cif"}, "Use `back: true`"),
        ({"references": [{"quantity": "volumes", "value": 1.0}]}, "`quantity` is 'volumes'"),
        ({"references": [{"quantity": "volume", "value": 1.0, "temperature": "310 K"}]}, "temperature 310"),
        ({"references": [{"quantity": "a", "value": 1.0, "temperature": "300 K", "branch": "cooling"}]}, "`branch`"),
        ({"transitions": [{"quantity": "a", "pressures": ["1 bar", "2 bar"]}]}, "Give `temperatures`"),
        ({"transitions": [{"quantity": "a", "temperatures": ["2 K", "1 K"]}]}, "the lower first"),
        ({"order_parameters": [{"type": "strain", "name": "a"}]}, "expected different ones"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scan(tmp_path, **changes)


def test_groups_are_those_of_the_structure(tmp_path: Path) -> None:
    for atoms, known in (("Sn", "one of the elements"), ([0, 99], r"indices 0 ... 39")):
        order = {"type": "off_centring", "atoms": atoms, "neighbours": "O", "count": 6}
        with pytest.raises(ConfigError, match=known):
            scan(tmp_path, order_parameters=[order]).points()
    for mobile, message in ((["Li"], "one of the elements"), (["Pb", "Ti", "O"], "nothing is left")):
        with pytest.raises(ConfigError, match=message):
            scan(tmp_path, mobile=mobile).points()


def test_a_known_transition(tmp_path: Path) -> None:
    """Landau's ferroelectric, heated and cooled: Tc within the interval, hysteresis, symmetries, verdicts."""
    config = scan(
        tmp_path,
        mode="ramp",
        back=True,
        order_parameters=[
            {"type": "c_over_a", "axis": "c"},
            {"type": "off_centring", "name": "polar", "atoms": "Ti", "neighbours": "O", "count": 6},
        ],
        references=[
            {"quantity": "volume", "temperature": "300 K", "value": 64.45, "branch": "heating"},
            {"quantity": "volume", "temperature": "300 K", "value": 60.0, "branch": "heating"},
        ],
        transitions=[
            {"quantity": "c_over_a", "temperatures": ["700 K", "800 K"], "branch": "heating"},
            {"quantity": "polar", "temperatures": ["950 K", "1000 K"], "branch": "heating"},
        ],
        tolerances=["0.1 A", "0.2 A"],
    )
    output = concluded(tmp_path, config, {"heating": 740.0, "cooling": 560.0})
    found = {result.name: result for result in output.results}
    for name in ("polar", "c_over_a"):
        for branch, critical in (("heating", 740.0), ("cooling", 560.0)):
            result = found[f"transition.{branch}.{name}"]
            assert result.value is not None and abs(result.value - critical) <= 100.0, (name, branch, result)
        assert found[f"hysteresis.{name}"].value == pytest.approx(180.0, abs=100.0)
    assert found["transition.heating.volume"].value is None
    assert "No transition" in found["transition.heating.volume"].explanation
    verdicts = [found[n].verdict for n in ("reference.1.heating", "reference.2.heating")]
    assert verdicts == ["PASS", "FAIL"]
    assert found["reference.transition.1.heating"].verdict == "PASS"
    assert found["reference.transition.2.heating"].verdict == "FAIL"
    assert found["heating.300K.space_group"].value == 99 and found["heating.1000K.space_group"].value == 221
    for branch, critical in (("heating", 740.0), ("cooling", 560.0)):
        change = found[f"transition.{branch}.space_group"]
        assert change.value is not None and abs(change.value - critical) <= 100.0  # small distortions hide in noise
        assert change.label.startswith("P4mm below, Pm-3m above")
    assert not output.warnings
    rows = list(csv.DictReader((tmp_path / "run/phases.csv").open()))
    assert len(rows) == 16 and rows[0]["space_group"] == "P4mm"
    assert len(list((tmp_path / "run/mean_structures").iterdir())) == 16
    assert (tmp_path / "run/figures/phases.png").stat().st_size > 10_000


# c/a of 135 atoms of PbTiO3 on heating, 20 ps at each temperature: those at the transition settle last
MEASURED = {
    300: (1.0367, 0.0010), 350: (1.0119, 0.0062), 400: (1.0048, 0.0016), 450: (1.0005, 0.0006), 500: (1.0007, 0.0007),
    550: (1.0010, 0.0005), 600: (1.0010, 0.0006), 650: (1.0014, 0.0006), 700: (0.9997, 0.0004), 750: (1.0008, 0.0004),
    800: (0.9996, 0.0004), 850: (1.0013, 0.0006), 900: (1.0012, 0.0004),
}  # fmt: skip


@pytest.mark.parametrize(("late", "verdict"), [((350, 400), "PASS"), (tuple(range(350, 600, 50)), "UNDECIDED")])
def test_what_had_not_settled_counts_but_much_of_it_decides_nothing(
    tmp_path: Path, late: tuple[int, ...], verdict: str
) -> None:
    config = scan(
        tmp_path,
        temperatures=[f"{t} K" for t in MEASURED],
        transitions=[{"quantity": "c_over_a", "temperatures": ["400 K", "450 K"], "branch": "heating"}],
    )
    points: list[Any] = [
        ScanPoint(
            at,
            SimpleNamespace(  # type: ignore[arg-type]
                values={"c_over_a": Estimate(*MEASURED[t], 99.0, 0.5, 98)},
                late=frozenset(["c_over_a"] if t in late else ["a"]),
            ),
        )
        for at in config.scan()
        for t in [int(at.temperature_K)]
    ]
    series = Series("heating", "", points)
    found = phase_scan_results._search(config, series, "c_over_a")
    assert [t.low >= 350.0 and t.high <= 500.0 for t in found.transitions] == [True]
    assert "Had not settled: 350, 400" in found.explanation
    (judged,) = judge_transitions(config, [series], {("heating", "", "c_over_a"): found})
    assert judged.verdict == verdict


def test_no_transition_and_missing_points(tmp_path: Path) -> None:
    config = scan(
        tmp_path,
        references=[{"quantity": "a", "temperature": "400 K", "value": 4.02}],
        transitions=[{"quantity": "c_over_a", "temperatures": ["600 K", "700 K"]}],
    )
    output = concluded(tmp_path, config, {"heating": 1.0}, leave_out="heating_400K")
    found = {result.name: result for result in output.results}
    assert found["transition.heating.c_over_a"].value is None
    assert found["reference.transition.1.heating"].verdict == "FAIL"
    assert found["reference.1.heating"].verdict == "UNDECIDED"
    assert "heating.400K.volume" not in found and "heating.500K.volume" in found


def argon_for(protocol: Any, precision: Any) -> PairCalculator:
    return PairCalculator()


@pytest.mark.slow
def test_thermal_expansion_of_a_crystal_begins_at_its_static_lattice(tmp_path: Path) -> None:
    """A classical crystal expands linearly from the minimum of E(V) at 0 K, and stays what it is."""

    def energy(a: float) -> float:
        atoms = bulk("Ar", "fcc", a=a, cubic=True).repeat(2)
        atoms.calc = PairCalculator()
        return float(atoms.get_potential_energy())

    static = float(minimize_scalar(energy, bracket=(5.0, 5.3, 5.6)).x) ** 3
    write(tmp_path / "ar.extxyz", bulk("Ar", "fcc", a=static ** (1.0 / 3.0), cubic=True))
    config = scan(
        tmp_path,
        structure={"file": str(tmp_path / "ar.extxyz"), "repeat": REPEAT},
        temperatures=[f"{t} K" for t in (3, 10)],
        timestep="10 fs",
        duration="8 ps",
        pressure_damping="500 fs",
        trajectory_every="40 fs",
    )
    outcome = run_protocol(config, tmp_path / "argon", argon_for)
    assert outcome.results is not None
    found = {r["name"]: r for r in json.loads(outcome.results.read_text())["results"]}
    volumes = [found[f"heating.{t}K.volume"] for t in (3, 10)]
    cold, warm = ((v["value"], v["error"]) for v in volumes)
    assert abs(cold[0] - 3.0 / 7.0 * (warm[0] - cold[0]) - static) < 0.01 * static
    assert warm[0] - cold[0] > 2.0 * np.hypot(cold[1], warm[1])
    assert all(found[f"heating.{t}K.space_group"]["value"] == 225 for t in (3, 10))
