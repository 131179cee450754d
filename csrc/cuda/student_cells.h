// Cells of the neighbour list on the host: open directions completed, bins, and how long a list holds.
#pragma once

#include <algorithm>
#include <cmath>

#include "device_memory.h"
#include "student_neighbors.cuh"

namespace dpsim::cuda {

constexpr int64_t kMostAtoms = int64_t(1) << 30;  // with images; indices are 32-bit

inline void cross(const double* a, const double* b, double* c) {
  for (int k = 0; k < 3; ++k) c[k] = a[(k + 1) % 3] * b[(k + 2) % 3] - a[(k + 2) % 3] * b[(k + 1) % 3];
}
inline double norm(const double* a) { return std::sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2]); }

// The periodic rows of a cell, and unit vectors orthogonal to them and to each other in place of the others.
inline void complete_cell(const double* cell, const int32_t* pbc, double* full) {
  int open[3], n_open = 0, closed[3], n_closed = 0;
  for (int a = 0; a < 3; ++a) {
    if (pbc[a] && cell) {
      std::copy(cell + 3 * a, cell + 3 * a + 3, full + 3 * a);
      closed[n_closed++] = a;
    } else {
      open[n_open++] = a;
    }
  }
  const auto unit = [&](const double* a, const double* b, double* c) {
    cross(a, b, c);
    const double length = norm(c);
    for (int k = 0; k < 3; ++k) c[k] /= length;
  };
  if (n_open == 3)
    for (int k = 0; k < 9; ++k) full[k] = k % 4 == 0;
  if (n_open == 2) {
    const double* v = full + 3 * closed[0];
    double axis[3] = {0, 0, 0};
    int least = 0;
    for (int k = 1; k < 3; ++k) least = std::abs(v[k]) < std::abs(v[least]) ? k : least;
    axis[least] = 1;
    unit(v, axis, full + 3 * open[0]);
    unit(v, full + 3 * open[0], full + 3 * open[1]);
  }
  if (n_open == 1) unit(full + 3 * closed[0], full + 3 * closed[1], full + 3 * open[0]);
}

inline void invert(const double* m, double* inverse) {
  double rows[9];
  for (int a = 0; a < 3; ++a) cross(m + 3 * ((a + 1) % 3), m + 3 * ((a + 2) % 3), rows + 3 * a);
  const double det = m[0] * rows[0] + m[1] * rows[1] + m[2] * rows[2];
  for (int a = 0; a < 3; ++a)
    for (int b = 0; b < 3; ++b) inverse[3 * a + b] = rows[3 * b + a] / det;
}

inline Grid make_grid(const double* cell, const int32_t* pbc, int64_t n, const double* positions, double cutoff,
               int n_types) {
  Grid grid{};
  invert(cell, grid.inverse);
  double images = 1;
  for (int a = 0; a < 3; ++a) {
    const double column[3] = {grid.inverse[a], grid.inverse[3 + a], grid.inverse[6 + a]};
    const double margin = cutoff * norm(column) * (1 + 1e-9);
    double extent = 1 + 2 * margin;
    grid.periodic[a] = pbc[a] != 0;
    grid.margin[a] = margin;
    grid.low[a] = -margin;
    if (!grid.periodic[a]) {
      double high = -INFINITY;
      grid.low[a] = INFINITY;
      for (int64_t i = 0; i < n; ++i) {
        const double* x = positions + 3 * i;
        const double u = x[0] * column[0] + x[1] * column[1] + x[2] * column[2];
        grid.low[a] = std::min(grid.low[a], u);
        high = std::max(high, u);
      }
      extent = high - grid.low[a];
    } else {
      images *= extent;
    }
    grid.count[a] = int(std::max(1.0, std::min(extent / margin, 1e6)));
    grid.per_bin[a] = extent > 0 ? grid.count[a] / extent : 0.0;
  }
  if (!(double(n) * images < double(kMostAtoms)))
    throw Failure{fail(DPSIM_UNSUPPORTED, "%.3g atoms and images of them are within the cutoff of the cell; expected "
                       "below %.3g. Use a larger cell or fewer atoms.", double(n) * images, double(kMostAtoms))};
  const int64_t most = std::max<int64_t>(4096, 4 * n) / n_types;  // bins are no use where they are empty
  for (;;) {
    const int64_t bins = int64_t(grid.count[0]) * grid.count[1] * grid.count[2];
    int* largest = std::max_element(grid.count, grid.count + 3);
    grid.n_bins = int(bins);
    if (bins <= most || *largest == 1) return grid;
    grid.per_bin[largest - grid.count] *= double(*largest / 2) / *largest;
    *largest /= 2;
  }
}

// map: the matrix that takes the lattice of one cell to that of another.
inline void change_of(const double* from, const double* to, double* map) {
  double inverse[9];
  invert(from, inverse);
  const bool same = std::equal(from, from + 9, to);
  for (int k = 0; k < 9; ++k) {
    map[k] = same && k % 4 == 0;
    for (int a = 0; a < 3 && !same; ++a) map[k] += inverse[k / 3 * 3 + a] * to[3 * a + k % 3];
  }
}

// How far an atom may be from where the cell's change alone would have put it, before a pair within rcut could be
// missing: a pair that is not listed was rcut + skin apart; its distance is now at least (rcut + skin)(1 - |M - 1|)
// less two such ways, with M = map. Below zero where no distance is short enough.
inline double allowed_way(const double* map, double rcut, double skin) {
  double strain2 = 0;
  for (int k = 0; k < 9; ++k) strain2 += std::pow(map[k] - (k % 4 == 0), 2);
  return 0.5 * ((rcut + skin) * (1 - std::sqrt(strain2)) - rcut);
}

}  // namespace dpsim::cuda
