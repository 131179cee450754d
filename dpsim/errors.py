"""The errors dpsim raises on purpose. The command line prints their message; the traceback goes to a log file."""

import difflib
from collections.abc import Iterable


class DpsimError(Exception):
    """Base of every error caused by input: its message names the value, what was expected, and the fix."""


class ConfigError(DpsimError, ValueError):
    """A YAML or Python configuration that cannot be used."""


class DataError(DpsimError, ValueError):
    """Training or structure data that cannot be used; names file, frame and value."""


class ModelFileError(DpsimError, ValueError):
    """A model file that is corrupt, truncated, hostile or of an unknown version."""


class UnsupportedModelError(DpsimError, ValueError):
    """A foreign model of a kind dpsim does not implement; names the kind."""


class ElementError(DpsimError, ValueError):
    """An element that a model does not know."""


class TrainingError(DpsimError, RuntimeError):
    """Training that had to stop (NaN, exploding loss, ...)."""


class SimulationError(DpsimError, RuntimeError):
    """Dynamics that had to stop (NaN forces, exploding temperature, ...)."""


class WorkersError(DpsimError, RuntimeError):
    """Work that nobody could be found for (Slurm refuses the jobs, they end at once, ...)."""


class MissingDependencyError(DpsimError, ImportError):
    """An optional package is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the package `{package}`. Install it with: pip install 'dpsim[{extra}]'")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean `x`?' for the nearest known name, or ''."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{near[0]}`?" if near else ""
