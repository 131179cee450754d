"""The kinds of YAML files: told by their keys and checked without running (`dpsim validate`), described by their JSON
schemas (`dpsim schema`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpsim.config import StrictModel, load_yaml
from dpsim.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Reader:
    """Describes files of a kind by a JSON schema, and checks one: reads it and everything that it names.

    check raises DpsimError where the file could not be run.
    """

    schema: Callable[[], dict[str, Any]]
    check: Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """A kind of file. command: what it is for; any, all: keys that tell it, one of the first or all of the second.

    reader: imports what reads it.
    """

    name: str
    command: str
    reader: Callable[[], Reader]
    any: frozenset[str] = frozenset()
    all: frozenset[str] = frozenset()

    def fits(self, keys: set[str]) -> bool:
        """Whether a file with these keys is of this kind."""
        return self.all <= keys and (not self.any or bool(self.any & keys))

    @property
    def key(self) -> str:
        """Its name in `dpsim schema`: that of the command."""
        return self.command.split()[1]

    @property
    def told_by(self) -> str:
        """Its keys, for people."""
        return " and ".join(_quoted(self.all)) or " or ".join(_quoted(self.any))


def check_file(path: Path) -> Kind:
    """Check everything that can be checked without simulating or training. Raises DpsimError."""
    kind = kind_of(path)
    kind.reader().check(path)
    return kind


def json_schema(key: str) -> dict[str, Any]:
    """The JSON schema of the files of a command: run, train, ... Raises ConfigError where there is none."""
    kinds = {kind.key: kind for kind in KINDS}
    if key not in kinds:
        known = ", ".join(f"{key} ({kind.name})" for key, kind in kinds.items())
        raise ConfigError(
            f"`kind` is {key}; expected one of these: {known}.{did_you_mean(key, kinds) or ' Name one of them.'}"
        )
    return kinds[key].reader().schema()


def kind_of(path: Path) -> Kind:
    """The kind of a file. Raises ConfigError where its keys are those of none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return PROTOCOL  # whose reader says what is wrong
    keys = {str(key) for key in found} if isinstance(found, dict) else set()
    kind = next((kind for kind in KINDS if kind.fits(keys)), None)
    if kind is None:
        known = "; ".join(f"{kind.name} (`{kind.command}`) has {kind.told_by}" for kind in KINDS)
        telling = {key for kind in KINDS for key in kind.any | kind.all}
        hints = [hint for key in sorted(keys) if (hint := did_you_mean(key, telling))]
        raise ConfigError(
            f"{path}: its keys {sorted(keys)} tell no kind of file; expected one of these: {known}."
            f"{hints[0] if hints else ' Add what is missing.'}"
        )
    return kind


def _quoted(keys: frozenset[str]) -> list[str]:
    return [f"`{key}`" for key in sorted(keys)]


def _of(config: type[StrictModel], check: Callable[[Any], object]) -> Reader:
    return Reader(config.model_json_schema, lambda path: check(load_yaml(path, config)))


def _protocol() -> Reader:
    from dpsim.protocols import registry

    return Reader(registry.json_schema, lambda path: registry.check(registry.load_protocol(path)))


def _distillation() -> Reader:
    from dpsim.distill.config import DistillConfig
    from dpsim.distill.plan import check

    return _of(DistillConfig, check)


def _acceptance() -> Reader:
    from dpsim.distill.accept import AcceptConfig, check_accept

    return _of(AcceptConfig, check_accept)


def _learning_curve() -> Reader:
    from dpsim.train.learning_curve import CurveConfig, check_curve

    return _of(CurveConfig, check_curve)


def _sets() -> Reader:
    from dpsim.train.testing import SetsConfig, require_sets

    return _of(SetsConfig, require_sets)


def _training() -> Reader:
    from dpsim.train.config import TrainConfig
    from dpsim.train.finetune import complete
    from dpsim.train.setup import open_data

    return _of(TrainConfig, lambda config: open_data(complete(config, {})))


PROTOCOL = Kind("a protocol", "dpsim run", _protocol, any=frozenset(("protocol", "stages", "structure")))
KINDS = (
    PROTOCOL,
    Kind("a distillation", "dpsim distill", _distillation, all=frozenset(("teacher", "student"))),
    Kind("an acceptance test", "dpsim accept", _acceptance, any=frozenset(("structures", "conditions"))),
    Kind("a learning curve", "dpsim learning-curve", _learning_curve, all=frozenset(("train", "sizes"))),
    Kind("a table of sets", "dpsim test --table", _sets, all=frozenset(("sets",))),
    Kind("a training file", "dpsim train", _training, any=frozenset(("data", "tasks"))),
)
"""In the order in which they are tried."""
