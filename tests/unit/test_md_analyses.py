"""The analyses adf, density, vdos and diffusion of a protocol file: what they write, judge, and refuse beforehand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from dpsim.analysis.curves import (
    CurveComparison,
    compare_curve,
    curve_of_blocks,
    distance_without_noise,
    reference_curve,
)
from dpsim.analysis.rdf_shells import Value
from dpsim.config import validate
from dpsim.errors import ConfigError, DpsimError
from dpsim.protocols.runner import check_protocol, run_protocol
from dpsim.protocols.schema import Protocol
from dpsim.protocols.verdicts import judge_curve, longer_text, verdict_of
from pair_calculators import PairCalculator, argon

NVT = {"type": "nvt", "temperature": "40 K", "timestep": "5 fs", "steps": 400, "trajectory_every": "10 fs"}
NPT = {"type": "npt", "temperature": "40 K", "timestep": "5 fs", "steps": 200, "trajectory_every": "50 fs",
       "pressure_damping": "500 fs"}  # fmt: skip


def protocol(tmp_path: Path, stages: list[Any], analyses: list[Any], atoms: Atoms | None = None) -> Protocol:
    write(tmp_path / "a.extxyz", atoms or argon())
    data = {"name": "a", "structure": str(tmp_path / "a.extxyz"), "stages": stages, "analyses": analyses}
    return validate(data, Protocol)


def test_all_of_solid_argon(tmp_path: Path) -> None:
    """Close packing: a quarter of the angles near 60 degrees; slow phonons; no diffusion; mass per volume."""
    angle = np.arange(1.0, 180.0, 2.0)
    np.savez(tmp_path / "flat.npz", angle_deg=angle, **{"adf_ArArAr_4.5A": np.ones(90)})
    analyses = [
        {"type": "density", "reference": "1.78 g/cm^3", "tolerance": 0.2, "skip": "0 fs"},
        {"type": "adf", "triplets": ["Ar-Ar-Ar"], "reference": str(tmp_path / "flat.npz"), "bins": 30, "skip": "0 fs"},
        {"type": "averages", "skip": "0 fs"},
        {"type": "vdos", "resolution": "10 THz", "skip": "500 fs", "stages": ["nvt"]},
        {"type": "diffusion", "references": [{"species": "Ar", "value": "1e-3 cm^2/s"}], "stages": ["nvt"]},
    ]
    config = protocol(tmp_path, [NVT, NPT], analyses)
    run_protocol(config, tmp_path / "run", lambda p, precision: PairCalculator())
    found = {r["name"]: r for r in json.loads((tmp_path / "run/results.json").read_text())["results"]}
    mass = found["npt.density"]["value"] * found["npt.volume"]["value"] / 1.66053907
    assert mass == pytest.approx(32 * 39.95, rel=1e-3)
    assert found["npt.volume_per_atom"]["unit"] == "A^3"
    assert found["npt.averages.pressure"]["value"] == found["npt.pressure"]["value"]
    assert found["npt.averages.temperature"]["value"] == pytest.approx(40.0, rel=0.3)
    assert -0.1 < found["npt.averages.potential_energy"]["value"] < 0.0
    assert found["npt.adf.Ar-Ar-Ar.peak"]["value"] == pytest.approx(60.0, abs=4.0)
    assert found["npt.adf.Ar-Ar-Ar.difference"]["verdict"] == "FAIL"
    assert found["nvt.vdos.Ar.rms_frequency"]["value"] < 6.0
    assert found["nvt.diffusion.Ar"]["value"] is None
    files = {path.name for path in (tmp_path / "run").rglob("*")}
    assert {"adf_npt.csv", "vdos_nvt.csv", "vacf_nvt.csv", "adf_npt.png", "vdos_nvt.png", "diffusion_nvt.png",
            "density_npt.png"} <= files  # fmt: skip


@pytest.mark.parametrize(
    ("analysis", "words"),
    [
        ({"type": "adf", "triplets": ["Ar-Ne-Ar"]}, r"has the elements \['Ne'\]"),
        ({"type": "adf", "triplets": ["Ar-Ar"]}, "three elements"),
        ({"type": "adf", "triplets": ["Ar-Ar-Ar"], "cutoffs": {"Ar-Ne": "3 A"}}, "expected a positive distance"),
        ({"type": "density"}, "no stage is of type npt"),
        ({"type": "diffusion", "species": ["Ne"]}, r"`species` has \['Ne'\]"),
        (
            {"type": "diffusion", "stages": ["short"]},
            "leaves 11 frames, 0.01 ps apart, to diffusion; expected at least 50",
        ),
        ({"type": "vdos", "resolution": "3 K"}, "a temperature; expected a rate"),
        ({"type": "vdos", "reference": "none.npz"}, "no file"),
        ({"type": "vdos", "resolution": "0.5 THz"}, "expected at least .* for a resolution of 0.5 THz in 5 blocks"),
        ({"type": "adf", "triplets": ["Ar-Ar-Ar"], "blocks": 200}, "one in each of 200 blocks"),
    ],
)
def test_refused_before_anything_runs(tmp_path: Path, analysis: dict[str, Any], words: str) -> None:
    with pytest.raises(DpsimError, match=words):
        check_protocol(
            protocol(tmp_path, [NVT | {"name": "short", "steps": 40}, NVT], [analysis]),
            lambda p, precision: PairCalculator(),
        )


def test_hydrogen_needs_frames_close_together(tmp_path: Path) -> None:
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]], cell=[8.0] * 3, pbc=True)
    with pytest.raises(ConfigError, match=r"is 10 fs; expected at most 4 fs .* `trajectory_every: 4 fs`"):
        check_protocol(protocol(tmp_path, [NVT], [{"type": "vdos"}], atoms), lambda p, precision: PairCalculator())


def test_verdicts_know_the_error() -> None:
    assert verdict_of((0.9, 1.1), (0.8, 1.2)) == "PASS"
    assert verdict_of((0.9, 1.3), (0.8, 1.2)) == "UNDECIDED"
    assert verdict_of((1.3, 1.4), (0.8, 1.2)) == "FAIL"
    assert "2.3 times" in longer_text(1.1, (0.95, 1.25), (0.8, 1.2))

    def judged(difference: float, noise: float, error: float = 0.01, reliable: bool = True) -> str:
        x = np.arange(5.0)
        comparison = CurveComparison("x", x, x, Value(difference, error), noise, 1.0, 1.1, 2.0, "given", 10)
        return judge_curve("x", "x", comparison, 0.1, reliable).verdict

    assert judged(0.05, 0.02) == "PASS"
    assert judged(0.3, 0.02) == "FAIL"
    assert judged(0.3, 0.3) == "UNDECIDED"  # noise could hide twice what is accepted
    assert judged(0.12, 0.1, 0.005) == "PASS"  # most of it is noise
    assert judged(0.09, 0.02) == "UNDECIDED" and judged(0.3, 0.02, math.inf) == "UNDECIDED"
    assert judged(0.07, 0.02, reliable=False) == "UNDECIDED" and judged(0.3, 0.02, reliable=False) == "FAIL"
    assert judged(0.02, 0.01, 0.002, reliable=False) == "PASS"  # an interval five times as wide would


@pytest.mark.parametrize("n_blocks", [4, 10])
@pytest.mark.parametrize("true", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_the_distance_of_noisy_curves(n_blocks: int, true: float, noise: float) -> None:
    """Unbiased where it is above the noise; its 95 % interval misses the truth as rarely as it should."""
    random = np.random.default_rng(n_blocks)
    x = np.linspace(0.0, 180.0, 90)
    y = 0.2 + np.exp(-0.5 * ((x - 100.0) / 25.0) ** 2)
    shift = np.gradient(y)
    shift *= true * y.sum() / np.abs(shift).sum()
    found = []
    for _ in range(200):
        blocks = y + shift + noise * math.sqrt(n_blocks) * np.sqrt(y) * random.normal(size=(n_blocks, 90))
        c = compare_curve(curve_of_blocks("x", x, blocks), reference_curve("x", x, y, np.full(90, 1e-12)))
        found.append(distance_without_noise(c.difference, c.noise, c.n_blocks))
    value, low, high = np.array(found).T
    assert np.mean(low > true + 1e-9) < 0.1 and np.mean(high < true) < 0.06
    if true > noise:
        assert value.mean() == pytest.approx(true, rel=0.06)
