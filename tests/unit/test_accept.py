"""The acceptance test says yes to the teacher itself, no to bad copies of it, and nothing without data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write

from dpsim.analysis.diffusion import Diffusion
from dpsim.analysis.report import Result
from dpsim.analysis.statistics import Estimate
from dpsim.config import load_yaml, parse_yaml
from dpsim.distill import accept_judge
from dpsim.distill.accept import Acceptance, accept
from dpsim.distill.accept_config import AcceptConfig, Condition
from dpsim.distill.accept_judge import diffusion_result, judge_data, judge_density
from dpsim.distill.accept_units import differences, evaluate
from dpsim.distill.accept_work import Contender, Work, groups_of
from dpsim.distill.config import PythonTeacher
from dpsim.distill.cost import Cost, measure_here
from dpsim.engines.ase_engine import state_from_atoms
from dpsim.errors import ConfigError, DataError, ModelFileError
from dpsim.protocols.schema import Structure
from soft_spheres import SoftSpheres, liquid, soft_spheres

HERE = Path(__file__).parent
SHORT = """
structures: [ar.extxyz]
conditions: [{temperature: 600 K}]
timestep: 4 fs
equilibration: 160 fs
duration: 800 fs
frame_every: 16 fs
nve_duration: 400 fs
runs: 2
frames: 40
cost: false
"""


def spheres(**settings: Any) -> PythonTeacher:
    return PythonTeacher(python="soft_spheres:soft_spheres", kwargs=settings, folder=HERE)


def config(folder: Path, text: str = SHORT) -> AcceptConfig:
    write(folder / "ar.extxyz", liquid())
    return parse_yaml(text, AcceptConfig, folder=folder)


def result(acceptance: Acceptance, ending: str) -> Result:
    return next(r for r in acceptance.results if r.name.endswith(ending))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Acceptance, Path]:
    """The teacher as its own student, stopped once on the way."""
    folder = tmp_path_factory.mktemp("good")

    def stop(text: str) -> None:
        if text.startswith("2/"):
            raise KeyboardInterrupt

    settings = config(folder)
    with pytest.raises(KeyboardInterrupt):
        accept(settings, spheres(), spheres(), folder / "run", say=stop)
    said: list[str] = []
    acceptance = accept(settings, spheres(), spheres(), folder / "run", say=said.append)
    assert [s.split()[2] for s in said if " md " in s] == ["ar_600K.teacher.1", "ar_600K.student.1"]  # the others: done
    return acceptance, folder


def test_the_teacher_is_not_failed_by_itself(good: tuple[Acceptance, Path]) -> None:
    acceptance, _ = good
    assert acceptance.verdict in ("PASS", "UNDECIDED")  # 0.8 ps are short
    for name in ("energy", "forces", "virial", "student_failures", "teacher_failures"):
        assert result(acceptance, name).verdict == "PASS", name
    assert result(acceptance, "forces").value == pytest.approx(0.0, abs=1e-12)
    assert {r.name.partition(".")[2] for r in acceptance.results} >= {"rdf.Ar-Ar", "diffusion.Ar", "drift"}
    assert all(r.explanation for r in acceptance.results)


def test_what_is_written(good: tuple[Acceptance, Path]) -> None:
    acceptance, folder = good
    page = acceptance.report.read_text()
    assert acceptance.verdict in page
    assert page.count("<img") == 4  # forces, g(r), diffusion, drift
    found = json.loads((folder / "run" / "acceptance.json").read_text())
    assert found["verdict"] == acceptance.verdict
    assert found["conditions"] == ["ar at 600 K"]
    assert len(found["criteria"]) == len(acceptance.results)


def test_done_work_is_not_done_again_and_longer_work_goes_on(good: tuple[Acceptance, Path]) -> None:
    _, folder = good
    said: list[str] = []
    settings = config(folder)
    assert settings.structures is not None and settings.conditions is not None
    bare = settings.model_copy(update={"structures": None, "conditions": None})  # as in a distillation
    accept(bare, spheres(), spheres(), folder / "run", settings.structures, settings.conditions, say=said.append)
    assert [s for s in said if " md " in s or " frames " in s] == []
    left = load_yaml(folder / "run" / "accept.yaml", AcceptConfig)  # a whole test: it can be edited and run again
    assert (left.structures, left.conditions) == (settings.structures, settings.conditions)
    md = folder / "run" / "md" / "ar_600K.teacher.0" / "md" / "thermo.csv"
    before = md.read_text()
    longer = config(folder, SHORT.replace("duration: 800", "duration: 960", 1))
    accept(longer, spheres(), spheres(), folder / "run", say=said.append)
    assert sum(" md " in s for s in said) == 4
    assert md.read_text().startswith(before)
    (nve,) = md.parents[2].glob("ar_600K.student.0/nve_after_280/thermo.csv")  # 160 + 960 fs in steps of 4 fs
    before = nve.read_text()
    longer = longer.model_copy(update={"nve_duration": 600.0})
    accept(longer, spheres(), spheres(), folder / "run", say=said.append)
    assert nve.read_text().startswith(before) and len(nve.read_text()) > len(before)
    with pytest.raises(ConfigError, match="start in a new folder"):
        accept(config(folder), spheres(), spheres(scale=2.0), folder / "run", say=said.append)


def labelled(folder: Path) -> Path:
    """The teacher's own labels with noise, which is then its error."""
    random, frames = np.random.default_rng(1), []
    for _ in range(12):
        atoms = liquid()
        atoms.positions += random.normal(0.0, 0.1, atoms.positions.shape)
        atoms.calc = soft_spheres()
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces() + random.normal(0.0, 0.05, (len(atoms), 3))
        atoms.calc = None
        frames.append(atoms)
    write(folder / "labelled.extxyz", frames)
    return folder / "labelled.extxyz"


