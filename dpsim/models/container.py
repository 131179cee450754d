"""One file of named tensors with a JSON header: safetensors with the header in its metadata, checked to the last byte.

Nothing in such a file is ever executed: the header is JSON, the tensors are raw numbers. The header carries the
SHA-256 of itself and of all tensor bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from dpsim.errors import ModelFileError
from dpsim.files import atomic_write

KEY = "dpsim"
_MAX_INDEX_BYTES = 16 << 20  # names, shapes and header; a model has some tens of kilobytes


def package_version() -> str:
    """The version of the installed package, "unknown" for a bare source tree."""
    try:
        return importlib.metadata.version("dpsim")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def write(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header atomically: whoever reads `path` finds the old file or the whole new one."""
    atomic_write(path, to_bytes(tensors, header))


def to_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """The content of a file with these tensors and this header, its SHA-256 added."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    data = _data(safetensors_torch.save(tensors))
    full = {**header, "sha256": _digest(header, data)}
    return safetensors_torch.save(tensors, {KEY: json.dumps(full, allow_nan=False)})


def read_header(path: str | Path, kind: str = "model file") -> dict[str, Any]:
    """The header alone, without touching the tensors. Raises ModelFileError."""
    return _read_index(Path(path), kind)[0]


def read(path: str | Path, kind: str = "model file") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, their SHA-256 verified. Raises ModelFileError for a file that is not wholly right."""
    path = Path(path)
    header, _ = _read_index(path, kind)
    content = path.read_bytes()
    expected = header.pop("sha256", None)
    if _digest(header, _data(content)) != expected:
        raise ModelFileError(
            f"`{path}` is damaged: its SHA-256 is not the {str(expected)[:12]}... written in it. Get the file again."
        )
    try:
        tensors = safetensors_torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelFileError(f"`{path}` is not a {kind} ({error}). Get the file again.") from None
    return header | {"sha256": expected}, tensors


def _read_index(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and safetensors index of a file, the sizes checked before anything is read."""
    hint = "Check the path, or get the file again."
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(size - 8, _MAX_INDEX_BYTES):
                raise ModelFileError(
                    f"`{path}` is not a {kind}, or is truncated: {size} bytes, with an index of {length}. {hint}"
                )
            text = file.read(length)
    except FileNotFoundError:
        raise ModelFileError(f"`{path}` does not exist; expected a {kind}. Check the path.") from None
    except OSError as error:
        raise ModelFileError(f"`{path}` cannot be read ({error.strerror}); expected a {kind}. {hint}") from None
    try:
        index = json.loads(text)
        header = json.loads(index["__metadata__"][KEY])
        end = max((spec["data_offsets"][1] for name, spec in index.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise ModelFileError(f"`{path}` is not a {kind}: it carries no header of dpsim. {hint}") from None
    if not isinstance(header, dict) or not isinstance(end, int) or 8 + length + end != size:
        raise ModelFileError(f"`{path}` is truncated or damaged: {size} bytes do not fit its index. {hint}")
    return header, index


def _data(content: bytes) -> memoryview:
    """The bytes of the tensors: what follows the 8-byte length and the index."""
    return memoryview(content)[8 + struct.unpack("<Q", content[:8])[0] :]


def _digest(header: Mapping[str, Any], data: memoryview) -> str:
    """SHA-256 of the header (canonical JSON, without its own digest) and of the tensors' bytes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True, allow_nan=False).encode())
    digest.update(data)
    return digest.hexdigest()


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | Path, finite: bool = True
) -> None:
    """Raise ModelFileError unless names, shapes and dtypes are the expected ones and every number is finite."""
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise ModelFileError(
            f"`{path}` holds other tensors than its config describes: missing {missing[:3]}, unexpected {extra[:3]}. "
            "Get the file again, or convert it anew."
        )
    for name, tensor in tensors.items():
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            raise ModelFileError(
                f"`{path}`: tensor `{name}` is {tensor.dtype} of shape {tuple(tensor.shape)}; expected {want.dtype} "
                f"of shape {tuple(want.shape)}. Get the file again, or convert it anew."
            )
        if finite and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(f"`{path}`: tensor `{name}` holds NaN or infinity; expected numbers. Train it anew.")
