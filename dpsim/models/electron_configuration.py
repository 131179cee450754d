"""Electron configurations of the elements, as the type embedding of DPA-1 models with `use_econf_tebd` reads them.

Orbitals in the order of `SHELLS`, each with 2l + 1 places that hold two spins; electrons fill by Madelung's rule and
Hund's first rule, with the measured exceptions (NIST Atomic Spectra Database). An empty spin place counts -1, a
filled one +1, and the vector is divided by the square root of its length (118).
"""

import math

import torch
from ase.data import atomic_numbers
from torch import Tensor

from dpsim.errors import ElementError

SHELLS = (
    *("1s", "2s", "2p", "3s", "3p", "3d", "4s", "4p", "4d", "4f"),
    *("5s", "5p", "5d", "5f", "6s", "6p", "6d", "7s", "7p"),
)
ORBITAL_L = {"s": 0, "p": 1, "d": 2, "f": 3}
MADELUNG = sorted(SHELLS, key=lambda shell: (int(shell[0]) + ORBITAL_L[shell[1]], int(shell[0])))
# Electrons moved from one shell to another relative to Madelung's rule.
EXCEPTIONS: dict[str, tuple[tuple[str, str, int], ...]] = {
    **dict.fromkeys(("Cr", "Cu"), (("4s", "3d", 1),)),
    **dict.fromkeys(("Nb", "Mo", "Ru", "Rh", "Ag"), (("5s", "4d", 1),)),
    "Pd": (("5s", "4d", 2),),
    **dict.fromkeys(("La", "Ce", "Gd"), (("4f", "5d", 1),)),
    **dict.fromkeys(("Pt", "Au"), (("6s", "5d", 1),)),
    **dict.fromkeys(("Ac", "Pa", "U", "Np", "Cm"), (("5f", "6d", 1),)),
    "Th": (("5f", "6d", 2),),
}


def shell_occupation(symbol: str) -> dict[str, int]:
    """Electrons in each shell of the neutral atom's ground state."""
    if symbol not in atomic_numbers or not 1 <= atomic_numbers[symbol] <= 118:
        raise ElementError(f"`{symbol}` is not an element; `use_econf_tebd` expects element symbols in type_map.")
    left = atomic_numbers[symbol]
    occupation = dict.fromkeys(SHELLS, 0)
    for shell in MADELUNG:
        occupation[shell] = min(left, 2 * (2 * ORBITAL_L[shell[1]] + 1))
        left -= occupation[shell]
    for source, target, n in EXCEPTIONS.get(symbol, ()):
        occupation[source] -= n
        occupation[target] += n
    return occupation


def electron_configuration(symbols: list[str]) -> Tensor:
    """(n_symbols, 118) float64: the spin places of each element, -1 or +1, over sqrt(118)."""
    rows = []
    for symbol in symbols:
        row: list[int] = []
        for shell, n in shell_occupation(symbol).items():
            orbitals = 2 * ORBITAL_L[shell[1]] + 1
            for m in range(orbitals):
                electrons = (n > m) + (n > orbitals + m)  # one spin into every orbital first
                row += [1 if electrons == 2 else -1, 1 if electrons else -1]
        rows.append(row)
    x = torch.tensor(rows, dtype=torch.float64)
    return x / math.sqrt(x.shape[1])
