"""DeePMD-kit's files as models: portable ones (`.dp`, `.yaml`, `.json`) and training checkpoints (`.pt`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from dpsim.errors import ConfigError, ModelFileError, UnsupportedModelError
from dpsim.models.container import package_version
from dpsim.models.deepmd import binding, checkpoint_pt
from dpsim.models.deepmd.binding import Tree
from dpsim.models.deepmd.checkpoint_pt import Checkpoint, open_checkpoint
from dpsim.models.deepmd.model import Readable, kind_of, kind_of_input, kind_of_model, with_conventions
from dpsim.models.deepmd.standard import ModelKind
from dpsim.models.deepmd.tree import PORTABLE, load_tree, save_tree
from dpsim.models.student import Student

SUFFIXES = (*PORTABLE, checkpoint_pt.SUFFIX)
WRITTEN = (".dp", ".yaml", ".yml")


def read_deepmd(path: str | Path, head: str | None = None) -> Readable:
    """A file of DeePMD-kit as a dpsim model. `metadata` says where it comes from.

    Args: head: of a checkpoint with several.
    Raises: ModelFileError on an unreadable file or an unknown head, UnsupportedModelError (naming the kind) on models
        dpsim lacks.
    """
    source = _open(Path(path), head)
    model = _assemble(source)
    model.metadata = {"provenance": {"imported_from": source.about}}
    return model


def build_model(tree: Tree) -> Readable:
    """A model from the `model` node of a portable file. Raises ModelFileError and UnsupportedModelError."""
    return _assemble(Source("model", tree, binding.arrays(tree), "path", {}))


@dataclass(frozen=True)
class Source:
    """A model in a file: settings as in a portable file, arrays by their paths or keys, where it comes from."""

    name: str
    settings: Any
    arrays: Mapping[str, Any]
    by: Literal["path", "key"]
    about: Tree


def _open(path: Path, head: str | None) -> Source:
    if path.suffix == checkpoint_pt.SUFFIX:
        return _of_checkpoint(open_checkpoint(path), head)
    tree = load_tree(path)
    if head is not None:
        raise ModelFileError(f"`head` is {head!r}, but `{path}` holds one model; expected none. Leave it out.")
    about = {
        "file": path.name,
        "software": str(tree.get("software", "deepmd-kit")),
        "version": str(tree.get("version", "")),
        "min_nbor_dist": _scalar((tree.get("@variables") or {}).get("min_nbor_dist")),
    }
    settings = tree.get("model")
    return Source(str(path), settings, binding.arrays(settings), "path", about)


def _of_checkpoint(checkpoint: Checkpoint, name: str | None) -> Source:
    head = checkpoint.head(name)
    about = {
        "file": checkpoint.path.name,
        "software": "deepmd-kit",
        "min_nbor_dist": _scalar(checkpoint.min_nbor_dist(head)),
        "step": checkpoint.step,
    }
    if len(checkpoint.heads) > 1:
        about["head"] = head
    params = checkpoint.heads[head]
    with _Understood(str(checkpoint.path)):
        kind = kind_of_input(params)
        settings = {**kind_of(kind).from_input(params), "type": kind}
        return Source(str(checkpoint.path), settings, checkpoint.arrays(head), "key", about)


def _scalar(x: Any) -> float | None:
    return None if x is None else float(np.asarray(x).reshape(-1)[0])


def _assemble(source: Source) -> Readable:
    """The model, all of it or none. Raises ModelFileError and UnsupportedModelError."""
    with _Understood(source.name):
        kind, config = _config(source)
        model: Readable = kind.build(config)
        bindings = kind.bindings(model)
        if source.by == "path":
            ours: Tree = {}
            binding.place(ours, bindings)
            binding.check_layers(ours, source.settings)
        binding.fill(bindings, source.arrays, source.by)
        kind.check(model)
    return model.eval()


def _config(source: Source) -> tuple[ModelKind, Any]:
    """Our config of a model, whose arrays are all there, in their shapes."""
    kind = kind_of(str(source.settings.get("type", "standard")))
    config = kind.read(source.settings)
    with torch.device("meta"):  # names and shapes first: a hostile file costs no memory
        binding.check(kind.bindings(kind.build(config)), source.arrays, source.by)
    return kind, config


class _Understood:
    """Within this context, whatever a strange file makes fail becomes a ModelFileError."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValidationError):
            mistakes = "; ".join(f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" for e in error.errors())
            raise ModelFileError(f"`{self.name}` has settings that cannot be used: {mistakes}.") from None
        if isinstance(error, ModelFileError | UnsupportedModelError | ConfigError):
            return
        if isinstance(error, KeyError | IndexError | TypeError | AttributeError | ValueError | RuntimeError):
            what = f"{error} is missing" if isinstance(error, KeyError) else f"odd settings or arrays ({error})"
            raise ModelFileError(f"`{self.name}` is not a complete DeePMD-kit model: {what}.") from error


def write_deepmd(path: str | Path, model: Readable | Student) -> None:
    """Write a portable file of DeePMD-kit, `.dp` or `.yaml`, in one step.

    DeePMD-kit gives a native model's numbers as long as no atom has more neighbours than `sel`.
    Raises: UnsupportedModelError, naming it, for what such a file cannot hold.
    """
    save_tree(Path(path), model_tree(model))


def model_tree(model: Readable | Student) -> Tree:
    """The tree of the portable file of a model."""
    if isinstance(model, Student):
        raise UnsupportedModelError(
            "the model is a student; expected an ordinary one: DeePMD-kit's files cannot hold its tables. "
            "Convert the model it was made from."
        )
    kind = kind_of(kind_of_model(model))
    tree = kind.write(model)
    model = with_conventions(model, deepmd=True)
    binding.place(tree, kind.bindings(model))
    imported = model.metadata.get("provenance", {}).get("imported_from")
    min_nbor_dist = imported.get("min_nbor_dist") if isinstance(imported, dict) else None
    return {
        "software": "dpsim",
        "version": package_version(),
        "model": tree,
        "model_def_script": kind.to_input(model),
        "@variables": {} if min_nbor_dist is None else {"min_nbor_dist": np.array(float(min_nbor_dist))},
    }


# What `dpsim show` says.


def describe(path: str | Path, head: str | None = None) -> Tree:
    """What a file of DeePMD-kit holds; of a checkpoint with several heads, the heads. Raises ModelFileError."""
    path = Path(path)
    if path.suffix == checkpoint_pt.SUFFIX:
        checkpoint = open_checkpoint(path)
        if head is None and len(checkpoint.heads) > 1:
            heads = {name: _summary(params, checkpoint, name) for name, params in checkpoint.heads.items()}
            return {"kind": "DeePMD-kit training checkpoint", "step": checkpoint.step, "heads": heads}
        head = checkpoint.head(head)
        summary = _summary(checkpoint.heads[head], checkpoint, head)
        return {"kind": "DeePMD-kit training checkpoint", **summary, **_settings(path, head)}
    source = _open(path, head)
    type_map = source.settings.get("type_map") if isinstance(source.settings, dict) else None
    summary = {"type_map": type_map, "parameters": _count(source.arrays)}
    return {"kind": "DeePMD-kit model", **summary, **_settings(path, None)}


def _summary(params: Tree, checkpoint: Checkpoint, head: str) -> Tree:
    descriptor = params.get("descriptor", {})
    prefix = f"model.{head}."
    return {
        "type_map": params.get("type_map"),
        "trained_on": (params.get("info") or {}).get("observed_type"),
        "descriptor": descriptor.get("type") if isinstance(descriptor, dict) else None,
        "parameters": _count({key: x for key, x in checkpoint.state.items() if key.startswith(prefix)}),
    }


def _settings(path: Path, head: str | None) -> Tree:
    """Our config of the model, or why there is none."""
    try:
        source = _open(path, head)
        with _Understood(source.name):
            _, config = _config(source)
        return {"imported_from": source.about, "config": config.model_dump(mode="json")}
    except (ModelFileError, UnsupportedModelError) as error:
        return {"refused": str(error)}


def _count(found: Mapping[str, Any]) -> int:
    """Numbers in weights: of layers, nets, norms and trained steps, each once."""

    def is_weight(name: str) -> bool:
        *_, last = (part for part in name.split(".") if not part.isdigit())
        return last in ("w", "b", "idt", "matrix", "bias") or last.endswith("_residual")

    return sum(int(np.prod(x.shape)) for name, x in found.items() if is_weight(name) and "._networks." not in name)