def test_wrong_forces_are_refused(tmp_path: Path) -> None:
    """Forces 1.3 times too large: no gradient of the energy, and another liquid."""
    settings = config(tmp_path, SHORT.replace("runs: 2", f"runs: 1\ndata: [{labelled(tmp_path)}]"))
    acceptance = accept(settings, spheres(), spheres(force_scale=1.3), tmp_path / "run", say=lambda text: None)
    assert acceptance.verdict == "FAIL"
    assert result(acceptance, "forces").verdict == "FAIL"
    assert result(acceptance, "drift").verdict != "PASS"
    assert "beyond the threshold" in result(acceptance, "forces").explanation
    on_data = result(acceptance, "data1.forces")
    assert on_data.value is not None
    assert on_data.value > 1.5
    assert on_data.verdict == "FAIL"
    assert "labelled.extxyz" in acceptance.report.read_text()


@pytest.mark.parametrize(("baseline", "verdict"), [("", "FAIL"), ("baseline: water-pbe0ts", "PASS")])
def test_a_baseline_says_what_a_small_model_can_reach(tmp_path: Path, baseline: str, verdict: str) -> None:
    settings = config(tmp_path, f"{SHORT}\ndata: [{labelled(tmp_path)}]\n{baseline}")
    random = np.random.default_rng(1)
    found = {
        f"0.{role}": {
            "n_atoms": [192] * 40,
            "energy": [0.0] * 40,
            "force_mse": list(error**2 * random.uniform(0.9, 1.1, 40)),
            "virial_mse": [None] * 40,
        }
        for role, error in (("teacher", 0.026), ("student", 0.048), ("baseline", 0.045))
    }
    contenders = (Contender.of("teacher", spheres()), Contender.of("student", spheres()))
    (judged,), section = judge_data(Work(settings, contenders, [], tmp_path, None, print), found)
    assert judged.verdict == verdict
    assert section is not None and section.table is not None
    assert len(section.table.rows) == (3 if baseline else 2)


def test_a_student_that_explodes_fails_and_a_teacher_that_fails_decides_nothing(tmp_path: Path) -> None:
    short = config(tmp_path, SHORT.replace("runs: 2", "runs: 1"))
    bad = spheres(fails_after=150)
    student = accept(short, spheres(), bad, tmp_path / "student", say=lambda text: None)
    assert (student.verdict, result(student, "student_failures").verdict) == ("FAIL", "FAIL")
    assert "md:" in result(student, "student_failures").explanation
    teacher = accept(short, bad, spheres(), tmp_path / "teacher", say=lambda text: None)
    assert (teacher.verdict, result(teacher, "teacher_failures").verdict) == ("UNDECIDED", "UNDECIDED")


def diffusion(regime: str, value: float | None = None, upper: float | None = None) -> Diffusion:
    estimate = None if value is None else Estimate(value, 0.03 * value, 100.0, 0.5, 16)
    empty = np.zeros(0)
    return Diffusion(regime, f"{regime}.", estimate, 1.0, 0.9, 64, 4, empty, empty, empty, empty, upper)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("student", "teacher", "verdict"),
    [
        (diffusion("diffusive", 0.23), diffusion("diffusive", 0.22), "PASS"),
        (diffusion("diffusive", 0.23), diffusion("diffusive", 0.1), "FAIL"),
        (diffusion("diffusive", 0.23), diffusion("diffusive", 0.27), "UNDECIDED"),
        (diffusion("caged", None, 0.01), diffusion("caged", None, 0.01), "INFO"),
        (diffusion("diffusive", 0.23), diffusion("caged", None, 0.01), "FAIL"),
        (diffusion("caged", None, 0.5), diffusion("diffusive", 0.23), "UNDECIDED"),
        (diffusion("too short"), diffusion("diffusive", 0.23), "UNDECIDED"),
        (diffusion("diffusive", -0.01), diffusion("diffusive", 0.23), "UNDECIDED"),
    ],
)
def test_diffusion_is_compared_where_there_is_some(student: Diffusion, teacher: Diffusion, verdict: str) -> None:
    assert diffusion_result("d", "Diffusion", student, teacher, AcceptConfig()).verdict == verdict


