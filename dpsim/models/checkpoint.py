"""The model file: one `.dpsim` file of weights (safetensors) and a JSON header with everything else.

Header: format_version, kind (model, or student: a tabulated one), package_version, config, type_map, units, rcut (A),
precision, provenance (data names and hashes, training metrics, seed, licence, citation, ...), sha256 of header and
weights. Loading it runs no code: the config goes through pydantic, the weights must have exactly the names, shapes and
dtypes that it implies.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dpsim import config as config_module
from dpsim.errors import ConfigError, ModelFileError, did_you_mean
from dpsim.models import container
from dpsim.models.config import ModelConfig
from dpsim.models.energy_model import EnergyModel
from dpsim.models.potential import DTYPES
from dpsim.models.student import Student
from dpsim.models.student_config import StudentConfig

SUFFIX = ".dpsim"
FORMAT_VERSION = 1
BUNDLED = Path(__file__).parent / "bundled"
UNITS = {"length": "Angstrom", "energy": "eV", "force": "eV/Angstrom", "virial": "eV", "mass": "amu"}

# header of version k -> header of version k + 1
_CONFIGS: dict[str, type[ModelConfig] | type[StudentConfig]] = {"model": ModelConfig, "student": StudentConfig}
_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def package_version() -> str:
    """The version of the installed package, "unknown" for a bare source tree."""
    try:
        return importlib.metadata.version("dpsim")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def save_model(
    path: str | Path,
    model: EnergyModel | Student,
    provenance: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the file of a model or a student atomically.

    Args: provenance: plain data (JSON), kept in the header; default: what the model was loaded with; weights: other
    values for the model's state_dict, such as averaged ones.
    Raises: ModelFileError if a weight is not finite or the provenance is not JSON.
    """
    container.atomic_write(path, model_bytes(model, provenance, weights, path))


def model_bytes(
    model: EnergyModel | Student,
    provenance: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    path: str | Path = "model",
) -> bytes:
    """What `save_model` writes; `path` is for messages."""
    if provenance is None:
        provenance = model.metadata.get("provenance", {})
    tensors = {**model.state_dict(), **(weights or {})}
    container.check_tensors(tensors, model.state_dict(), path)
    header = {
        "format_version": FORMAT_VERSION,
        "kind": "student" if isinstance(model, Student) else "model",
        "package_version": package_version(),
        "config": model.config.model_dump(mode="json"),
        "type_map": list(model.type_map),
        "units": UNITS,
        "rcut": model.rcut,
        "precision": model.config.precision,
        "provenance": _plain(provenance),
    }
    try:
        return container.to_bytes(tensors, header)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"`provenance` cannot be written as JSON ({error}); expected plain values.") from None


def load_model(
    name_or_path: str | Path, device: str | torch.device = "cpu", precision: Literal["float32", "float64"] | None = None
) -> EnergyModel | Student:
    """Load a model or a student by path, or a bundled one by name (`load_model("water-pbe0ts")`).

    Args: precision: evaluate in this precision instead of the file's.
    Returns: the model, in evaluation mode; `model.metadata` is the file's header.
    Raises: ModelFileError if there is no such model, or the file is corrupt, truncated, hostile or too new.
    """
    path = find_model(name_or_path)
    header, tensors = container.read(path)
    header, config = _checked(header, path)
    with torch.device("meta"):  # names and shapes first: a hostile config costs no memory
        container.check_tensors(tensors, _build(config).state_dict(), path)
    if precision is not None and precision != config.precision:
        if precision not in DTYPES:
            raise ConfigError(f"`precision` is {precision!r}; expected one of {', '.join(DTYPES)}. Correct it.")
        config = config.model_copy(update={"precision": precision})
    model = _build(config)
    model.load_state_dict(tensors)
    model.metadata = header
    return model.to(device).eval()


def load_trainable(
    name_or_path: str | Path, device: str | torch.device = "cpu", precision: Literal["float32", "float64"] | None = None
) -> EnergyModel:
    """As `load_model`, for what has weights to train or to tabulate. Raises ModelFileError for a student."""
    model = load_model(name_or_path, device, precision)
    if isinstance(model, Student):
        teacher = model.metadata["provenance"].get("teacher")
        name = teacher.get("name") if isinstance(teacher, dict) else None
        raise ModelFileError(
            f"`{name_or_path}` is a student already: tables, which cannot be trained or compressed again; expected an "
            f"ordinary model. Use the one it was made from{f', `{name}`' if name else ''}."
        )
    return model


def _build(config: ModelConfig | StudentConfig) -> EnergyModel | Student:
    return Student(config) if isinstance(config, StudentConfig) else EnergyModel(config)


def read_header(name_or_path: str | Path) -> dict[str, Any]:
    """The header of a model file, upgraded to the present version, for `dpsim show`. Raises ModelFileError."""
    path = find_model(name_or_path)
    return _checked(container.read_header(path), path)[0]


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.stem for p in BUNDLED.glob(f"*{SUFFIX}"))


def find_model(name_or_path: str | Path) -> Path:
    """The file of a model given by path or by name. Raises ModelFileError, with the nearest known name."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = str(name_or_path)
    if name in bundled_models():
        return BUNDLED / f"{name}{SUFFIX}"
    known = bundled_models()
    if path.is_dir():
        raise ModelFileError(f"`{path}` is a folder; expected a model file ({SUFFIX}). Name the file in it.")
    looks_like_path = path.suffix == SUFFIX or len(path.parts) > 1
    listing = f"or a bundled model ({', '.join(known)})" if known else "(no model is bundled)"
    raise ModelFileError(
        f"`{name}` does not exist; expected a model file {listing}.{did_you_mean(path.stem, known)}"
        + (" Check the path." if looks_like_path else "")
    )


def _checked(header: dict[str, Any], path: Path) -> tuple[dict[str, Any], ModelConfig | StudentConfig]:
    """Header of the present version and its config. Raises ModelFileError."""
    version = header.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelFileError(f"`{path}` has format_version {version!r}; expected 1 to {FORMAT_VERSION}.")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"`{path}` has format_version {version}; this dpsim ({package_version()}) reads up to {FORMAT_VERSION}. "
            "Update dpsim: pip install -U dpsim"
        )
    while version < FORMAT_VERSION:
        header = _UPGRADES[version](header)
        version = header["format_version"]
    kind, data = header.get("kind", "model"), header.get("config")
    if not isinstance(kind, str) or kind not in _CONFIGS:
        raise ModelFileError(f"`{path}` is of the kind {kind!r}; expected one of {', '.join(_CONFIGS)}. Update dpsim.")
    if not isinstance(data, dict):
        raise ModelFileError(f"`{path}` carries no config. Get the file again.")
    try:
        config = config_module.validate(data, _CONFIGS[kind], source=f"config of `{path}`")
    except ConfigError as error:
        raise ModelFileError(f"`{path}` carries a config that cannot be used:\n{error}") from None
    same = header.get("type_map") == config.type_map and header.get("precision") == config.precision
    unresolved = isinstance(config, ModelConfig) and any(e.sel == "auto" for e in config.descriptor.environments)
    if not same or not isinstance(header.get("provenance"), dict) or unresolved:
        raise ModelFileError(f"`{path}` contradicts itself: header and config differ. Get the file again.")
    return header, config


def _plain(value: Any) -> Any:
    """Plain JSON data: numbers that are not finite become null, paths and the like text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str) or value is None else str(value)
