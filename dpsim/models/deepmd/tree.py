"""Portable files of DeePMD-kit as trees: `.dp` (HDF5), `.yaml` and `.json`, arrays in their places.

`.dp`: the root attribute `json` is the tree; under `@variables` arrays are names of data sets. `.yaml`, `.json`: the
same tree, an array being {"@class": "np.ndarray", "@is_variable": true, "dtype": ..., "value": [...]}.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.errors import ModelFileError
from dpsim.files import atomic_write
from dpsim.models.deepmd.binding import Tree

PORTABLE = (".dp", ".yaml", ".yml", ".json")
_FAILURES = (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, MemoryError)


def load_tree(path: Path) -> Tree:
    """The tree of a portable file. Raises ModelFileError."""
    if path.suffix not in PORTABLE:
        raise ModelFileError(
            f"`{path}` ends in '{path.suffix}'; expected one of {', '.join(PORTABLE)}. Convert it with DeePMD-kit's "
            f"`dp convert-backend {path.name} model.dp` first."
        )
    try:
        tree = _load_hdf5(path) if path.suffix == ".dp" else _load_text(path)
    except FileNotFoundError:
        raise ModelFileError(f"`{path}` does not exist.") from None
    except _FAILURES as error:
        raise _unreadable(path, error) from error
    if not isinstance(tree, dict):
        raise ModelFileError(f"`{path}` is not a DeePMD-kit portable model: it holds no tree. Check the path.")
    if path.suffix == ".json" and "model" not in tree and {"program", "base_code"} & tree.keys():
        raise ModelFileError(
            f"`{path}` is a program for Paddle, not a portable model; expected one with weights in it. "
            "Write a .dp with DeePMD-kit's `dp convert-backend` from the file that the program was made from."
        )
    return tree


def _unreadable(path: Path, error: BaseException) -> ModelFileError:
    import yaml

    said = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
    return ModelFileError(f"`{path}` is not a readable DeePMD-kit portable model: {said}.")


def _load_hdf5(path: Path) -> Any:
    import h5py

    size = path.stat().st_size
    with h5py.File(path) as file:
        root = json.loads(file.attrs["json"])

        def array(name: str) -> Any:
            link = file.get(name, getlink=True)
            data = file[name]
            if not isinstance(link, h5py.HardLink) or data.external or data.is_virtual or data.nbytes > size:
                raise ValueError(f"the data set {name} is not in the file itself")
            return data[()]

        def resolve(node: Any, variable: bool = False) -> Any:
            if isinstance(node, dict):
                return {k: resolve(v, variable or k == "@variables") for k, v in node.items()}
            if isinstance(node, list):
                return [resolve(v, variable) for v in node]
            return array(node) if variable and isinstance(node, str) else node

        return resolve(root)


def _load_text(path: Path) -> Any:
    import yaml

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if node.get("@class") == "np.ndarray":
                return np.array(node["value"], dtype=np.dtype(node["dtype"]))
            return {k: resolve(v) for k, v in node.items()}
        return [resolve(v) for v in node] if isinstance(node, list) else node

    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return resolve(json.loads(text))
    try:
        return resolve(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise ValueError(f"{error}") from None


def save_tree(path: Path, tree: Tree) -> None:
    """Write a portable file, `.dp` or `.yaml`, in one step. Raises ModelFileError on another suffix."""
    if path.suffix == ".dp":
        content = _hdf5(tree)
    elif path.suffix in (".yaml", ".yml"):
        content = _yaml(tree)
    else:
        raise ModelFileError(f"`{path}` ends in '{path.suffix}'; expected .dp or .yaml. Choose one of them.")
    atomic_write(path, content)


def _hdf5(tree: Tree) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:

        def name(node: Any) -> Any:
            if isinstance(node, np.ndarray):
                key = f"variable_{len(file):04d}"
                return file.create_dataset(key, data=node).name
            return _map(node, name)

        file.attrs["json"] = json.dumps(name(tree), separators=(",", ":"), allow_nan=False)
    return buffer.getvalue()


def _yaml(tree: Tree) -> bytes:
    import yaml

    def plain(node: Any) -> Any:
        if isinstance(node, np.ndarray):
            head = {"@class": "np.ndarray", "@is_variable": True, "@version": 1}
            return {**head, "dtype": node.dtype.name, "value": node.tolist()}
        return _map(node, plain)

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(plain(tree), Dumper=dumper, sort_keys=False).encode()


def _map(node: Any, function: Any) -> Any:
    """A node with a function applied to what it holds."""
    if isinstance(node, dict):
        return {k: function(v) for k, v in node.items()}
    return [function(v) for v in node] if isinstance(node, list | tuple) else node
