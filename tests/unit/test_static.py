"""What static protocols share: refusals, caching, stopping, references."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpsim.errors import ConfigError, SimulationError
from dpsim.protocols import registry
from dpsim.protocols.relaxations import Statics
from dpsim.protocols.static import plan_protocol, result
from statics_for_tests import CRYSTALS, LennardJones, calculator_for, config, run_static

FEW: dict[str, Any] = {"points": 6, "strain": 0.03}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"engine": "lammps"}, "`engine` is lammps; expected ase"),
        ({"reference": {"B1": "3 GPa"}}, "`reference` has B1; expected names such as"),
        ({"reference": {"B0": "3 eV"}}, "is an energy; expected a pressure"),
        ({"reference": {"B0": "3"}}, "has no unit"),
        ({"reference": {"B0_prime": "x"}}, "is no number"),
        ({"reference": {"B0": {"value": "3 GPa", "tolerance": "1 A"}}}, "is a length; expected a pressure"),
    ],
)
def test_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, "eos", "lj", **keys)


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [(108.0, 0.5, "PASS"), (112.0, 0.5, "FAIL"), (110.4, 0.5, "UNDECIDED"), (108.0, None, "PASS")],
)
def test_verdicts(tmp_path: Path, value: float, error: float | None, verdict: str) -> None:
    """Within 10 % of 100 GPa, surely, surely not, or not known."""
    one = config(tmp_path, "eos", "lj", reference={"B0": "1000 kbar"})
    found = result(one, "B0", "bulk modulus", value, error)
    assert (found.verdict, found.threshold, found.unit) == (verdict, "100 ± 10", "GPa")
    assert result(one, "V0", "volume", 3.0).verdict == "INFO"


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    """The same run again computes nothing; one more volume computes that; other atoms compute anew."""
    first = run_static(tmp_path, "eos", "lj", **FEW)[1]
    LennardJones.evaluations = 0
    assert run_static(tmp_path, "eos", "lj", **FEW)[1] == first
    assert LennardJones.evaluations == 1  # the check
    lost = tmp_path / "run" / "structures" / "main" / "static.03.npz"
    lost.write_bytes(lost.read_bytes()[:100])
    LennardJones.evaluations = 0
    assert run_static(tmp_path, "eos", "lj", **FEW)[1] == first
    assert LennardJones.evaluations == 2
    run_static(tmp_path, "eos", "lj", **FEW, precision="float32")
    assert LennardJones.evaluations > 10
    assert (tmp_path / "run" / "structures" / "main" / "relaxed.extxyz").is_file()


def test_a_killed_run_continues(tmp_path: Path) -> None:
    """SIGTERM after some evaluations stops cleanly; the same command ends with the same numbers."""
    calls = 0

    class Interrupted(LennardJones):
        def calculate(self, *args: Any, **keys: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 8:
                signal.raise_signal(signal.SIGTERM)
            super().calculate(*args, **keys)

    outcome, _ = run_static(tmp_path, "eos", "lj", lambda protocol, precision: Interrupted(), **FEW)
    assert outcome.stopped and outcome.results is None
    continued = run_static(tmp_path, "eos", "lj", **FEW)[1]
    other = tmp_path / "other"
    other.mkdir()
    assert run_static(other, "eos", "lj", **FEW)[1] == continued


def test_a_relaxation_that_does_not_end_is_an_error(tmp_path: Path) -> None:
    one = config(tmp_path, "eos", "lj", steps=2)
    atoms = CRYSTALS["lj"].repeat(2)
    atoms.rattle(0.2, seed=1)
    statics = Statics(one, atoms, LennardJones(), tmp_path)
    with pytest.raises(SimulationError, match="`steps` of the relaxation of x is 2.*Raise `steps`"):
        statics.relax("x", atoms)


def test_relaxation_finds_the_crystal(tmp_path: Path) -> None:
    """Displaced atoms in a strained cell come back; the volume is kept where only the shape may change."""
    atoms = CRYSTALS["cu"].copy()
    one = config(tmp_path, "eos", "cu", symmetry=False)
    atoms.set_cell(atoms.cell @ np.diag([1.03, 0.98, 1.0]), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    statics = Statics(one, atoms, calculator_for(one, None), tmp_path)
    free = statics.relax("free", atoms, "free")
    np.testing.assert_allclose(free.atoms.cell.lengths(), 3.590, atol=3e-3)
    assert free.largest_force < 1e-3 and np.abs(free.stress).max() < 1e-3
    shape = statics.relax("shape", atoms, "shape")
    assert shape.atoms.get_volume() == pytest.approx(atoms.get_volume(), rel=1e-6)
    np.testing.assert_allclose(shape.atoms.cell.lengths(), np.cbrt(atoms.get_volume()), atol=5e-3)


@pytest.mark.parametrize("name", ["eos", "elastic", "defects", "surface"])
def test_plan(tmp_path: Path, name: str) -> None:
    """Parts with atoms, evaluations and times."""
    keys = {"planes": [[1, 1, 1]]} if name == "surface" else {}
    plan = plan_protocol(config(tmp_path, name, "lj", **keys), calculator_for)
    assert len(plan.steps) >= 2 and plan.seconds is not None and plan.seconds > 0.0


def test_all_are_registered() -> None:
    assert {"eos", "elastic", "defects", "surface"} <= set(registry.PROTOCOLS)


def test_molecules_are_refused(tmp_path: Path) -> None:
    from ase.io import read, write

    one = config(tmp_path, "eos", "cu")
    atoms = read(tmp_path / "cu.extxyz")
    atoms.pbc = (True, True, False)
    write(tmp_path / "cu.extxyz", atoms)
    with pytest.raises(ConfigError, match="expected a crystal"):
        registry.check(one)
