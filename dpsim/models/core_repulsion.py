"""A steep pair repulsion inside distances that the training data do not hold.

    U(r) = E0 ((r0 - r) / d)^3 for r < r0, else 0,      E0 = 1 eV, d = 0.15 A

r0 is below the shortest distance of the pair of types in the data (dpsim/data/statistics.py::core_distances), so
energies and forces of the data are untouched, and U is C2. Where two atoms come much closer than ever in training, a
net's energy means nothing and is as likely as not to fall; this makes it rise. It guards pair distances only: no cure
for a model that knows too few structures.
"""

from torch import Tensor

ENERGY_EV = 1.0
LENGTH_A = 0.15


def core_repulsion(edge_vec: Tensor, center: Tensor, r0: Tensor, n_atoms: int) -> Tensor:
    """Each atom's half of U, (n_atoms,) eV.

    Args: edge_vec (n_edges, 3) A of directed edges, center (n_edges,), r0 (n_edges,) A.
    """
    depth = r0 - edge_vec.norm(dim=1)
    inside = (depth > 0).nonzero()[:, 0]
    u = 0.5 * ENERGY_EV * (depth[inside] / LENGTH_A) ** 3
    return u.new_zeros(n_atoms).index_add(0, center[inside], u)
