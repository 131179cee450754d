"""dpsim/units.py: exact conversion, against ASE and scipy, and errors that say what is wrong."""

from __future__ import annotations

import ase.units
import pytest
import scipy.constants

from dpsim import units
from dpsim.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("0.5 fs", "fs", 0.5),
        ("10 ps", "fs", 10000.0),
        ("1ns", "fs", 1e6),
        ("330 K", "K", 330.0),
        ("1 bar", "bar", 1.0),
        ("1 GPa", "bar", 10000.0),
        ("1 atm", "bar", 1.01325),
        ("-2.5e-1 nm", "A", -2.5),
        ("1 1/ps", "1/fs", 0.001),
        ("1 ps^-1", "1/fs", 0.001),
        ("3 meV/atom/ps", "meV/atom/ps", 3.0),
        ("1 eV/A^3", "GPa", 160.21766340),
        ("1 eV/Å**3", "GPa", 160.21766340),
        ("2 h", "s", 7200.0),
        ("1 g/mol", "amu", 1.66053906660e-27**-1 * 1e-3 / 6.02214076e23),
    ],
)
def test_reads_quantities(text: str, unit: str, value: float) -> None:
    assert units.parse_quantity(text, unit) == pytest.approx(value, rel=1e-15)


def test_agrees_with_scipy_and_ase() -> None:
    scipy_kb = scipy.constants.physical_constants["Boltzmann constant in eV/K"][0]
    assert pytest.approx(scipy_kb, rel=1e-9) == units.BOLTZMANN_EV_PER_K
    # ASE's default is CODATA 2014
    assert pytest.approx(ase.units.kB, rel=1e-6) == units.BOLTZMANN_EV_PER_K
    assert pytest.approx(ase.units.fs, rel=1e-7) == units.FS
    assert pytest.approx(1 / ase.units.bar, rel=1e-7) == units.EV_PER_A3_IN_BAR
    for unit, ase_value in {
        "kcal/mol": ase.units.kcal / ase.units.mol,
        "kJ/mol": ase.units.kJ / ase.units.mol,
        "hartree": ase.units.Hartree,
    }.items():
        assert units.parse_quantity(f"1 {unit}", "eV") == pytest.approx(ase_value, rel=1e-7), unit
    assert units.parse_quantity("1 bohr", "A") == pytest.approx(ase.units.Bohr, rel=1e-8)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 12345.678, -7.0])
def test_text_reads_back_exactly(value: float) -> None:
    for unit in ("fs", "bar", "meV/atom/ps"):
        assert units.parse_quantity(units.format_quantity(value, unit), unit) == value


def test_conversion_is_exact() -> None:
    assert units.convert(0.1, "ps", "fs") == 100.0
    assert units.convert(1.0, "ps", "fs") == 1000.0


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("5 bar", "fs", 'unit "bar" is a pressure; expected a time'),
        ("5", "fs", '"5" has no unit; expected a time'),
        ("fast", "fs", "not a quantity"),
        ("", "fs", "not a quantity"),
        ("5 fz", "fs", 'unit "fz" is unknown'),
        ("5 pss", "fs", "Did you mean `ps`?"),
        ("27 °C", "K", 'Write for example "300 K"'),
        ("1e999 fs", "fs", "out of range"),
        ("1 fs^99", "fs", "power 99"),
        ("nan fs", "fs", "not a quantity"),
        ("1 eV/A^3", "K", "is a pressure; expected a temperature"),
    ],
)
def test_refuses(text: str, unit: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        units.parse_quantity(text, unit)
    assert message in str(caught.value)
