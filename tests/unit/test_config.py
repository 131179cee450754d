"""dpsim/config.py: strict YAML with units; every error names file, line, value and what was expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from dpsim.config import FilePath, Pressure, StrictModel, Temperature, Time, dump_yaml, load_yaml, parse_yaml
from dpsim.errors import ConfigError


class Langevin(StrictModel):
    type: Literal["langevin"] = "langevin"
    damping: Time = 100.0


class Bussi(StrictModel):
    type: Literal["bussi"] = "bussi"
    period: Time = 500.0


class Protocol(StrictModel):
    timestep: Time = 0.5
    temperature: Annotated[Temperature, Field(gt=0)] = 300.0
    pressure: Pressure | None = None
    thermostat: Annotated[Langevin | Bussi, Field(discriminator="type")] = Langevin()
    ramp: list[Temperature] = []
    files: list[FilePath] = []
    width: int = 3
    scale: float = 1.0
    symbols: list[str] = []


def test_reads_units(tmp_path: Path) -> None:
    file = tmp_path / "protocol.yaml"
    file.write_text("timestep: 10 ps\ntemperature: 330 K\npressure: 1 GPa\nramp: [1 K, 2 K]\nfiles: [a/b, /c]\n")
    config = load_yaml(file, Protocol)
    assert (config.timestep, config.temperature, config.pressure, config.ramp) == (10000, 330, 10000, [1, 2])
    assert config.files == [tmp_path / "a/b", Path("/c")]


def test_writes_what_it_reads() -> None:
    config = parse_yaml("timestep: 0.1 ps\npressure: 1.5 bar\nthermostat: {type: bussi, period: 1 ps}\n", Protocol)
    text = dump_yaml(config)
    assert "timestep: 100 fs" in text
    assert parse_yaml(text, Protocol) == config


def test_yaml_of_version_1_2() -> None:
    config = parse_yaml("scale: 1e-3\nwidth: 010\nsymbols: [No, N, Y, on, '1']\n", Protocol)
    assert (config.scale, config.width, config.symbols) == (1e-3, 10, ["No", "N", "Y", "on", "1"])


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("width: 3\ntimestepp: 1 fs", ["x.yaml line 2: `timestepp` is unknown", "Did you mean `timestep`?"]),
        ("timestep: 0.5", ["x.yaml line 1: `timestep`: 0.5 has no unit", '"0.5 fs"']),
        ("timestep: 1 bar", ["line 1: `timestep`: unit \"bar\" is a pressure; expected a time"]),
        ("\ntemperature: -3 K", ["line 2: `temperature` is '-3 K'; expected greater than 0"]),
        ("width: six", ["line 1: `width` is 'six'; expected a valid integer"]),
        ("width: 1.5\nscale: .nan", ["line 1: `width` is 1.5", "line 2: `scale` is nan; expected a finite number"]),
        ("thermostat:\n  type: bussi\n  damping: 1 fs", ["line 3: `thermostat.damping` is unknown", "period, type"]),
        ("thermostat:\n  type: bussy", ["line 1: `thermostat`", "'bussi'"]),
        ("ramp: [1 K, 2]", ["`ramp.1`: 2 has no unit"]),
        ("width: 1\nwidth: 2", ["x.yaml line 2: not valid YAML: `width` is given twice"]),
        ("width: [1", ["x.yaml line 1: not valid YAML"]),
        ("", ["x.yaml is empty; expected keys such as timestep"]),
        ("- 1", ["x.yaml is list"]),
        ("a: !!python/object/apply:os.system [ls]", ["not valid YAML"]),
        ("&a [*a]", ["x.yaml is list"]),
    ],
)  # fmt: skip
def test_errors_say_where_and_what(text: str, messages: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, Protocol, source="x.yaml")
    for message in messages:
        assert message in str(caught.value)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("width: x\nscale: y\nnope: 1", Protocol)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("make", ["missing", "folder", "binary"])
def test_unreadable_files(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x.yaml"
    if make == "folder":
        path.mkdir()
    elif make == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_yaml(path, Protocol)


def test_frozen_and_strict() -> None:
    config = Protocol()
    with pytest.raises(ValidationError):
        config.width = 4  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Protocol(unknown=1)  # type: ignore[call-arg]


def test_schema_is_json_with_text_quantities() -> None:
    schema = json.loads(json.dumps(Protocol.model_json_schema()))
    assert schema["properties"]["timestep"]["type"] == "string"
    assert schema["properties"]["timestep"]["default"] == "0.5 fs"
    assert schema["additionalProperties"] is False
