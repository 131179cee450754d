"""examples/water_engines: its protocols are valid in every engine, and what is joined reads the runs' own names."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from dpsim.analysis.report import Curve, Result
from dpsim.protocols.registry import parse_protocol

EXAMPLE = Path(__file__).parents[2] / "examples" / "water_engines"


def script(name: str) -> ModuleType:
    """A file of the example, as a module."""
    spec = importlib.util.spec_from_file_location(f"water_engines_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


water_run, water_join = script("run"), script("join")


def options(**changes: object) -> argparse.Namespace:
    known = {"model": "water-pbe0ts-student", "duration": "60 ps", "pimd_duration": "6 ps", "beads": 16, "short": False}
    return argparse.Namespace(**known | changes)


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("engine", water_run.ENGINES)
def test_each_engine_has_a_valid_protocol(engine: str, short: bool, tmp_path: Path) -> None:
    for name in ("rdf_nvt.csv", "adf_nvt.csv"):
        (tmp_path / name).write_text("")
    keys = water_run.keys_of(engine, options(short=short), tmp_path)
    protocol = parse_protocol(yaml.safe_dump(keys), engine, EXAMPLE)
    assert protocol.engine == ("ipi" if engine == "pimd" else engine)
    assert protocol.name == f"water-{engine}"


def test_the_table_has_what_runs_have(tmp_path: Path) -> None:
    runs = {
        "AIMD": [Result("nvt.rdf.O-O.peak_position", "", 2.75, 0.01, "A")],
        "ASE": [Result("nvt.averages.pressure", "", 100.0, 20.0, "bar"), Result("nvt.diffusion.O", "", None)],
    }
    table = water_join.numbers(runs)
    assert "| g O-O: first peak (Å) | 2.750 ± 0.010 | – |" in table
    assert "diffusion" not in table
    curves = [Curve(name, "", "x", "y", [1.0, 2.0], [0.5, 1.0], [0.1, 0.1]) for name in water_join.PANELS]
    water_join.plot(tmp_path / "water.png", {"AIMD": curves, "ASE": curves})
    assert (tmp_path / "water.png").stat().st_size < 60_000
