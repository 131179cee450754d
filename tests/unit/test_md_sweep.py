"""The sweep of molecular dynamics: replicas analysed together, models compared; made-up runs and real ones."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from dpsim.analysis.comparison import scatter_p_value
from dpsim.analysis.report import Result
from dpsim.config import parse_yaml, validate
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.engines.base import StageResult
from dpsim.engines.output import THERMO, THERMO_COLUMNS
from dpsim.errors import ConfigError
from dpsim.protocols.averages import averages_of
from dpsim.protocols.context import AnalysisOutput, StageRecord
from dpsim.protocols.md_sweep import MdSweep
from dpsim.protocols.md_sweep_results import _scatter
from dpsim.protocols.sampling import sample
from dpsim.protocols.sweep import FinishedPoint, Point, check_protocol, run_protocol
from pair_calculators import PairCalculator, argon

ROWS = 400
PER_K = 1e-3  # eV: the made-up energy of an atom is this times the temperature
ENERGY = "nvt.averages.potential_energy"


def sweep(folder: Path, **changes: Any) -> MdSweep:
    write(folder / "ar.extxyz", argon())
    data = {
        "name": "ar",
        "protocol": "md-sweep",
        "structure": str(folder / "ar.extxyz"),
        "temperatures": ["20 K", "40 K"],
        "stages": [{"type": "nvt", "timestep": "5 fs", "steps": 60, "damping": "20 fs"}],
        "analyses": [{"type": "averages"}],
    }
    return validate(data | changes, MdSweep)


def made_up(point: Point, folder: Path, mean: float, seed: int) -> FinishedPoint:
    """A run whose energy per atom is `mean` with noise of 0.01 eV that forgets itself in about 2 rows."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    noise = np.empty(ROWS)
    noise[0] = random.normal()
    for k in range(1, ROWS):
        noise[k] = 0.6 * noise[k - 1] + math.sqrt(1 - 0.6**2) * random.normal()
    state = state_from_atoms(argon())
    energy = state.n_atoms * (mean + 0.01 * noise)
    columns = {
        "time_ps": 0.1 * np.arange(ROWS),
        "potential_energy_eV": energy,
        "temperature_K": random.normal(size=ROWS),
    }
    lines = [",".join(THERMO_COLUMNS)]
    for k in range(ROWS):
        values = [columns[name][k] if name in columns else 0.0 for name in THERMO_COLUMNS[1:]]
        lines.append(",".join([str(k), *(f"{value:.10g}" for value in values)]))
    (folder / THERMO).write_text("\n".join([*lines, ""]))
    settings = point.protocol.stages[0].settings()
    stage = StageRecord("nvt", folder, settings, StageResult(state, ROWS, True, 1.0, 1.0))
    results = {result.name: result for result in averages_of([sample(stage, None)], "nvt")}
    return FinishedPoint(point, folder, results, {"nvt": stage})


def concluded(
    folder: Path, config: MdSweep, seed: int = 0, mean: Callable[[Mapping[str, Any]], float] | None = None
) -> tuple[AnalysisOutput, dict[str, Result]]:
    """What the sweep says of made-up runs. mean: of the energy per atom, by the labels of a point."""
    law = mean or (lambda labels: PER_K * labels["temperature_K"])
    points = [
        made_up(point, folder / str(seed) / point.key, law(point.labels), 1000 * seed + k)
        for k, point in enumerate(config.points())
    ]
    output = config.conclude(points, folder / str(seed) / "figures")
    return output, {result.name: result for result in output.results}


def test_points_are_all_combinations(tmp_path: Path) -> None:
    stages = [
        {"type": "nvt", "temperature": "99 K", "steps": 10},
        {"type": "npt", "steps": 10},
        {"type": "nve", "steps": 10},
    ]
    config = sweep(tmp_path, pressures=["1 bar", "-1 kbar"], replicas=2, label="a", compare={"b": "water-pbe0ts"},
                   stages=stages, analyses=[])  # fmt: skip
    points = {point.key: point for point in config.points()}
    assert len(points) == 16
    one = points["b.40K.minus1000bar.2"]
    assert one.labels == {"model": "b", "temperature_K": 40.0, "pressure_bar": -1000.0, "replica": 2}
    first, second, last = one.protocol.stages
    assert first.temperature == 99.0 and second.temperature == 40.0 and second.pressure == -1000.0  # type: ignore[union-attr]
    assert last.type == "nve" and one.protocol.model == "water-pbe0ts"
    assert points["a.40K.minus1000bar.2"].protocol.model == config.model
    assert len({point.protocol.seed for point in points.values()}) == 16


