"""Physical units: reading "0.5 fs" or "1 meV/atom/ps", exact conversion, and the few constants dpsim needs.

Every unit is kept as an exact rational number of SI units (CODATA 2018, as the SI fixes it since 2019; only the mass
unit and the Bohr radius are measured), so that "10 ps" is 10000.0 fs to the last bit.
Internal units: Angstrom, eV, amu, and ASE's time unit A (amu/eV)^1/2 = 10.18 fs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from dpsim.errors import ConfigError, did_you_mean

Dimension = tuple[int, int, int, int]  # powers of length, time, mass, temperature


@dataclass(frozen=True)
class Unit:
    """A unit as `si` times SI base units to the powers `dimension`."""

    si: Fraction
    dimension: Dimension

    def __mul__(self, other: Unit) -> Unit:
        a, b = self.dimension, other.dimension
        return Unit(self.si * other.si, (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]))

    def __pow__(self, n: int) -> Unit:
        a = self.dimension
        return Unit(self.si**n, (a[0] * n, a[1] * n, a[2] * n, a[3] * n))


ONE: Dimension = (0, 0, 0, 0)
LENGTH: Dimension = (1, 0, 0, 0)
TIME: Dimension = (0, 1, 0, 0)
MASS: Dimension = (0, 0, 1, 0)
TEMPERATURE: Dimension = (0, 0, 0, 1)
ENERGY: Dimension = (2, -2, 1, 0)
PRESSURE: Dimension = (-1, -2, 1, 0)

# Each line: names, SI value as a decimal, dimension. Source of the numbers: CODATA 2018 (physics.nist.gov/constants).
_TABLE: tuple[tuple[str, str, Dimension], ...] = (
    ("m", "1", LENGTH),
    ("cm", "1e-2", LENGTH),
    ("nm", "1e-9", LENGTH),
    ("pm", "1e-12", LENGTH),
    ("A Å Å angstrom Angstrom", "1e-10", LENGTH),
    ("bohr Bohr", "5.29177210903e-11", LENGTH),
    ("s", "1", TIME),
    ("fs", "1e-15", TIME),
    ("ps", "1e-12", TIME),
    ("ns", "1e-9", TIME),
    ("us µs μs", "1e-6", TIME),
    ("min", "60", TIME),
    ("h", "3600", TIME),
    ("K kelvin Kelvin", "1", TEMPERATURE),
    ("kg", "1", MASS),
    ("g", "1e-3", MASS),
    ("amu u Da", "1.66053906660e-27", MASS),
    ("J", "1", ENERGY),
    ("kJ", "1e3", ENERGY),
    ("cal", "4.184", ENERGY),
    ("kcal", "4184", ENERGY),
    ("eV", "1.602176634e-19", ENERGY),
    ("meV", "1.602176634e-22", ENERGY),
    ("ueV µeV μeV", "1.602176634e-25", ENERGY),
    ("hartree Hartree Ha", "4.3597447222071e-18", ENERGY),
    ("Hz", "1", (0, -1, 0, 0)),
    ("THz", "1e12", (0, -1, 0, 0)),
    ("Pa", "1", PRESSURE),
    ("mPa", "1e-3", PRESSURE),
    ("kPa", "1e3", PRESSURE),
    ("MPa", "1e6", PRESSURE),
    ("GPa", "1e9", PRESSURE),
    ("bar", "1e5", PRESSURE),
    ("mbar", "1e2", PRESSURE),
    ("kbar", "1e8", PRESSURE),
    ("atm", "101325", PRESSURE),
    ("B", "1", ONE),
    ("kB", "1e3", ONE),
    ("MB", "1e6", ONE),
    ("GB", "1e9", ONE),
    ("TB", "1e12", ONE),
    ("KiB", "1024", ONE),
    ("MiB", "1048576", ONE),
    ("GiB", "1073741824", ONE),
    ("mol", "6.02214076e23", ONE),
    ("atom atoms", "1", ONE),
)

UNITS: dict[str, Unit] = {
    name: Unit(Fraction(value), dimension) for names, value, dimension in _TABLE for name in names.split()
}

_DIMENSION_NAMES: dict[Dimension, str] = {
    ONE: "a plain number",
    LENGTH: "a length",
    TIME: "a time",
    MASS: "a mass",
    TEMPERATURE: "a temperature",
    ENERGY: "an energy",
    PRESSURE: "a pressure",
    (0, -1, 0, 0): "a rate (1/time)",
    (2, -3, 1, 0): "an energy per time",
    (1, -2, 1, 0): "a force",
    (3, 0, 0, 0): "a volume",
    (-3, 0, 1, 0): "a density",
    (1, 2, -1, 0): "a compressibility (1/pressure)",
    (1, -1, 0, 0): "a velocity",
    (0, -1, 0, 1): "a heating rate",
    (2, -1, 0, 0): "a diffusion coefficient",
    (-1, -1, 1, 0): "a viscosity",
}

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*$", re.DOTALL)
_FACTOR = re.compile(r"([^\W\d_]+)(?:(?:\^|\*\*)?([+-]?\d+))?$")


def parse_unit(text: str) -> Unit:
    """A unit expression such as "fs", "1/ps", "meV/atom/ps", "eV/A^3", "kJ mol^-1". Raises ConfigError."""
    unit = Unit(Fraction(1), ONE)
    for k, denominator in enumerate(text.replace("·", "*").split("/")):
        for word in re.split(r"(?<!\*)\*(?!\*)|\s+", denominator.strip()):
            if word == "1" and k == 0:
                continue
            match = _FACTOR.match(word)
            if match is None or match[1] not in UNITS:
                name = match[1] if match else word
                raise ConfigError(
                    f'unit "{name or text}" is unknown; expected one of fs, ps, K, bar, GPa, A, eV, meV, amu, ... '
                    f"and their products and powers, as in eV/A^3.{did_you_mean(name, UNITS)}"
                )
            power = int(match[2] or 1)
            if abs(power) > 9:
                raise ConfigError(f'unit "{word}" has the power {power}; expected -9 to 9. Correct the unit.')
            unit = unit * UNITS[match[1]] ** (power if k == 0 else -power)
    return unit


def convert(value: float, unit: str, to: str) -> float:
    """`value` in units `unit` as a number of units `to`. Raises ConfigError if the dimensions differ."""
    return float(Fraction(value) * factor(unit, to))


def factor(unit: str, to: str) -> Fraction:
    """How many `to` make one `unit`, exactly. Raises ConfigError if the dimensions differ."""
    given, wanted = parse_unit(unit), parse_unit(to)
    if given.dimension != wanted.dimension:
        raise ConfigError(
            f'unit "{unit}" is {dimension_name(given.dimension)}; expected {dimension_name(wanted.dimension)}, '
            f'such as "{to}". Write the value in such a unit.'
        )
    return given.si / wanted.si


def parse_quantity(text: str, unit: str, example: str = "") -> float:
    """A number with its unit, as a number of units `unit`: parse_quantity("10 ps", "fs") = 10000.0.

    Raises: ConfigError if it has no number, no unit, an unknown one, or one of another dimension.
    """
    example = example or f"1 {unit}"
    match = _NUMBER.match(text)
    if match is None:
        raise ConfigError(f'"{text}" is not a quantity; expected a number and its unit. Write for example "{example}".')
    number, unit_text = match[1], match[2]
    if not unit_text:
        wanted = dimension_name(parse_unit(unit).dimension)
        raise ConfigError(f'"{text}" has no unit; expected {wanted}. Write for example "{example}".')
    if unit_text in ("C", "°C", "degC", "F", "°F"):
        raise ConfigError(f'"{text}" is not an absolute temperature; expected kelvin. Write for example "300 K".')
    if len(number) > 40 or abs(int(re.split("[eE]", number)[1]) if re.search("[eE]", number) else 0) > 300:
        raise ConfigError(f'"{text[:60]}" is out of range; expected a physical number. Write for example "{example}".')
    return float(Fraction(number) * factor(unit_text, unit))


def format_quantity(value: float, unit: str) -> str:
    """The shortest text that `parse_quantity(text, unit)` reads back exactly: "0.5 fs"."""
    number = repr(float(value))
    return f"{number.removesuffix('.0')} {unit}"


def dimension_name(dimension: Dimension) -> str:
    """In words, for messages."""
    if dimension in _DIMENSION_NAMES:
        return _DIMENSION_NAMES[dimension]
    powers = zip(("length", "time", "mass", "temperature"), dimension, strict=True)
    return "a " + " ".join(f"{name}^{power}" for name, power in powers if power)


BOLTZMANN_EV_PER_K = float(Fraction("1.380649e-23") / UNITS["eV"].si)
"""k_B, eV/K."""
ASE_TIME_FS = math.sqrt(float(UNITS["amu"].si / UNITS["eV"].si)) * 1e-10 / 1e-15
"""ASE's unit of time, A (amu/eV)^1/2, in fs."""
FS = 1.0 / ASE_TIME_FS
"""1 fs in ASE's unit of time (CODATA 2018; ase.units defaults to CODATA 2014, equal to 1e-8)."""
EV_PER_A3_IN_BAR = float(factor("eV/A^3", "bar"))
"""1 eV/A^3 in bar."""
