"""Reader of extended XYZ (.xyz, .extxyz), parsed by ASE one frame at a time.

The file is scanned once for where frames begin and which elements occur; frames are parsed when asked for.
Labels: REF_* are preferred, then dft_*, then the plain names, then what ASE holds as calculator results.
Parameters that some models take: `fparam` in info, one or more numbers, and the columns `aparam`.
The column `atom_pref` says how much the force of each atom counts in the loss.
Predictions are written as dpsim_*, beside what a frame holds (`with_predictions`); as labels they are never taken,
unless LabelKeys names them.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsim.data.frame import Frame
from dpsim.data.system import LABELS, System, hash_file
from dpsim.errors import DataError

_PREFIXES = ("REF_", "ref_", "DFT_", "dft_", "")
_PREDICTED = "dpsim_"
_PROPERTIES = re.compile(r'\bProperties="?[^"\s]+')
_SPECIES = re.compile(r'Properties="?(?P<before>.*?)species:S:1', re.IGNORECASE)


@dataclass(frozen=True)
class LabelKeys:
    """Names under which labels are sought in info, arrays and calculator results: the first found is taken.

    Names in `virial` that end in "stress", and all names in `stress`, hold a stress; the others a virial in eV.
    """

    energy: tuple[str, ...] = tuple(f"{p}energy" for p in _PREFIXES)
    forces: tuple[str, ...] = tuple(f"{p}{name}" for p in _PREFIXES for name in ("forces", "force"))
    virial: tuple[str, ...] = tuple(f"{p}{name}" for p in _PREFIXES for name in ("virial", "virials", "stress"))
    stress: tuple[str, ...] = ()


class ExtxyzSystem(System):
    """The frames of one .xyz / .extxyz file; compositions and cells may differ between them.

    Units: A, eV, eV/A; stress in eV/A^3, ASE's sign (tension positive): virial = -stress * V; a virial in eV is taken
    as it is. Periodicity may be partial; without any, the cell is dropped.
    """

    def __init__(self, path: Path, keys: LabelKeys | None = None):
        self.path, self.name = path, path.name
        self._keys = keys or LabelKeys()
        self._starts, symbols, self.n_atoms = _scan(path)
        if not len(self):
            raise DataError(f"`{path}` has no frames; expected extended XYZ. Check the file.")
        self.type_map = _by_atomic_number(symbols, path)
        self._type_of = {name: t for t, name in enumerate(self.type_map)}
        self._has: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._starts) - 1

    def has(self, label: str) -> bool:
        """Whether the first frame carries this label: extxyz files are taken to be of one kind."""
        if not self._has:
            first = self.frame(0)
            self._has = {name: getattr(first, name) is not None for name in LABELS}
        return self._has.get(label, False)

    def digest(self) -> str:
        digest = hashlib.sha256()
        hash_file(digest, self.path)
        return digest.hexdigest()

    def text(self, k: int) -> str:
        """The lines of a frame as they are in the file."""
        self._check_index(k)
        with open(self.path, "rb") as file:
            file.seek(self._starts[k])
            return file.read(self._starts[k + 1] - self._starts[k]).decode()

    def frame(self, k: int) -> Frame:
        text, source = self.text(k), f"{self.path} frame {k}"
        atoms = _parse(text, source)
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        found = {**results, **atoms.arrays, **atoms.info}
        pbc = np.array(atoms.pbc, dtype=bool)
        n = len(atoms)
        energy = _first(found, self._keys.energy)
        forces = _first(found, self._keys.forces)
        return Frame(
            positions=np.array(atoms.positions, dtype=np.float64),
            types=np.array([self._type_of[s] for s in atoms.get_chemical_symbols()], dtype=np.int64),
            type_map=self.type_map,
            cell=np.array(atoms.cell, dtype=np.float64) if pbc.any() else np.zeros((3, 3)),
            pbc=pbc,
            energy=None if energy is None else float(_shaped(*energy, (), source)),
            forces=None if forces is None else _shaped(*forces, (n, 3), source),
            virial=self._virial(found, atoms, pbc, source),
            source=source,
            fparam=_parameters("fparam", atoms.info.get("fparam"), 1, source, flat=True),
            aparam=_parameters("aparam", atoms.arrays.get("aparam"), n, source),
            atom_pref=_atom_pref(atoms.arrays.get("atom_pref"), n, source),
        )

    def _virial(self, found: dict[str, Any], atoms: Any, pbc: np.ndarray, source: str) -> np.ndarray | None:
        """The virial (3, 3) eV: as given, or -stress * V where the frame is periodic in all directions."""
        item = _first(found, self._keys.virial + self._keys.stress)
        if item is None:
            return None
        key, value = item
        is_stress = key in self._keys.stress or key.lower().endswith("stress")
        if is_stress and not pbc.all():
            return None  # a stress without a volume
        flat = np.asarray(value, dtype=np.float64).reshape(-1)
        if flat.size == 6:  # Voigt xx yy zz yz xz xy
            flat = flat[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
        matrix = _shaped(key, flat.reshape(3, 3) if flat.size == 9 else value, (3, 3), source)
        return -matrix * abs(float(np.linalg.det(np.asarray(atoms.cell)))) if is_stress else matrix


def with_predictions(
    text: str, energy: float, forces: np.ndarray, virial: np.ndarray | None, stress: np.ndarray | None, source: str
) -> str:
    """A frame's lines with predictions added, all that was there kept as it is.

    Added: dpsim_energy eV; dpsim_virial eV and dpsim_stress eV/A^3 (ASE's sign), nine numbers each, row by row; columns
    dpsim_forces eV/A.

    Raises: DataError where the frame has such a key already; `source` names it.
    """
    number, comment, *rows = text.splitlines()[: 2 + len(forces)]
    if _PREDICTED in comment:
        raise DataError(
            f"{source} has predictions ({_PREDICTED}...) already; expected a frame without. Evaluate the original file."
        )
    added = f"{_PREDICTED}energy={energy:.17g}"
    for name, matrix in (("virial", virial), ("stress", stress)):
        if matrix is not None:
            added += f' {_PREDICTED}{name}="{" ".join(f"{x:.17g}" for x in matrix.ravel())}"'
    column = f"{_PREDICTED}forces:R:3"
    if _PROPERTIES.search(comment):
        comment = _PROPERTIES.sub(rf"\g<0>:{column}", comment, count=1)
    else:  # plain XYZ
        comment = f"Properties=species:S:1:pos:R:3:{column} {comment}"
        rows = [" ".join(row.split()[:4]) for row in rows]
    rows = [f"{row.rstrip()} {x:.17g} {y:.17g} {z:.17g}" for row, (x, y, z) in zip(rows, forces, strict=True)]
    return "\n".join([number, f"{comment.rstrip()} {added}", *rows]) + "\n"


def _first(found: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, Any] | None:
    return next(((key, found[key]) for key in keys if found.get(key) is not None), None)


def _shaped(key: str, value: Any, shape: tuple[int, ...], source: str) -> np.ndarray:
    """The value as float64 of the expected shape."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.shape != shape:
        got = f"{value!r}"[:80] if array is None else f"of shape {array.shape}"
        raise DataError(f"{source}: `{key}` is {got}; expected numbers of shape {shape}. Correct the file.")
    return array


def _parameters(key: str, value: Any, rows: int, source: str, flat: bool = False) -> np.ndarray | None:
    """Parameters (rows, k), with k as many as there are; `flat`: of a single row, (k,)."""
    if value is None:
        return None
    width = np.size(value) // rows
    array = _shaped(
        key, np.reshape(value, (rows, width)) if np.size(value) == rows * width else value, (rows, width), source
    )
    return array[0] if flat else array


def _atom_pref(value: Any, n: int, source: str) -> np.ndarray | None:
    return None if value is None else _shaped("atom_pref", value, (n,), source)


def _parse(text: str, source: str) -> Any:
    from ase.io.extxyz import read_xyz

    try:
        return next(iter(read_xyz(io.StringIO(text), 0)))
    except Exception as error:  # ASE raises many kinds, all of them about this text
        raise DataError(f"{source}: ASE cannot read it ({error}); expected extended XYZ. Correct the file.") from error


def _scan(path: Path) -> tuple[list[int], set[str], int]:
    """Byte offsets of the frames and of the end, the symbols that occur, and the largest number of atoms."""
    starts: list[int] = []
    symbols: set[str] = set()
    largest = 0
    with open(path, "rb") as file:
        while True:
            start, line = file.tell(), file.readline()
            if not line.strip():
                if not line:
                    break
                continue
            try:
                n = int(line)
            except ValueError as error:
                raise DataError(
                    f"`{path}` at frame {len(starts)}: the line {line[:40].decode(errors='replace')!r} is not a number "
                    "of atoms. Expected extended XYZ; correct the file."
                ) from error
            match = _SPECIES.search(file.readline().decode())
            column = _columns_before(match["before"]) if match else 0
            for _ in range(n):
                words = file.readline().split(None, column + 1)
                if len(words) <= column:
                    raise DataError(
                        f"`{path}` ends or is empty within frame {len(starts)}; expected {n} atoms. Is it whole?"
                    )
                symbols.add(words[column].decode())
            starts.append(start)
            largest = max(largest, n)
        starts.append(file.tell())
    return starts, symbols, largest


def _columns_before(properties: str) -> int:
    """Columns that come before the species, from 'pos:R:3:' and the like."""
    return sum(int(width) for width in re.findall(r":[SRIL]:(\d+)", properties))


def _by_atomic_number(symbols: set[str], path: Path) -> tuple[str, ...]:
    from ase.data import atomic_numbers, chemical_symbols

    names = {chemical_symbols[int(s)] if s.isdigit() else s.capitalize() for s in symbols}
    unknown = sorted(names - set(atomic_numbers))
    if unknown:
        raise DataError(f"`{path}` has the species {unknown}; expected chemical symbols. Correct the file.")
    return tuple(sorted(names, key=atomic_numbers.__getitem__))
