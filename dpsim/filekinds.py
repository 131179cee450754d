"""What a YAML file is, told by its keys, and how each kind is checked without running it: `dpsim validate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from dpsim.config import load_yaml
from dpsim.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Kind:
    """A kind of file. command: what it is for; any, all: keys that tell it, one of the first or all of the second.

    check: reads it and everything it names, and raises DpsimError where it could not be run.
    """

    name: str
    command: str
    check: Callable[[Path], None]
    any: frozenset[str] = frozenset()
    all: frozenset[str] = frozenset()

    def fits(self, keys: set[str]) -> bool:
        """Whether a file with these keys is of this kind."""
        return self.all <= keys and (not self.any or bool(self.any & keys))

    @property
    def told_by(self) -> str:
        """Its keys, for people."""
        return " and ".join(_quoted(self.all)) or " or ".join(_quoted(self.any))


def check_file(path: Path) -> Kind:
    """Check everything that can be checked without simulating or training. Raises DpsimError."""
    kind = kind_of(path)
    kind.check(path)
    return kind


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


def _protocol(path: Path) -> None:
    from dpsim.protocols import registry

    registry.check(registry.load_protocol(path))


def _distillation(path: Path) -> None:
    from dpsim.distill.config import DistillConfig
    from dpsim.distill.plan import check

    check(load_yaml(path, DistillConfig))


def _acceptance(path: Path) -> None:
    from dpsim.distill.accept import AcceptConfig, check_accept

    check_accept(load_yaml(path, AcceptConfig))


def _learning_curve(path: Path) -> None:
    from dpsim.train.learning_curve import CurveConfig, check_curve

    check_curve(load_yaml(path, CurveConfig))


def _sets(path: Path) -> None:
    from dpsim.train.testing import SetsConfig, require_sets

    require_sets(load_yaml(path, SetsConfig))


def _training(path: Path) -> None:
    from dpsim.train.config import TrainConfig
    from dpsim.train.finetune import complete
    from dpsim.train.setup import open_data

    open_data(complete(load_yaml(path, TrainConfig), {}))


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
