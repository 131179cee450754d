"""Widen the training data: carry frames of another functional to PBE0+TS by a pair potential.

python widen.py narrow/model.dpsim ../../../../shared/data/water_pbe_dipole/train widened

AIMD at one temperature shows a net only what liquid water does; a net trained on nothing else is accurate there and
means nothing a little outside, where long runs will take it. Frames that an exploration has chosen to be unlike it
(Zhang et al., J. Chem. Phys. 156, 124107 (2022): denser, dilute, stretched, close to proton transfer) exist at the PBE
level. Two functionals differ by far more than a model's error, 257 meV/A here, but smoothly: on the frames that
resemble the AIMD the difference is, to 50 meV/A (the model's own error is 44), a sum over pairs,

    F_narrow(R) - F_PBE(R) = -grad sum_{i<j} u_{ti tj}(r_ij),      u: cubic splines, zero from 6 A on.

u is fitted by least squares to those frames, with a penalty on the jumps of u''' that keeps it smooth where there are
few pairs, and added to the labels of every frame; energies get one constant per atom besides. The model to be trained
then learns PBE0+TS from its own frames and, from the widened ones, what happens between and beyond them.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.interpolate import BSpline

from dpsim import load_model
from dpsim.calculators.base import evaluate_frames
from dpsim.data.frame import Frame
from dpsim.data.readers import open_dataset
from dpsim.neighbors import neighbor_list

CUTOFF_A = 6.0
# pair of types -> shortest distance (A) and number of splines; O-H has the narrow peak of the bond
GRIDS = {(0, 0): (2.2, 15), (0, 1): (0.82, 57), (1, 1): (1.2, 19)}
SMOOTHNESS = 100.0  # eV^2: weight of the penalty; 10 times more or less changes the fit by 0.02 meV/A
RESEMBLING = "liq-0300"  # systems with this in their name resemble the AIMD frames


def splines(shortest: float, n: int) -> BSpline:
    """n cubic B-splines on [shortest, 6 A] in one function; the last end with zero value and slope."""
    inner = np.linspace(shortest, CUTOFF_A, n + 1)
    knots = np.concatenate([[shortest] * 3, inner, [CUTOFF_A] * 3])
    return BSpline(knots, np.eye(n + 3)[:, :n], 3, extrapolate=False)


def design(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """What each spline contributes to the energy, (n_splines,), and to the forces, (3 n_atoms, n_splines)."""
    i, j, shift = neighbor_list(frame.positions, frame.cell, frame.pbc, CUTOFF_A)
    vector = frame.positions[j] - frame.positions[i] + shift @ frame.cell
    r = np.linalg.norm(vector, axis=1)
    energies, forces = [], []
    for (a, b), (shortest, n) in GRIDS.items():
        pair = (np.minimum(frame.types[i], frame.types[j]) == a) & (np.maximum(frame.types[i], frame.types[j]) == b)
        u = splines(shortest, n)
        energies.append(0.5 * np.nan_to_num(u(r[pair])).sum(axis=0))  # every pair is listed twice
        push = np.nan_to_num(u.derivative()(r[pair]))[:, :, None] * (vector[pair] / r[pair, None])[:, None, :]
        force = np.zeros((frame.n_atoms, n, 3))
        np.add.at(force, i[pair], push)
        forces.append(force.transpose(0, 2, 1).reshape(-1, n))
    return np.concatenate(energies), np.concatenate(forces, axis=1)


def fit(frames: list[Frame], model_path: str) -> tuple[np.ndarray, float]:
    """Coefficients of the pair potential, and the energy per atom (eV) that remains."""
    predictions = evaluate_frames(load_model(model_path), frames, virial=False)
    normal, right, rest = 0.0, 0.0, []
    for frame, predicted in zip(frames, predictions, strict=True):
        energy_design, force_design = design(frame)
        difference = predicted.forces.numpy().ravel() - frame.forces.ravel()
        normal, right = normal + force_design.T @ force_design, right + force_design.T @ difference
        rest.append((float(predicted.energy[0]) - frame.energy, energy_design, frame.n_atoms))
    start = 0
    for _, n in GRIDS.values():
        third = np.diff(np.eye(n), 3, axis=0)
        normal[start : start + n, start : start + n] += SMOOTHNESS * third.T @ third
        start += n
    normal += 1e-9 * np.trace(normal) / len(normal) * np.eye(len(normal))
    c = np.linalg.solve(normal, right)
    return c, float(np.mean([(energy - d @ c) / n for energy, d, n in rest]))


def main(model_path: str, source: str, target: str) -> None:
    """Fit the pair potential, write every system of `source` with its new labels below `target`."""
    systems = open_dataset(source, ["O", "H"])
    alike = [s.frame(k) for s in systems if RESEMBLING in s.path.name for k in range(len(s))]
    c, constant = fit(alike, model_path)
    for system in systems:
        arrays: dict[str, list[np.ndarray]] = {"coord": [], "box": [], "force": [], "energy": []}
        for frame in (system.frame(k) for k in range(len(system))):
            energy_design, force_design = design(frame)
            arrays["coord"].append(frame.positions.ravel())
            arrays["box"].append(frame.cell.ravel())
            arrays["force"].append(frame.forces.ravel() + force_design @ c)
            arrays["energy"].append(frame.energy + energy_design @ c + constant * frame.n_atoms)
        folder = Path(target) / system.path.name
        (folder / "set.000").mkdir(parents=True)
        for name, values in arrays.items():
            np.save(folder / "set.000" / f"{name}.npy", np.array(values))
        np.savetxt(folder / "type.raw", frame.types, fmt="%d")
        (folder / "type_map.raw").write_text("O\nH\n")
        print(f"{folder}: {len(system)} frames")


if __name__ == "__main__":
    main(*sys.argv[1:])
