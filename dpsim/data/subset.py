"""A part of some frames: spread evenly, or drawn at random (the smaller of two with one seed lies in the larger)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from dpsim.data.frame import Frame
from dpsim.data.system import System

T = TypeVar("T")


def evenly_spread(items: Sequence[T], n: int) -> list[T]:
    """At most n of the items, from the first to the last: always the same ones."""
    if n >= len(items):
        return list(items)
    return [items[k] for k in np.linspace(0, len(items) - 1, n).round().astype(int)]


class Subset(System):
    """Some frames of a system, in their order there."""

    def __init__(self, system: System, frames: Sequence[int]):
        self.system, self.frames = system, sorted(frames)
        self.path, self.name, self.type_map, self.n_atoms = system.path, system.name, system.type_map, system.n_atoms

    def __len__(self) -> int:
        return len(self.frames)

    def frame(self, k: int) -> Frame:
        self._check_index(k)
        return self.system.frame(self.frames[k])

    def has(self, label: str) -> bool:
        return self.system.has(label)

    def elements(self) -> set[str]:
        return self.system.elements()

    def digest(self) -> str:
        return hashlib.sha256(f"{self.system.digest()} {self.frames}".encode()).hexdigest()


def random_subset(systems: Sequence[System], n_frames: int, seed: int) -> dict[int, System]:
    """At most n_frames of the frames of some systems: the first ones of a random order of all of them.

    Returns: by its index in `systems`, what is drawn of each; those of which nothing is are left out.
    """
    everything = [(s, k) for s, system in enumerate(systems) for k in range(len(system))]
    order = np.random.default_rng(seed).permutation(len(everything))[:n_frames]
    chosen: dict[int, list[int]] = {}
    for index in order:
        s, k = everything[index]
        chosen.setdefault(s, []).append(k)
    return {s: Subset(systems[s], chosen[s]) for s in sorted(chosen)}
