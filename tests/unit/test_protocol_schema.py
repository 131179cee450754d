"""Protocol files: what is accepted, and that every mistake is named with its line, value and expectation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from dpsim.config import dump_yaml, parse_yaml
from dpsim.errors import ConfigError
from dpsim.protocols.registry import PROTOCOLS, config_class, json_schema, parse_protocol
from dpsim.protocols.schema import Protocol
from dpsim.protocols.stages import NveStage
from dpsim.protocols.templates import NAMES, template

HEAD = "name: x\nstructure: a.extxyz\n"


def parse(text: str) -> Protocol:
    return parse_yaml(HEAD + text, Protocol, source="p.yaml", folder=Path("/somewhere"))


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_valid_and_survive_a_round_trip(name: str) -> None:
    protocol = parse_protocol(template(name))
    assert parse_protocol(dump_yaml(protocol)) == protocol
    assert template(name).startswith("# ")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_says_its_name(name: str) -> None:
    kind = config_class(name)
    assert kind.model_fields["protocol"].annotation == Literal[name]
    assert name == "md" or name in NAMES, "expected a template of the protocol's name"


def test_unknown_protocol() -> None:
    with pytest.raises(ConfigError, match="p.yaml: `protocol` is 'mdd'; expected one of md.*Did you mean `md`"):
        parse_protocol("protocol: mdd\nname: x", "p.yaml")


def test_unknown_template() -> None:
    with pytest.raises(ConfigError, match="did you mean|Did you mean `nve`"):
        template("nvee")


def test_schema_is_json_schema_and_describes_the_keys() -> None:
    schema = json_schema()
    md = schema["$defs"]["Protocol"]
    assert md["additionalProperties"] is False
    assert {"name", "structure", "stages", "analyses", "protocol"} <= set(md["properties"])
    json.dumps(schema)


def test_totals_and_intervals_become_steps() -> None:
    stage = parse("stages: [{type: nve, timestep: 0.5 fs, duration: 2 ps, trajectory_every: 10 fs}]").stages[0]
    settings = stage.settings()
    assert (settings.n_steps, settings.trajectory_every, settings.thermo_every) == (4000, 20, 2)
    assert isinstance(stage, NveStage)


def test_default_stage_names_are_distinct() -> None:
    nvt = "{type: nvt, temperature: 300 K, steps: 5}"
    protocol = parse(f"stages: [{nvt}, {nvt}, {{type: nve, steps: 5, name: production}}]")
    assert protocol.stage_names() == ["nvt", "nvt2", "production"]


def test_paths_count_from_the_file() -> None:
    protocol = parse("model: models/a.dpsim\nstages: [{type: minimise}]")
    assert protocol.structure.file == Path("/somewhere/a.extxyz")
    assert protocol.model == "/somewhere/models/a.dpsim"
    assert parse("model: water-pbe0ts\nstages: [{type: minimise}]").model == "water-pbe0ts"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [{type: nve, duration: 1.3 fs}]", r"line 3.*2\.6 time steps of 0\.5 fs.*for example 1\.5 fs"),
        ("stages: [{type: nve, duration: 1 ps, timstep: 1 fs}]", "Did you mean `timestep`"),
        ("stages: [{type: nve, duration: 5}]", "no unit"),
        ("stages: [{type: nve, duration: 5 K}]", "temperature; expected a time"),
        ("stages: [{type: nve}]", "`duration` and `steps` are both or neither"),
        ("stages: [{type: nve, steps: 3, duration: 1 ps}]", "`duration` and `steps` are both or neither"),
        ("stages: [{type: nvr, steps: 3}]", "nvr"),
        ("stages: []", "`stages` is empty"),
        ("stages: [{type: nvt, temperature: -3 K, steps: 2}]", "greater than 0"),
        ("stages: [{type: minimise, name: a}, {type: minimise, name: a}]", "'a'.* twice"),
        ("stages: [{type: nve, steps: 2}]\nanalyses: [{type: nve_check, stage: nope}]", "expected one of the stages"),
        ("stages: [{type: minimise}]\nanalyses: [{type: nve_check}]", "no stage is of type nve"),
        ("stages: [{type: nve, steps: 2}]\nanalyses: [{type: rdf, pairs: [OO]}]", "two elements such as 'O-H'"),
        ("stages: [{type: nve, steps: 2}]\nseed: -1", "`seed` is -1"),
        ("stages: [{type: nve, steps: 2}]\nname: y", "given twice"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_structure_needs_one_source() -> None:
    for structure in ("{}", "{file: a, water_box: 4}"):
        with pytest.raises(ConfigError, match="`structure` has both or neither"):
            parse_yaml(f"name: x\nstructure: {structure}\nstages: [{{type: minimise}}]", Protocol)


def test_editors_are_told_the_keys_of_the_protocol() -> None:
    schema = json_schema()
    told = {kind["if"]["properties"]["protocol"]["const"]: kind["then"]["$ref"] for kind in schema["allOf"]}
    assert told == {name: f"#/$defs/{config_class(name).__name__}" for name in PROTOCOLS}
    assert set(told) == set(schema["properties"]["protocol"]["enum"])
    without_key = [kind["then"]["$ref"] for kind in schema["allOf"] if not kind["if"]["required"]]
    assert without_key == ["#/$defs/Protocol"]