def test_replicas_count_as_independent_runs(tmp_path: Path) -> None:
    """Errors of two are those of one over sqrt 2, the truth is within them, and they have a report of their own."""
    (tmp_path / "one").mkdir(), (tmp_path / "four").mkdir()
    _, single = concluded(tmp_path / "one", sweep(tmp_path / "one"))
    output, found = concluded(tmp_path / "four", sweep(tmp_path / "four", replicas=4))
    assert set(found) == {f"{t}K.{name.partition('.')[2]}" for t in (20, 40) for name in single}
    for t in (20, 40):
        one, four = single[f"{t}K.{ENERGY}"], found[f"{t}K.{ENERGY}"]
        expected = 0.01 * math.sqrt((1 + 0.6) / (1 - 0.6) / ROWS)
        assert one.error == pytest.approx(expected, rel=0.5) and four.error == pytest.approx(expected / 2, rel=0.4)
        assert abs(four.value - PER_K * t) < 4 * four.error  # type: ignore[operator]
        report = json.loads((tmp_path / f"four/0/conditions/{t}K/results.json").read_text())
        assert [r for r in report["results"] if r["name"] == ENERGY][0]["value"] == four.value
        assert "points/20K.4" in str(report["provenance"]) or t == 40
    assert [section.title for section in output.sections] == ["Numbers", "Against temperature"]
    table = output.sections[0].table
    assert table is not None and tuple(table.header) == ("number", "20 K", "40 K")
    assert (tmp_path / f"four/0/figures/against_{ENERGY}.png").is_file()


def test_replicas_that_differ_are_told_and_others_are_not(tmp_path: Path) -> None:
    config = sweep(tmp_path, replicas=3)
    output, _ = concluded(
        tmp_path, config, mean=lambda at: 0.02 + 0.02 * (at["replica"] == 2 and at["temperature_K"] == 40)
    )
    (warning,) = output.warnings
    assert f"`{ENERGY}` at 40 K by more than their errors allow" in warning and warning.count("±") == 3
    alarms = 0
    for seed in range(1, 31):
        points = [
            made_up(point, tmp_path / str(seed) / point.key, 0.02, 1000 * seed + k)
            for k, point in enumerate(config.points())
        ]
        alarms += bool(_scatter(points))
    assert alarms <= 3  # 5 % of 30 at most, by Holm's rule


@pytest.mark.parametrize(("n", "dof"), [(2, 4), (3, 4), (6, 8)])
def test_scatter_of_runs_with_estimated_errors(n: int, dof: int) -> None:
    """p is uniform where the values are equal: errors are estimates with so many degrees of freedom."""
    random = np.random.default_rng(n)
    p = []
    for _ in range(2000):
        errors = 0.5 * np.sqrt(random.chisquare(dof, n) / dof)
        values = 0.5 * random.normal(size=n)
        p.append(
            scatter_p_value([Result("x", "x", float(v), float(e)) for v, e in zip(values, errors, strict=True)], dof)
        )
    assert np.quantile(p, [0.05, 0.2, 0.5]) == pytest.approx([0.05, 0.2, 0.5], abs=0.04)
    assert math.isnan(scatter_p_value([Result("x", "x", 1.0, 0.1), Result("x", "x", 2.0, None)]))


