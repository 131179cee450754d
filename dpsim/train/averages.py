"""Errors of a model over several data sets as one number, weighted as in DPA-2, Table 1.

    WARMSE = sum_i w_i err_i / sum_i w_i                    LWARMSE = exp(sum_i w_i log err_i / sum_i w_i)

of the errors err_i (RMSE or MAE, of energies or forces) of the sets. The arithmetic one is ruled by the hardest sets;
in the logarithmic one a halved error counts the same in each.
Source: Zhang et al., DPA-2, npj Comput. Mater. 10, 293 (2024), Tables 1 and 2; DPA-3, arXiv 2506.01686, Eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def weighted_average(errors: Sequence[float], weights: Sequence[float]) -> float:
    """sum w err / sum w."""
    return float(np.average(errors, weights=weights))


def log_weighted_average(errors: Sequence[float], weights: Sequence[float]) -> float:
    """exp(sum w log err / sum w): DPA-3, Eq. 1; 0 if an error with a weight is 0."""
    w, e = np.asarray(weights, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if np.any(e[w > 0] == 0):
        return 0.0
    return float(np.exp(np.average(np.log(e[w > 0]), weights=w[w > 0])))
