"""The protocols by name: what a file with `protocol: NAME` may say, and which module runs it.

The module of a protocol has three functions (that of sweeps, `dpsim/protocols/sweep.py`, serves all sweeps):

    run_protocol(config, directory, calculator_for=..., display=None) -> RunOutcome     run, or continue
    check_protocol(config, calculator_for=...)                                          DpsimError for what cannot run
    plan_protocol(config, calculator_for=...) -> Plan                                   what it will cost

A new protocol: a line here, its configuration (a `ProtocolHead` with `protocol: Literal["NAME"]`) in its own file, a
template in `template_files`, and a page in docs/protocols.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from dpsim.config import load_yaml, parse_yaml, schema_of_any
from dpsim.errors import ConfigError, did_you_mean
from dpsim.protocols.plan import Plan
from dpsim.protocols.progress import ProgressDisplay
from dpsim.protocols.rundir import RunOutcome
from dpsim.protocols.schema import ProtocolHead

MD = "md"


@dataclass(frozen=True)
class Entry:
    """Where a protocol is: its configuration as "module:Class", and the module that runs it, of dpsim.protocols."""

    config: str
    module: str


PROTOCOLS: dict[str, Entry] = {
    MD: Entry("schema:Protocol", "runner"),
    "md-sweep": Entry("md_sweep:MdSweep", "sweep"),
    "diffusion": Entry("diffusion:DiffusionProtocol", "sweep"),
    "nve-scan": Entry("nve_scan:NveScan", "nve_scan"),
    "phase-scan": Entry("phase_scan:PhaseScan", "sweep"),
    "scaling": Entry("scaling:ScalingProtocol", "scaling_run"),
    "eos": Entry("eos:EosProtocol", "static"),
    "elastic": Entry("elastic:ElasticProtocol", "static"),
    "defects": Entry("defects:DefectsProtocol", "static"),
    "surface": Entry("surface:SurfaceProtocol", "static"),
    "pimd": Entry("pimd:PimdProtocol", "pimd"),
}


def config_class(name: str) -> type[ProtocolHead]:
    """The configuration of a protocol. Raises ConfigError for an unknown name."""
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ConfigError(
            f"`protocol` is {name!r}; expected one of {known}.{did_you_mean(name, PROTOCOLS) or ' Choose one.'}"
        )
    module, _, class_name = PROTOCOLS[name].config.partition(":")
    found: type[ProtocolHead] = getattr(import_module(f"dpsim.protocols.{module}"), class_name)
    return found


def load_protocol(path: str | Path) -> ProtocolHead:
    """Read and check a protocol file. Raises ConfigError naming file, line, value and what was expected."""
    path = Path(path)
    with contextlib.suppress(OSError, UnicodeDecodeError):  # for load_yaml to report
        return parse_protocol(path.read_text(encoding="utf-8"), str(path), path.parent)
    return load_yaml(path, config_class(MD))


def parse_protocol(text: str, source: str = "<text>", folder: Path | None = None) -> ProtocolHead:
    """Likewise, of its text; `source` is its name in errors, `folder` where relative paths start."""
    try:
        keys = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):  # for parse_yaml to report
        keys = None
    name = str(keys.get("protocol", MD)) if isinstance(keys, dict) else MD
    try:
        found = config_class(name)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return parse_yaml(text, found, source, folder)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a protocol file, for editors: the key `protocol` decides which keys there are."""
    schema = schema_of_any([config_class(name) for name in PROTOCOLS])
    kinds = [
        {
            "if": {"properties": {"protocol": {"const": name}}, "required": [] if name == MD else ["protocol"]},
            "then": kind,
        }
        for name, kind in zip(PROTOCOLS, schema["anyOf"], strict=True)
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"protocol": {"enum": list(PROTOCOLS), "default": MD}},
        "allOf": kinds,
        "$defs": schema["$defs"],
    }


def run_file(path: str | Path, output: str | Path | None = None) -> RunOutcome:
    """Run the protocol of a YAML file in the directory `output` (default: the protocol's name, where you are)."""
    protocol = load_protocol(path)
    return run(protocol, Path(output) if output is not None else Path(protocol.name))


def run(protocol: ProtocolHead, directory: Path, display: ProgressDisplay | None = None) -> RunOutcome:
    """Run, or continue, a protocol of any kind in a directory. Raises DpsimError."""
    outcome: RunOutcome = _module_of(protocol).run_protocol(protocol, directory, display=display)
    return outcome


def check(protocol: ProtocolHead) -> None:
    """Everything that can be checked without simulating: the files it names, the model, the engine. DpsimError."""
    _module_of(protocol).check_protocol(protocol)


def plan(protocol: ProtocolHead) -> Plan:
    """What it will do and cost, from a short measurement of the model's speed. Raises DpsimError."""
    found: Plan = _module_of(protocol).plan_protocol(protocol)
    return found


def _module_of(protocol: ProtocolHead) -> Any:
    name: str = protocol.protocol  # type: ignore[attr-defined]  # a Literal of its class
    return import_module(f"dpsim.protocols.{PROTOCOLS[name].module}")
