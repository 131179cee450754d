"""The model file: one `.dpsim` file of weights (safetensors) and a JSON header with everything else.

Header: format_version, kind (model; multi_task: several that share weights; student: a tabulated one; linear: a
combination; pair_potential: a table), package_version, config, type_map, units, rcut (A), precision, provenance (data
names and hashes, training metrics, seed, licence, citation, ...), sha256 of header and weights. Loading it runs no
code: the config goes through pydantic, the weights must have exactly the names, shapes and dtypes that it implies.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from dpsim import config as config_module
from dpsim.errors import ConfigError, ModelFileError, did_you_mean
from dpsim.files import atomic_write
from dpsim.models import container
from dpsim.models.config import ModelConfig
from dpsim.models.container import package_version
from dpsim.models.deepmd import files as deepmd
from dpsim.models.energy_model import EnergyModel
from dpsim.models.linear_model import LinearConfig, LinearModel
from dpsim.models.multi_task import MultiTaskConfig, MultiTaskModel, header_of_head, pick_head, tensors_of_head
from dpsim.models.pair_table import PairPotential
from dpsim.models.pair_table_config import Grid, PairPotentialConfig
from dpsim.models.potential import DTYPES
from dpsim.models.student import Student
from dpsim.models.student_config import StudentConfig

SUFFIX = ".dpsim"
FORMAT_VERSION = 1
BUNDLED = Path(__file__).parent / "bundled"
UNITS = {"length": "Angstrom", "energy": "eV", "force": "eV/Angstrom", "virial": "eV", "mass": "amu"}

AnyModel = EnergyModel | Student | LinearModel | PairPotential
AnyConfig = ModelConfig | StudentConfig | LinearConfig | PairPotentialConfig
_KINDS: dict[str, tuple[type[AnyConfig | MultiTaskConfig], type[AnyModel | MultiTaskModel]]] = {
    "model": (ModelConfig, EnergyModel),
    "multi_task": (MultiTaskConfig, MultiTaskModel),
    "student": (StudentConfig, Student),
    "linear": (LinearConfig, LinearModel),
    "pair_potential": (PairPotentialConfig, PairPotential),
}
# header of version k -> header of version k + 1
_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def save_model(
    path: str | Path,
    model: AnyModel | MultiTaskModel,
    provenance: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the file of a model or a student atomically.

    Args: provenance: plain data (JSON), kept in the header; default: what the model was loaded with; weights: other
    values for the model's state_dict, such as averaged ones.
    Raises: ModelFileError if a weight is not finite or the provenance is not JSON.
    """
    atomic_write(path, model_bytes(model, provenance, weights, path))


def model_bytes(
    model: AnyModel | MultiTaskModel,
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
        "kind": next(kind for kind, (_, own) in _KINDS.items() if isinstance(model, own)),
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
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    precision: Literal["float32", "float64"] | None = None,
    head: str | None = None,
) -> AnyModel:
    """Load a model or a student by path, or a bundled one by name (`load_model("water-pbe0ts")`).

    Files of DeePMD-kit (.dp, .yaml, .json; checkpoints .pt) are read as they are.
    Args: precision: evaluate in this precision instead of the file's; head: of a file with several, which a name may
    also carry (`load_model("model.dpsim:water")`).
    Returns: the model, in evaluation mode; `model.metadata` is the file's header.
    Raises: ModelFileError if there is no such model, or the file is corrupt, truncated, hostile or too new;
    UnsupportedModelError, naming the kind, for a foreign model that dpsim does not evaluate.
    """
    path = find_model(name_or_path)
    head = _head(name_or_path, head)
    if path.suffix in deepmd.SUFFIXES:
        return _foreign(path, head, precision).to(device).eval()
    header, tensors = container.read(path)
    header, config = _checked(header, path)
    with torch.device("meta"):  # names and shapes first: a hostile config costs no memory
        container.check_tensors(tensors, _build(config).state_dict(), path)
    if isinstance(config, MultiTaskConfig):
        head = pick_head(config, head, path)
        header, config, tensors = header_of_head(header, config, head), config.model, tensors_of_head(tensors, head)
    elif head is not None:
        raise ModelFileError(f"`head` is {head!r}, but `{path}` holds one model; expected none. Leave it out.")
    model: AnyModel = _build(_with_precision(config, precision))
    model.load_state_dict(tensors)
    model.metadata = header
    return model.to(device).eval()


