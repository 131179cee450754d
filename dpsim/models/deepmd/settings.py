"""What the codecs of all kinds share: refusing by name, activations, the settings of a two-body environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from dpsim.errors import ModelFileError, UnsupportedModelError, did_you_mean
from dpsim.models.deepmd.binding import Binding, Tree
from dpsim.models.descriptor_config import Activation
from dpsim.models.descriptors.base import Descriptor

ALIASES = {"": "none", "default": "tanh"}  # of activation functions
KNOWN_PRECISIONS = {"float64": "float64", "double": "float64", "default": "float64", "float32": "float32"}


@dataclass(frozen=True)
class Target:
    """For what settings are written: elements in the order of the types, precision of the arrays."""

    type_map: list[str]
    precision: str


@dataclass(frozen=True)
class Codec:
    """How DeePMD-kit's files hold a descriptor of one kind. See `dpsim.models.deepmd.codec`.

    kinds: its names (`type`) in files and training inputs, ours among them. descriptor: its class.
    read: settings in a portable file -> config. write: config -> those settings, without arrays.
    bindings: where the arrays are; paths and keys count from the descriptor.
    from_input: its section of a training input -> settings as in a portable file, without arrays. to_input: back.
    check: raises UnsupportedModelError if a filled descriptor, in a model of this cutoff, cannot be evaluated.
    constant: what DeePMD-kit's descriptor has on top of a native one, (n_types, dim_out); None where nothing.
    """

    kinds: tuple[str, ...]
    descriptor: type[Descriptor]
    read: Callable[[Tree], Any]
    write: Callable[[Any, Target], Tree]
    bindings: Callable[[Any], list[Binding]]
    from_input: Callable[[Tree], Tree]
    to_input: Callable[[Any], Tree]
    check: Callable[[Any, float], None] = lambda descriptor, rcut: None
    constant: Callable[[Any], Tensor | None] = lambda descriptor: None


def refuse(what: str) -> NoReturn:
    """Raise UnsupportedModelError, naming what dpsim lacks."""
    raise UnsupportedModelError(
        f"the file holds {what}, which this version of dpsim does not evaluate. docs/model-file.md lists what it reads."
    )


def refuse_newer(d: Mapping[str, Any], newest: int, what: str) -> None:
    """Refuse a part of a file whose format is newer than what we know."""
    version = d.get("@version", 1)
    if version > newest:
        refuse(f"{what} of format version {version} (known: up to {newest}), compressed or newer")


def activation(name: str | None) -> str:
    """Our name of an activation function. Raises UnsupportedModelError, naming an unknown one."""
    name = str(name or "").lower()
    name = ALIASES.get(name, name)
    try:
        return TypeAdapter(Activation).validate_python(name)
    except ValidationError:
        known = ["silut:3", *get_args(get_args(Activation)[0])]
        raise UnsupportedModelError(
            f"the file holds the activation function '{name}', which this version of dpsim does not evaluate."
            f"{did_you_mean(name, known)} docs/model-file.md lists what it reads."
        ) from None


def precision(names: Sequence[str]) -> str:
    """Ours for those of the parts of a model: float64 if one of them is."""
    for name in names:
        if name not in KNOWN_PRECISIONS:
            refuse(f"numbers of the precision '{name}'")
    return "float64" if any(KNOWN_PRECISIONS[name] == "float64" for name in names) else "float32"


def pairs(types: Sequence[Sequence[int]] | None) -> list[tuple[int, ...]]:
    """Pairs of types as our configs hold them."""
    return [tuple(pair) for pair in types or []]


def net_settings(d: Tree) -> Tree:
    """Of an embedding net, ours from a file's."""
    return {"neuron": d["neuron"], "activation": activation(d["activation_function"]), "resnet_dt": d["resnet_dt"]}


def two_body(d: Tree) -> Tree:
    """Settings of the environment and the embedding net, ours from a file's. Raises ModelFileError: contradictions."""
    check_env_mat(d)
    return {
        "rcut": d["rcut"],
        "rcut_smth": d["rcut_smth"],
        "exclude_types": pairs(d.get("exclude_types")),
        "env_protection": d.get("env_protection", 0.0),
        **net_settings(d),
    }


def check_env_mat(d: Tree, node: Tree | None = None) -> None:
    """Raise ModelFileError if the cutoffs of a descriptor are not those of its environment matrix.

    Args: d: with rcut and rcut_smth; node: with `env_mat`, which training inputs lack; default: d.
    """
    env_mat = (d if node is None else node).get("env_mat") or {}
    for key in ("rcut", "rcut_smth"):
        if key in env_mat and env_mat[key] != d[key]:
            raise ModelFileError(
                f"`{key}` is {d[key]} in a descriptor and {env_mat[key]} in its environment matrix; expected the same. "
                "Get the file again."
            )


def write_two_body(config: Any, target: Target) -> Tree:
    """The settings that `two_body` reads, and those that go with them in every file."""
    return {
        **as_input_two_body(config),
        "precision": target.precision,
        "type_map": target.type_map,
        "env_mat": env_mat(config.rcut, config.rcut_smth, config.env_protection),
    }


def env_mat(rcut: float, rcut_smth: float, protection: float) -> Tree:
    """The node of an environment matrix."""
    return {"rcut": rcut, "rcut_smth": rcut_smth, "protection": protection, "use_exp_switch": False}


def as_input_two_body(config: Any) -> Tree:
    """The settings that `two_body` reads, as in a training input."""
    return {
        "rcut": config.rcut,
        "rcut_smth": config.rcut_smth,
        "neuron": config.neuron,
        "activation_function": config.activation,
        "resnet_dt": config.resnet_dt,
        "exclude_types": [list(pair) for pair in config.exclude_types],
        "env_protection": config.env_protection,
        "set_davg_zero": True,
        "trainable": True,
    }


# What a training input may leave out, of the settings that `two_body` reads; DeePMD-kit 3.2.0.
INPUT_DEFAULTS: Tree = {
    "rcut": 6.0,
    "rcut_smth": 0.5,
    "neuron": [10, 20, 40],
    "activation_function": "tanh",
    "resnet_dt": False,
    "exclude_types": [],
    "env_protection": 0.0,
    "precision": "default",
}


def type_embedding(dim: int, econf: bool, bias: bool, target: Target) -> Tree:
    """The node TypeEmbedNet, without its net. Its net: `Binding(*TYPE_EMBEDDING, descriptor.type_embedding)`."""
    return {
        "@class": "TypeEmbedNet",
        "@version": 2,
        "ntypes": len(target.type_map),
        "neuron": [dim],
        "resnet_dt": False,
        "precision": target.precision,
        "activation_function": "Linear",
        "trainable": True,
        "padding": True,
        "use_econf_tebd": econf,
        "use_tebd_bias": bias,
        "type_map": target.type_map,
    }


TYPE_EMBEDDING = ("type_embedding.embedding", "type_embedding.embedding.embedding_net")  # its path and key
