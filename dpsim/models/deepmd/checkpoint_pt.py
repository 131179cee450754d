"""Training checkpoints of DeePMD-kit's PyTorch backend (`.pt`), of one model or of several heads, without running code.

    {"model": {"_extra_state": {"model_params": ..., "train_infos": {"step": ...}},
               "model.<head>.atomic_model.descriptor...": tensor, ...}, "optimizer": ...}

model_params is the model section of the training input, with {"model_dict": {head: section, ...}} for several heads.
Each head holds all of its weights, shared ones too; the one model of a single-task checkpoint is the head "Default".
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpsim.errors import ModelFileError, did_you_mean
from dpsim.models.deepmd.binding import Tree
from dpsim.models.deepmd.settings import refuse

SUFFIX = ".pt"
SINGLE = "Default"
_TABLES = ("compress_info", "compress_data", "type_embd_data")  # of compressed models; empty otherwise


@dataclass(frozen=True)
class Checkpoint:
    """What is in the file. heads: sections of the training input by name; state: all tensors; step: of training."""

    path: Path
    heads: dict[str, Tree]
    state: Mapping[str, Any]
    step: int | None

    def head(self, name: str | None) -> str:
        """The head of that name, or the only one. Raises ModelFileError listing the heads."""
        if name is None and len(self.heads) == 1:
            return next(iter(self.heads))
        known = ", ".join(self.heads)
        if name is None:
            raise ModelFileError(
                f"`{self.path}` has {len(self.heads)} heads; expected the name of one of them: {known}. "
                f"Give --head, or name the model `{self.path}:{next(iter(self.heads))}`."
            )
        if name not in self.heads:
            raise ModelFileError(f"`head` is {name!r}; expected one of {known}.{did_you_mean(name, self.heads)}")
        return name

    def arrays(self, head: str) -> dict[str, Tensor]:
        """The arrays of a head by their keys, each once. Raises ModelFileError where copies differ."""
        prefix = f"model.{head}.atomic_model."
        found = {key.removeprefix(prefix): x for key, x in self.state.items() if key.startswith(prefix)}
        for key, x in list(found.items()):
            if not isinstance(x, Tensor):
                raise ModelFileError(f"`{prefix}{key}` is a {type(x).__name__}; expected a tensor. Get the file again.")
            twin = found.get(key.replace("._networks.", ".networks."))
            if "._networks." in key and twin is not None:
                if not torch.equal(twin, x):
                    raise ModelFileError(f"`{prefix}{key}` is not what it is a copy of. Get the file again.")
                del found[key]
            elif key.endswith("default_fparam_tensor"):  # the settings say it
                del found[key]
            elif any(name in key.split(".") for name in _TABLES):
                if x.numel():
                    refuse("a compressed model")
                del found[key]
        return found

    def min_nbor_dist(self, head: str) -> Any:
        """The shortest distance in the training data, A, None where unknown."""
        value = self.state.get(f"model.{head}.min_nbor_dist")
        return value if isinstance(value, Tensor) and bool((value > 0).all()) else None

    def check(self) -> None:
        """Raise ModelFileError unless every tensor belongs to the atomic model of a head."""
        of_heads = tuple(f"model.{head}.atomic_model." for head in self.heads)
        beside = {"_extra_state", *(f"model.{head}.min_nbor_dist" for head in self.heads)}
        for key in self.state:
            if key not in beside and not key.startswith(of_heads):
                raise ModelFileError(
                    f"`{key}` belongs to none of the heads {', '.join(self.heads)}; expected none such. "
                    "Get the file again."
                )


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; tensors stay in the file until they are used. Raises ModelFileError."""
    content = _load(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    extra = state.get("_extra_state") if isinstance(state, dict) else None
    params = extra.get("model_params") if isinstance(extra, dict) else None
    if not isinstance(params, dict) or not isinstance(state, dict) or not isinstance(extra, dict):
        raise ModelFileError(
            f"`{path}` is not a training checkpoint of DeePMD-kit: it holds no model_params. Check the path."
        )
    heads = params.get("model_dict", {SINGLE: params})
    if not isinstance(heads, dict) or not heads or not all(isinstance(head, dict) for head in heads.values()):
        raise ModelFileError(f"`{path}` is not a training checkpoint of DeePMD-kit: it holds no heads. Check the path.")
    infos = extra.get("train_infos")
    step = infos.get("step") if isinstance(infos, dict) else None
    checkpoint = Checkpoint(path, heads, state, int(step) + 1 if isinstance(step, int) else None)
    checkpoint.check()
    return checkpoint


def _load(path: Path) -> Any:
    if not path.is_file():
        raise ModelFileError(f"`{path}` does not exist.")
    try:
        packed = zipfile.is_zipfile(path)
        if packed and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
            raise ValueError("it holds a program (TorchScript)")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except pickle.UnpicklingError:
        raise ModelFileError(
            f"`{path}` holds Python objects beside numbers and text, or is damaged; expected a training checkpoint of "
            "DeePMD-kit. dpsim loads no such objects: they could run code."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelFileError(
            f"`{path}` is not a readable training checkpoint: {first}. If it is a frozen model, convert it with "
            f"DeePMD-kit's `dp convert-backend {path.stem}.pth model.dp`."
        ) from None