def _foreign(path: Path, head: str | None, precision: Literal["float32", "float64"] | None) -> AnyModel:
    """A model of a file of DeePMD-kit, with the SHA-256 of the file."""
    model: AnyModel = deepmd.read_deepmd(path, head)
    config = _with_precision(model.config, precision)
    if config is not model.config:
        converted = _build(config)
        converted.load_state_dict(model.state_dict())
        converted.metadata, model = model.metadata, converted
    with open(path, "rb") as file:
        model.metadata = {**model.metadata, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return model


Config = TypeVar("Config", bound=AnyConfig)


def _with_precision(config: Config, precision: Literal["float32", "float64"] | None) -> Config:
    if precision is None or precision == config.precision:
        return config
    if precision not in DTYPES:
        raise ConfigError(f"`precision` is {precision!r}; expected one of {', '.join(DTYPES)}. Correct it.")
    return cast(Config, config.model_copy(update={"precision": precision}))


def load_trainable(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    precision: Literal["float32", "float64"] | None = None,
    head: str | None = None,
) -> EnergyModel:
    """As `load_model`, for what has weights to train or to tabulate. Raises ModelFileError for anything else."""
    model = load_model(name_or_path, device, precision, head)
    if isinstance(model, Student):
        teacher = model.metadata["provenance"].get("teacher")
        name = teacher.get("name") if isinstance(teacher, dict) else None
        raise ModelFileError(
            f"`{name_or_path}` is a student already: tables, which cannot be trained or compressed again; expected an "
            f"ordinary model. Use the one it was made from{f', `{name}`' if name else ''}."
        )
    if not isinstance(model, EnergyModel):
        raise ModelFileError(
            f"`{name_or_path}` is a {type(model).__name__}; expected an ordinary one, of a descriptor and a net. "
            "Train or compress what it consists of."
        )
    return model


def _build(config: AnyConfig | MultiTaskConfig) -> Any:
    build: Any = next(own for of, own in _KINDS.values() if isinstance(config, of))
    return build(config)


def read_header(name_or_path: str | Path) -> dict[str, Any]:
    """The header of a model file, upgraded to the present version, for `dpsim show`. Raises ModelFileError.

    Of a file of DeePMD-kit: what it holds; of a file with several heads, the heads.
    """
    path = find_model(name_or_path)
    head = _head(name_or_path, None)
    if path.suffix in deepmd.SUFFIXES:
        return deepmd.describe(path, head)
    header, config = _checked(container.read_header(path), path)
    if isinstance(config, MultiTaskConfig):
        header = {"heads": config.heads, **header} if head is None else header_of_head(header, config, head)
    caveat = getattr(config, "caveat", "")
    return {"warning": caveat, **header} if caveat else header


def convert_model(source: str | Path, output: str | Path, head: str | None = None) -> list[str]:
    """Read any model and write it as the suffix of `output` says: .dpsim, or .dp, .yaml for DeePMD-kit.

    Returns: what to tell the user.
    Raises: ModelFileError, and UnsupportedModelError for what the file to write cannot hold.
    """
    output = Path(output)
    if output.suffix not in (SUFFIX, *deepmd.WRITTEN):
        raise ModelFileError(
            f"`output` is {output}; expected a name that ends in {', '.join((SUFFIX, *deepmd.WRITTEN))}. Rename it."
        )
    model = load_model(source, head=head)
    if output.suffix == SUFFIX:
        save_model(output, model)
        return [f"written to {output}"]
    deepmd.write_deepmd(output, model)
    lines = [f"written to {output}"]
    nets = [m for m in getattr(model, "members", [model]) if isinstance(m, EnergyModel)]
    environments = [e for m in nets if not m.config.deepmd_conventions for e in m.config.descriptor.environments]
    if environments:
        sel = ", ".join(f"{e.sel} within {e.rcut:g} A" for e in environments)
        lines.append(
            f"DeePMD-kit cuts neighbours at `sel` ({sel}) where dpsim does not: it gives the same numbers as long as "
            "no atom has more."
        )
    return lines


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.stem for p in BUNDLED.glob(f"*{SUFFIX}"))


