"""Where the weights of a model lie in DeePMD-kit's files: one table serves reading, writing and training checkpoints.

A `Binding` names one part of a model (a layer, a net, standard deviations, ...) and its place in both kinds of file:

    portable (.dp, .yaml):  descriptor.embeddings.networks.0.layers.1.@variables.w      `path`, dots and list indices
    training (.pt):         descriptor.sea.filter_layers.networks.0.layers.1.matrix     `key`

It unrolls into `Leaf`s, one for each array. `fill` takes them from either file, `nodes` writes them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpsim.errors import ModelFileError, UnsupportedModelError
from dpsim.models.nets import MLP, Layer, LayerNorm

Tree = dict[str, Any]


@dataclass(frozen=True)
class Networks:
    """DeePMD-kit's NetworkCollection: nets by `ndim` types, index = sum_k type_k n_types^k; None: there is none."""

    nets: Sequence[MLP | None]
    ndim: int
    n_types: int
    fitting: bool = False


@dataclass(frozen=True)
class Adapted:
    """A tensor that a file holds in another shape or order.

    Args: shape: of the array in the file; read: that array (float64) -> our values; write: our tensor -> that array;
    add: these values come on top of those of a binding before.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]
    add: bool = False


def slots(tensor: Tensor, n_slots: int, columns: int = 4) -> Adapted:
    """davg or dstd (n_types, 4), which files repeat for each slot of the neighbour list; 1 column: distances only."""

    def read(array: Tensor) -> Tensor:
        if bool((array != array[:, :1]).any()):
            raise UnsupportedModelError(
                "the file holds davg or dstd that differ between the slots of one type, which dpsim does not evaluate."
            )
        value = tensor.detach().to(torch.float64).clone()
        value[:, :columns] = array[:, 0]
        return value

    def write(value: Tensor) -> Tensor:
        return value[:, None, :columns].expand(-1, n_slots, -1)

    return Adapted(tensor, (len(tensor), n_slots, columns), read, write)


Target = Layer | LayerNorm | MLP | Networks | Adapted | Tensor | Sequence[Any]


class Binding(NamedTuple):
    """A part of a model and its place in a portable file and in a training checkpoint.

    A list of targets is a list in the file, its index appended to path and key.
    """

    path: str
    key: str
    target: Target

    def under(self, path: str, key: str) -> Binding:
        """The same, inside something that lies at `path` and `key`."""
        return Binding(_join(path, self.path), _join(key, self.key), self.target)


@dataclass(frozen=True)
class Leaf:
    """One array of a file and the tensor of ours it belongs to."""

    path: str
    key: str
    value: Adapted

    def under(self, path: str, key: str) -> Leaf:
        return replace(self, path=_join(path, self.path), key=_join(key, self.key))


def leaves(bindings: Iterable[Binding]) -> Iterator[Leaf]:
    """The arrays of bindings, one by one."""
    for path, key, target in bindings:
        for leaf in _leaves(target):
            yield leaf.under(path, key)


def _leaves(target: Target) -> Iterator[Leaf]:
    match target:
        case Layer():
            yield from _named(("w", "matrix", target.weight), ("b", "bias", target.bias), ("idt", "idt", target.idt))
        case LayerNorm():
            yield from _named(("w", "matrix", target.weight), ("b", "bias", target.bias))
        case MLP():
            for k, layer in enumerate(target.children()):
                yield from (leaf.under(f"layers.{k}", f"layers.{k}") for leaf in _leaves(layer))  # type: ignore[arg-type]
        case Networks(nets):
            for k, net in enumerate(nets):
                if net is not None:
                    yield from (leaf.under(f"networks.{k}", f"networks.{k}") for leaf in _leaves(net))
        case Tensor():
            yield Leaf("", "", Adapted(target, tuple(target.shape), lambda x: x, lambda x: x))
        case Adapted():
            yield Leaf("", "", target)
        case _:
            for k, inner in enumerate(target):
                yield from (leaf.under(str(k), str(k)) for leaf in _leaves(inner))


def _named(*tensors: tuple[str, str, Tensor | None]) -> Iterator[Leaf]:
    for path, key, tensor in tensors:
        if tensor is not None:
            yield from (leaf.under(f"@variables.{path}", key) for leaf in _leaves(tensor))


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


# Reading.


def arrays(node: Any, path: str = "") -> dict[str, Any]:
    """The arrays of a portable file's tree by their paths."""
    if isinstance(node, np.ndarray):
        return {path: node}
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return {k: v for name, inner in items for k, v in arrays(inner, _join(path, str(name))).items()}


def check(bindings: Iterable[Binding], found: Mapping[str, Any], by: Literal["path", "key"]) -> None:
    """Raise ModelFileError unless `found` has exactly the arrays of the bindings, in their shapes."""
    expected = {getattr(leaf, by): leaf for leaf in leaves(bindings)}
    for name, leaf in expected.items():
        shape = leaf.value.shape
        if name not in found:
            raise ModelFileError(
                f"`{name}` is missing in the file; expected an array of shape {shape}, as its settings say. "
                "Get the file again."
            )
        if tuple(found[name].shape) != shape:
            raise ModelFileError(
                f"`{name}` is of shape {tuple(found[name].shape)}; expected {shape}, as the settings of the file say. "
                "Get the file again."
            )
    for name in found:
        if name not in expected:
            raise ModelFileError(
                f"`{name}` is an array of shape {tuple(found[name].shape)} that nothing in the settings of the file "
                "asks for; expected none. Get the file again, or a dpsim that knows it."
            )