def test_groups_have_names_of_their_own(tmp_path: Path) -> None:
    structures = [Structure(file=tmp_path / a / "POSCAR") for a in ("x", "y")] + [Structure(water_box=8)]
    conditions = [Condition(temperature="300 K"), Condition(temperature="300 K", pressure="1 bar")]  # type: ignore[arg-type]
    names = [g.name for g in groups_of(structures, conditions)]
    assert len(set(names)) == 6
    assert names[0] == "POSCAR1_300K"
    assert groups_of(structures, conditions)[-1].label == "water8 at 300 K, 1 bar"


class NowAndThen(SoftSpheres):
    """Fails on every third structure."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        super().calculate(*args, **kwargs)
        if self.calls % 3 == 0:
            raise RuntimeError("no convergence")


def test_frames_that_cannot_be_evaluated_are_set_aside() -> None:
    frames = [liquid() for _ in range(6)]
    for k, frame in enumerate(frames):
        frame.positions[0] += 0.01 * k
    reference, other = evaluate(frames, NowAndThen()), evaluate(frames, SoftSpheres(scale=1.1))
    found = differences(reference, other)
    assert [x is None for x in found["force_mse"]] == [False, False, True] * 2
    assert [x is None for x in found["energy"]] == [False, False, True] * 2
    assert found["virial_mse"][0] > 0.0


@pytest.mark.slow
def test_what_a_model_costs(tmp_path: Path) -> None:
    write(tmp_path / "ar.extxyz", liquid())
    structure = Structure(file=tmp_path / "ar.extxyz").model_dump(mode="json")
    found = Cost(**measure_here(spheres().model_dump(mode="json"), structure, 0, None, "cpu"))
    assert found.n_atoms == 27
    assert 0.0 < found.seconds < 0.1
    assert found.bytes is None or found.bytes > 0.0


@pytest.mark.slow
def test_a_kill_changes_no_number(good: tuple[Acceptance, Path], tmp_path: Path) -> None:
    """kill -9 in the middle of a simulation; the same command then ends with the numbers of a quiet run."""
    settings = config(tmp_path)
    (tmp_path / "accept.yaml").write_text(SHORT)
    code = (
        "import sys; from pathlib import Path; from test_accept import *\n"
        "folder = Path(sys.argv[1])\n"
        "accept(config(folder), spheres(), spheres(), folder / 'run')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    rows = tmp_path / "run" / "md" / "ar_600K.student.0" / "md" / "thermo.csv"
    while process.poll() is None and not (rows.is_file() and rows.stat().st_size > 5000):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    acceptance = accept(settings, spheres(), spheres(), tmp_path / "run", say=lambda text: None)
    before = {r.name: r.value for r in good[0].results}
    assert {r.name: r.value for r in acceptance.results} == before


@pytest.mark.parametrize(
    ("swollen", "drifts", "verdict"),
    [(0.0, 0.0, "PASS"), (0.05, 0.0, "FAIL"), (0.01, 0.0, "UNDECIDED"), (0.0, 0.3, "")],
)
def test_densities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swollen: float, drifts: float, verdict: str
) -> None:
    """Volumes that fluctuate by 1 %; a volume that drifts all the time tells nothing."""
    text = SHORT.replace("600 K}", "600 K, pressure: 1 bar}").replace("duration: 800", "duration: 8000", 1)
    settings, random = config(tmp_path, text), np.random.default_rng(1)
    assert settings.structures is not None and settings.conditions is not None
    groups = groups_of(settings.structures, settings.conditions)
    contenders = (Contender.of("teacher", spheres()), Contender.of("student", spheres()))
    work = Work(settings, contenders, groups, tmp_path, None, print)

    def thermo(path: Path) -> dict[str, np.ndarray]:
        size = 1000.0 * (1.0 + swollen) if ".student." in str(path) else 1000.0
        time = np.linspace(0.0, 8.0, 1600)
        return {"time_ps": time, "volume_A3": size * (1.0 + random.normal(0.0, 0.01, 1600) + drifts * time / 8.0)}

    monkeypatch.setattr(accept_judge, "read_thermo", thermo)
    monkeypatch.setattr(accept_judge, "_start", lambda *_: state_from_atoms(liquid()))
    (found,) = judge_density(groups[0], work).results
    assert found.verdict == (verdict or "UNDECIDED")
    assert found.value == pytest.approx(-swollen, abs=0.002 if not drifts else 0.1)
    assert "g/cm³" in found.explanation


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing; expected at least one of each"):
        accept(AcceptConfig(), spheres(), spheres(), tmp_path)
    with pytest.raises(ConfigError, match="at least 40 frames"):
        parse_yaml("{duration: 1 ps, frame_every: 100 fs}", AcceptConfig)
    with pytest.raises(ConfigError, match="unknown"):
        parse_yaml("{durations: 1 ps}", AcceptConfig)
    lost = config(tmp_path, f"{SHORT}\nbaseline: gone.dpsim")
    with pytest.raises(ModelFileError, match="gone.dpsim"):
        accept(lost, spheres(), spheres(), tmp_path / "lost")
    assert not (tmp_path / "lost" / "md").exists()
    gone = parse_yaml("{structures: [gone.xyz], conditions: [{temperature: 300 K}]}", AcceptConfig, folder=tmp_path)
    with pytest.raises(DataError, match="no file"):
        accept(gone, spheres(), spheres(), tmp_path)
