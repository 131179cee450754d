"""The documentation is true: its YAML validates, its tables are the schemas', the commands, files and names exist."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pydantic import BaseModel

from dpsim.cli import app
from dpsim.config import parse_yaml
from dpsim.distill.accept_config import AcceptConfig
from dpsim.distill.config import DistillConfig
from dpsim.protocols.registry import PROTOCOLS, config_class, parse_protocol
from dpsim.protocols.schema import ProtocolHead
from dpsim.train.config import TrainConfig
from dpsim.train.learning_curve import CurveConfig
from dpsim.train.testing import SetsConfig

ROOT = Path(__file__).parents[2]
PAGES = [p for p in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if p.is_file()]
KINDS: dict[str, type[BaseModel]] = {
    "train.yaml": TrainConfig,
    "protocol.yaml": ProtocolHead,  # any of them
    "distill.yaml": DistillConfig,
    "accept.yaml": AcceptConfig,
    "curve.yaml": CurveConfig,
    "sets.yaml": SetsConfig,
}
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_KEYS = re.compile(r"^<!-- keys: ([\w.]+) -->\n\|.*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
_CODE_PATH = re.compile(r"`([\w/.-]+\.(?:py|h|cpp|cu|yaml|toml|md))(?:::([\w.]+))?`")
_LINK = re.compile(r"\]\(([^)#:]+\.md)?(#[\w-]+)?\)")
_NOT_IN_THE_REPOSITORY = {"train.yaml", "nve.yaml", "protocol.yaml"}  # the reader's own files


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks() -> list[Any]:
    """Every fenced block: (page, language, content)."""
    return [
        pytest.param(page, *match.groups(), id=f"{page.stem}-{k}")
        for page in PAGES
        for k, match in enumerate(_BLOCK.finditer(text_of(page)), start=1)
    ]


def marker(content: str) -> str:
    """The kind of file that the first line of a YAML block names: `# train.yaml` or `# protocol.yaml`."""
    return content.partition("\n")[0].removeprefix("#").strip()


def test_there_are_pages_and_marked_examples() -> None:
    assert {p.stem for p in PAGES} >= {"index", "training", "calculators", "protocols", "model-file", "architecture"}
    kinds = {marker(p.values[2]) for p in blocks() if p.values[1] == "yaml"}  # type: ignore[operator]
    assert kinds >= set(KINDS)


@pytest.mark.parametrize(("page", "language", "content"), blocks())
def test_examples_are_valid(page: Path, language: str, content: str) -> None:
    """YAML marked as a kind of file passes its schema; other YAML and JSON parse; Python compiles."""
    if language == "yaml" and marker(content) == "protocol.yaml":
        parse_protocol(content, source=page.name, folder=ROOT)
    elif language == "yaml" and marker(content) in KINDS:
        parse_yaml(content, KINDS[marker(content)], source=page.name, folder=ROOT)  # type: ignore[type-var]
    elif language == "yaml":
        yaml.safe_load(content)
    elif language == "json":
        json.loads(content)
    elif language == "python":
        compile(content, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page: Path) -> None:
    """Every `dpsim <command>` in code, inline, fenced or indented, with the long options written after it."""
    text = text_of(page)
    shell = "\n".join(
        content for language, content in _BLOCK.findall(text) if language in ("", "bash", "sh", "console")
    )
    indented = "\n".join(re.findall(r"^    (\S.*)$", text, re.MULTILINE))
    calls = re.findall(r"^(?:\$ )?(?:\S*bin/)?(dpsim [^\n]+)$", f"{shell}\n{indented}", re.MULTILINE)
    code = [*calls, *re.findall(r"(?<!`)`(?:\$ )?(dpsim [^`\n]+)`", text)]
    for call in code:
        name, *arguments = call.removeprefix("dpsim ").split("#")[0].split()
        assert name in COMMANDS or name.startswith("-"), f"{page.name}: `dpsim {name}` is no command"
        if name in COMMANDS:
            known = {o for p in COMMANDS[name].params for o in p.opts} | {"--help", "-h"}
            unknown = {a for a in arguments if re.fullmatch(r"--?[a-z][\w-]*", a)} - known
            assert not unknown, f"{page.name}: `{call}` has the options {unknown}; known are {sorted(known)}"


def key_tables() -> list[Any]:
    return [
        pytest.param(*match.groups(), id=match[1].rpartition(".")[2])
        for page in PAGES
        for match in _KEYS.finditer(text_of(page))
    ]


@pytest.mark.parametrize(("name", "rows"), key_tables())
def test_key_tables_are_those_of_the_schema(name: str, rows: str) -> None:
    """A table after `<!-- keys: module.Class -->` has the class's own keys, all of them, with their defaults."""
    module, _, class_name = name.rpartition(".")
    config: type[BaseModel] = getattr(importlib.import_module(module), class_name)
    properties = config.model_json_schema()["properties"]
    own = {k for k in config.__annotations__ if k in properties}
    table = {}
    for row in rows.splitlines():
        key, default = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:3]]
        table[key.strip("`")] = default
    tag = {"type"} if "default" not in properties.get("type", {"default": 0}) else set()
    assert set(table) == own - tag
    for key, default in table.items():
        assert default == expected_default(properties[key], config, key), f"{class_name}.{key}"


def expected_default(schema: dict[str, Any], config: type[BaseModel], key: str) -> str:
    """`value`, `-` for nothing, `below` for a section of its own, or `required`."""
    if "default" not in schema:
        return "required" if config.model_fields[key].is_required() else "below"
    value = schema["default"]
    if value is None or isinstance(value, dict):
        return "-" if value is None else "below"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def test_every_configuration_is_documented() -> None:
    """Each class of keys that a training file or a protocol may hold has its table (or is named in one line)."""
    text = "".join(map(text_of, PAGES))
    documented = {match[1].rpartition(".")[2] for match in _KEYS.finditer(text)}
    in_one_line = {"Prefactor", "ValidationConfig", "CheckpointConfig", "ProvenanceConfig", "AveragesAnalysis"}
    for root in [*KINDS.values(), *map(config_class, PROTOCOLS)]:
        names = {root.__name__, *root.model_json_schema().get("$defs", {})}
        assert names - in_one_line <= documented


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_names_exist(page: Path) -> None:
    """`folder/file.py` exists, and `folder/file.py::Class.name` is defined there."""
    for path, name in _CODE_PATH.findall(text_of(page)):
        if "/" not in path or "X" in Path(path).stem or path in _NOT_IN_THE_REPOSITORY:
            continue
        assert (ROOT / path).is_file(), f"{page.name}: `{path}` does not exist"
        source = text_of(ROOT / path)
        for part in name.split(".") if name else ():
            assert re.search(rf"(def|class) {part}\b", source), f"{page.name}: {path} defines no `{part}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in _LINK.findall(text_of(page)):
        target = page.parent / file if file else page
        assert target.is_file(), f"{page.name}: {file} does not exist"
        titles = re.findall(r"^#+ (.+)$", text_of(target), re.MULTILINE)
        anchors = {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in anchors, f"{page.name}: {file}{anchor} has no such heading"
