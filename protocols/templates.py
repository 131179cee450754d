"""Commented protocol files to start from: `dpsim template nve > nve.yaml`. They are the files of `template_files`."""

from __future__ import annotations

from importlib.resources import files

from dpsim.errors import ConfigError, did_you_mean

_FILES = files("dpsim.protocols").joinpath("template_files")
NAMES = tuple(sorted(file.name.removesuffix(".yaml") for file in _FILES.iterdir() if file.name.endswith(".yaml")))


def template(name: str) -> str:
    """The text of a template. Raises ConfigError for an unknown name."""
    if name not in NAMES:
        raise ConfigError(
            f"`template` is {name!r}; expected one of {', '.join(NAMES)}.{did_you_mean(name, NAMES) or ' Choose one.'}"
        )
    return _FILES.joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def list_templates() -> str:
    """A line for each template: its name, and the first line of its comment."""
    width = max(map(len, NAMES)) + 2
    return "".join(f"{name:{width}}{template(name).partition(chr(10))[0].lstrip('# ')}\n" for name in NAMES)