def fill(bindings: Iterable[Binding], found: Mapping[str, Any], by: Literal["path", "key"]) -> None:
    """Take the arrays of a file, which passed `check`, as our values. Raises ModelFileError if one is not finite."""
    values = []
    for leaf in leaves(bindings):
        name = getattr(leaf, by)
        try:
            array = torch.as_tensor(found[name]).to(torch.float64)
        except (TypeError, ValueError):
            raise ModelFileError(f"`{name}` is {found[name].dtype}; expected numbers. Get the file again.") from None
        if not bool(torch.isfinite(array).all()):
            raise ModelFileError(f"`{name}` holds NaN or infinity; expected numbers. Get the file again.")
        values.append((leaf.value, leaf.value.read(array)))
    with torch.no_grad():
        for target, value in values:
            target.tensor.copy_(target.tensor + value if target.add else value)


# Writing.


def place(tree: Tree, bindings: Iterable[Binding]) -> None:
    """Write what the bindings hold into a tree of settings, as DeePMD-kit writes it."""
    for path, _, target in bindings:
        *outer, last = path.split(".")
        at: Any = tree
        for name in outer:
            at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
        node = to_node(target)
        if isinstance(at, list):
            at[int(last)] = node
        else:
            at[last] = node


def to_node(target: Target) -> Any:
    """A part of a model as it stands in a portable file."""
    match target:
        case Layer():
            return _layer(target, resnet=target.residual > 0)
        case LayerNorm():
            variables = {"w": _array(target.weight), "b": _array(target.bias)}
            head = {"@class": "LayerNorm", "@version": 1, "eps": target.eps, "trainable": True}
            return {**head, "precision": precision_of(target.weight), "@variables": variables}
        case MLP():
            return _embedding_network(target)
        case Networks(nets, ndim, n_types, fitting):
            of_net = _fitting_network if fitting else _embedding_network
            return {
                "@class": "NetworkCollection",
                "@version": 1,
                "ndim": ndim,
                "ntypes": n_types,
                "network_type": "fitting_network" if fitting else "embedding_network",
                "networks": [None if net is None else of_net(net) for net in nets],
            }
        case Tensor():
            return _array(target)
        case Adapted():
            return _array(target.write(target.tensor))
        case _:
            return [to_node(inner) for inner in target]


def precision_of(tensor: Tensor) -> str:
    """DeePMD-kit's name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def _array(tensor: Tensor | None) -> np.ndarray[Any, Any] | None:
    return None if tensor is None else np.ascontiguousarray(tensor.detach().cpu().numpy())


def _layer(layer: Layer, resnet: bool) -> Tree:
    return {
        "@class": "Layer",
        "@version": 2,
        "bias": layer.bias is not None,
        "use_timestep": layer.idt is not None,
        "activation_function": layer.act,
        "resnet": resnet,
        "precision": precision_of(layer.weight),
        "trainable": True,
        "@variables": {"w": _array(layer.weight), "b": _array(layer.bias), "idt": _array(layer.idt)},
    }


def _network(net: MLP, hidden: Sequence[Layer]) -> Tree:
    return {
        "in_dim": hidden[0].n_in,
        "neuron": [layer.n_out for layer in hidden],
        "activation_function": hidden[0].act,
        "resnet_dt": any(layer.idt is not None for layer in hidden),
        "precision": precision_of(hidden[0].weight),
    }


def _embedding_network(net: MLP) -> Tree:
    layers: list[Layer] = list(net)  # type: ignore[arg-type]
    return {
        "@class": "EmbeddingNetwork",
        "@version": 2,
        **_network(net, layers),
        "bias": layers[0].bias is not None,
        "layers": [_layer(layer, resnet=True) for layer in layers],
    }


def _fitting_network(net: MLP) -> Tree:
    *hidden, out = list(net)
    return {
        "@class": "FittingNetwork",
        "@version": 1,
        **_network(net, hidden),  # type: ignore[arg-type]
        "out_dim": out.n_out,
        "bias_out": out.bias is not None,
        "layers": [*(_layer(layer, resnet=True) for layer in hidden), _layer(out, resnet=False)],  # type: ignore[arg-type]
    }


def check_layers(ours: Any, theirs: Any, path: str = "") -> None:
    """Raise ModelFileError where a layer of a file is another function than ours, which its descriptor's settings say.

    Args: ours: what we would write (`to_node`), theirs: the same part of the file.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.get("@class") == "Layer":
            for key, value in _function(ours).items():
                found = _function(theirs)[key]
                if found != value:
                    raise ModelFileError(
                        f"`{path}.{key}` is {found!r}; expected {value!r}, as the other settings of the file say. "
                        "Get the file again."
                    )
        for name in ours.keys() & theirs.keys():
            check_layers(ours[name], theirs[name], _join(path, name))
    elif isinstance(ours, list) and isinstance(theirs, list):
        for k, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            check_layers(a, b, _join(path, str(k)))


def _function(layer: Tree) -> Tree:
    """What a layer's node says of its function, in one way of saying it."""
    act = str(layer.get("activation_function") or "none").lower()
    n_in, n_out = np.shape(layer["@variables"]["w"])
    resnet = bool(layer.get("resnet", False)) and n_out in (n_in, 2 * n_in)
    return {"activation_function": "none" if act == "linear" else act, "resnet": resnet}
