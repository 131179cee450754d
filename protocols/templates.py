"""Commented protocol files to start from: `dpsim template nve > nve.yaml`."""

from __future__ import annotations

from importlib.resources import files

from dpsim.errors import ConfigError, did_you_mean

NAMES = ("nve", "rdf", "nvt", "npt", "minimise", "deviation")


def template(name: str) -> str:
    """The text of a template. Raises ConfigError for an unknown name."""
    if name not in NAMES:
        raise ConfigError(
            f"`template` is {name!r}; expected one of {', '.join(NAMES)}.{did_you_mean(name, NAMES) or ' Choose one.'}"
        )
    return files("dpsim.protocols").joinpath("template_files", f"{name}.yaml").read_text(encoding="utf-8")