def find_model(name_or_path: str | Path) -> Path:
    """The file of a model given by path or by name. Raises ModelFileError, with the nearest known name."""
    path = Path(split_head(name_or_path)[0])
    if path.is_file():
        return path
    name = str(name_or_path)
    if name in bundled_models():
        return BUNDLED / f"{name}{SUFFIX}"
    known = bundled_models()
    if path.is_dir():
        raise ModelFileError(f"`{path}` is a folder; expected a model file ({SUFFIX}). Name the file in it.")
    looks_like_path = is_path(name)
    listing = f"or a bundled model ({', '.join(known)})" if known else "(no model is bundled)"
    raise ModelFileError(
        f"`{name}` does not exist; expected a model file {listing}.{did_you_mean(path.stem, known)}"
        + (" Check the path." if looks_like_path else "")
    )


def split_head(name_or_path: str | Path) -> tuple[str, str | None]:
    """`model.dpsim:water`, `checkpoint.pt:water` -> the file and the head; any other name or path, and None."""
    name = str(name_or_path)
    path, colon, head = name.rpartition(":")
    return (path, head) if colon and path.endswith((SUFFIX, ".pt")) else (name, None)


def is_path(name: str) -> bool:
    """Whether the name of a model looks like a path, not like that of a bundled one."""
    path = Path(split_head(name)[0])
    return path.suffix in (SUFFIX, *deepmd.SUFFIXES) or len(path.parts) > 1


def _head(name_or_path: str | Path, head: str | None) -> str | None:
    """The head that is asked for, by name or otherwise. Raises ModelFileError where the two differ."""
    named = split_head(name_or_path)[1]
    if None not in (head, named) and head != named:
        raise ModelFileError(f"`head` is {head!r}, but the model is `{name_or_path}`; expected one of the two.")
    return head if named is None else named


def _checked(header: dict[str, Any], path: Path) -> tuple[dict[str, Any], AnyConfig | MultiTaskConfig]:
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
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelFileError(f"`{path}` is of the kind {kind!r}; expected one of {', '.join(_KINDS)}. Update dpsim.")
    if not isinstance(data, dict):
        raise ModelFileError(f"`{path}` carries no config. Get the file again.")
    try:
        config = config_module.validate(data, _KINDS[kind][0], source=f"config of `{path}`")
    except ConfigError as error:
        raise ModelFileError(f"`{path}` carries a config that cannot be used:\n{error}") from None
    same = header.get("type_map") == config.type_map and header.get("precision") == config.precision
    if not same or not isinstance(header.get("provenance"), dict) or _unresolved(config):
        raise ModelFileError(f"`{path}` contradicts itself: header and config differ. Get the file again.")
    return header, config


def _unresolved(config: AnyConfig | MultiTaskConfig) -> bool:
    """Whether something is still to be taken from data or files, as in a train.yaml."""
    match config:
        case MultiTaskConfig():
            return _unresolved(config.model)
        case LinearConfig():
            return any(_unresolved(member) for member in config.members)
        case PairPotentialConfig():
            return not isinstance(config.table, Grid)
        case ModelConfig():
            table = config.pair_table is not None and not isinstance(config.pair_table.table, Grid)
            return table or any(e.sel == "auto" for e in config.descriptor.environments)
    return False


def _plain(value: Any) -> Any:
    """Plain JSON data: numbers that are not finite become null, paths and the like text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str) or value is None else str(value)