@pytest.mark.parametrize("apart", [0.0, 0.01])
def test_models_are_compared_under_the_same_conditions(tmp_path: Path, apart: float) -> None:
    config = sweep(tmp_path, label="a", compare={"b": "water-pbe0ts"})
    output, found = concluded(
        tmp_path, config, mean=lambda at: PER_K * at["temperature_K"] + apart * (at["model"] == "b")
    )
    assert {f"{m}.{t}K.{ENERGY}" for m in "ab" for t in (20, 40)} < set(found)
    section = output.sections[0]
    assert section.title == "Do the models differ?" and section.table is not None
    marked = [row for row in section.table.rows if "✱" in str(row)]
    assert len(marked) == (2 if apart else 0) and section.text.startswith(f"{len(marked)} of ")
    assert {row[1] for row in marked} == ({"20 K", "40 K"} if apart else set())
    assert tuple(section.table.header) == ("number", "at", "model", "differs by", "", "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperatures": [], "stages": [{"type": "nvt", "temperature": "20 K", "steps": 10}]}, "nothing varies"),
        ({"temperatures": [], "replicas": 2}, "a stage of type nvt has no `temperature`, and the sweep no"),
        ({"stages": [{"type": "nvt", "temperature": "20 K", "steps": 10}]}, "no nvt or npt stage is without"),
        ({"pressures": ["1 bar"]}, "no npt stage is without a `pressure`"),
        ({"temperatures": ["20 K", "20 K"]}, "`temperatures` has .* expected different ones"),
        ({"compare": {"model": "water-pbe0ts"}}, "`compare` has model"),
        ({"replicas": 0}, "replicas"),
    ],
)
def test_what_cannot_be_swept_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep(tmp_path, **changes)


def test_analyses_are_checked_before_anything_is_run(tmp_path: Path) -> None:
    config = sweep(tmp_path, analyses=[{"type": "rdf", "pairs": ["O-O"]}])
    with pytest.raises(ConfigError, match=r"point 20K: .*O.* expected those of the structure"):
        check_protocol(config, argon_for)
    with pytest.raises(ConfigError, match="line 3"):
        parse_yaml(
            "name: a\nprotocol: md-sweep\ntemperatures: [20, 40]\nstructure: {water_box: 8}\nstages: []\n", MdSweep
        )


def argon_for(protocol: Any, precision: Any) -> PairCalculator:
    return PairCalculator()


def test_a_real_sweep(tmp_path: Path) -> None:
    """Two temperatures, two replicas: g(r) of both together, conservation of each; only what is missing runs again."""
    stages = [
        {"type": "nvt", "timestep": "5 fs", "steps": 60, "damping": "20 fs", "trajectory_every": "25 fs"},
        {"type": "nve", "timestep": "5 fs", "steps": 60, "trajectory_every": "25 fs"},
    ]
    analyses = [{"type": "rdf", "blocks": 4}, {"type": "nve_check", "timesteps": [], "diagnosis": False}]
    config = sweep(tmp_path, replicas=2, stages=stages, analyses=analyses)
    outcome = run_protocol(config, tmp_path / "run", argon_for)
    found = json.loads((tmp_path / "run/results.json").read_text())
    results = {result["name"]: result for result in found["results"]}
    assert outcome.verdict == "PASS"
    judged = {name for name, result in results.items() if result["verdict"] != "INFO"}
    assert judged == {f"{t}K.{k}.nve.energy_drift" for t in (20, 40) for k in (1, 2)}
    assert results["20K.nve.rdf.Ar-Ar.peak_position"]["value"] == pytest.approx(3.7, abs=0.3)
    assert {curve["name"] for curve in found["curves"]} == {f"{t}K.nve.rdf.Ar-Ar" for t in (20, 40)}
    page = (tmp_path / "run/report.html").read_text()
    assert "Against temperature" in page and "Curves" in page
    frames = json.loads((tmp_path / "run/points/20K.1/results.json").read_text())
    assert any(result["name"] == "nve.rdf.Ar-Ar.peak_position" for result in frames["results"])
    before = (tmp_path / "run/points/20K.1/results.json").stat().st_mtime_ns
    (tmp_path / "run/points/40K.2/unit.json").unlink()
    run_protocol(config, tmp_path / "run", argon_for)
    assert (tmp_path / "run/points/20K.1/results.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "run/results.json").read_text())["results"] == found["results"]
