"""Equations of state: fits recover what made the data; transitions are where enthalpies cross; the protocol, of EMT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

from dpsim.analysis.eos import EquationOfState, Form, energy, fit_eos, pressure, transition_pressures
from dpsim.errors import DataError
from statics_for_tests import FORMS, lj_energy, run_static, structure

TRUE = (-10.0, 16.0, 1.6, 4.5)
VOLUMES = np.linspace(14.5, 17.5, 9)


def exact(parameters: tuple[float, float, float, float], form: Form = "birch-murnaghan") -> EquationOfState:
    return fit_eos(VOLUMES, energy(form, VOLUMES, parameters), form)


@pytest.mark.parametrize("form", FORMS)
def test_fit_recovers_the_parameters(form: Form) -> None:
    fit = exact(TRUE, form)
    np.testing.assert_allclose(fit.parameters, TRUE, rtol=1e-9)
    assert fit.rms < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_pressure_is_the_derivative(form: Form) -> None:
    """E(V) - E(V0) = -int P dV; P(V0) = 0; B0 and B0' are those of P."""
    work, _ = quad(lambda v: float(pressure(form, v, TRUE)), 16.0, 14.0)
    assert -work == pytest.approx(float(energy(form, 14.0, TRUE)) - TRUE[0], rel=1e-9)
    h = 1e-3
    p = pressure(form, 16.0 + h * np.arange(-2, 3), TRUE)
    assert p[2] == pytest.approx(0.0, abs=1e-14)
    bulk = -16.0 * (p[0] - 8 * p[1] + 8 * p[3] - p[4]) / (12 * h)
    assert bulk == pytest.approx(1.6, rel=1e-8)
    curvature = (p[1] - 2 * p[2] + p[3]) / h**2  # B' = dB/dP = -(V P'' + P')/P'
    assert 16.0**2 * curvature / 1.6 - 1.0 == pytest.approx(4.5, rel=1e-3)


def test_errors_are_those_of_noisy_data() -> None:
    """Of 200 noisy curves, (estimate - truth)/error has the spread of Student's t with 5 degrees of freedom."""
    random = np.random.default_rng(1)
    clean = energy("vinet", VOLUMES, TRUE)
    fits = [fit_eos(VOLUMES, clean + 1e-4 * random.standard_normal(9), "vinet") for _ in range(200)]
    scaled = np.array([(np.array(f.parameters) - TRUE) / f.errors for f in fits])
    assert np.all(np.abs(scaled.mean(axis=0)) < 0.3)
    np.testing.assert_allclose(np.mean(np.abs(scaled) < 2.571, axis=0), 0.95, atol=0.05)


def test_transition_is_where_enthalpies_cross() -> None:
    """Two phases of one B0 V0 shape, shifted: P_t = -dE/dV of the common tangent."""
    a, b = exact(TRUE), exact((-9.97, 15.2, 1.6, 4.5))
    [(p, error)] = transition_pressures(a, b)
    va, vb = a.volume_at(p), b.volume_at(p)
    assert float(a.energy(va) - b.energy(vb)) / (vb - va) == pytest.approx(p, rel=1e-6)
    assert error < 1e-8
    assert transition_pressures(a, exact((-9.0, 16.0, 1.6, 4.5))) == []


def test_error_of_a_transition() -> None:
    """Against the spread over noisy curves."""
    random = np.random.default_rng(2)
    curves = [energy("birch-murnaghan", VOLUMES, p) for p in (TRUE, (-9.97, 15.2, 1.6, 4.5))]
    found = []
    for _ in range(100):
        pair = [fit_eos(VOLUMES, e + 2e-4 * random.standard_normal(9)) for e in curves]
        found += transition_pressures(*pair)
    values, errors = np.array(found).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.3)


def test_a_minimum_outside_is_refused() -> None:
    with pytest.raises(DataError, match="an end of the range"):
        fit_eos(VOLUMES, VOLUMES)
    with pytest.raises(DataError, match="at least 5"):
        fit_eos(VOLUMES[:4], VOLUMES[:4])


def test_protocol_of_lennard_jones(tmp_path: Path) -> None:
    """V0, B0 and the energy of fcc and hcp-like bcc against lattice sums; results judged; static is relaxed."""
    outcome, found = run_static(
        tmp_path, "eos", "lj", points=7, strain=0.03,
        reference={"B0": "1 GPa", "V0": {"value": f"{lj_energy().volume:.6f} A^3/atom", "tolerance": "0.1 %"}},
    )  # fmt: skip
    exact_lj = lj_energy()
    assert found["V0"].value == pytest.approx(exact_lj.volume, rel=1e-4)
    assert found["B0"].value == pytest.approx(exact_lj.bulk_GPa, rel=5e-3)
    assert abs(found["B0"].value - exact_lj.bulk_GPa) < 5 * found["B0"].error
    assert found["E0"].value == pytest.approx(exact_lj.energy, rel=1e-6)
    assert found["static.V0"].value == pytest.approx(found["V0"].value, rel=1e-6)
    assert (found["V0"].verdict, found["B0"].verdict, outcome.verdict) == ("PASS", "FAIL", "FAIL")
    assert found["B0_prime"].verdict == "INFO"
    assert outcome.report is not None and outcome.report.is_file()


def test_protocol_of_two_phases(tmp_path: Path) -> None:
    """Copper in EMT: fcc below bcc; numbers of both."""
    _, found = run_static(
        tmp_path, "eos", "cu", points=6, strain=0.04, phase="fcc", symmetry=True,
        phases={"bcc": structure(tmp_path, "bcc")},
    )  # fmt: skip
    assert found["B0"].value == pytest.approx(134.4, rel=0.01)
    assert found["a"].value == pytest.approx(3.590, abs=0.001)
    assert found["bcc.energy_difference"].value == pytest.approx(32.7, abs=0.5)
