// Neighbour search by cells, linear in the number of atoms, for any cell and any distribution of atoms.
//
// Cells are cubes of half the cutoff. Only occupied ones are kept, sorted by key = (cx n_y + cy) n_z + cz, so memory
// does not depend on how far apart the atoms are. The 25 rows of five cells around a cell are found by cursors that
// only move forward as the cells are visited in order.
#include "neighbors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>

namespace dpsim {
namespace {

constexpr int64_t kReadable = 64;            // entries after the last neighbour that kernels may read
constexpr double kMaxMeanNeighbors = 20000;  // more means wrong units, and no memory
// Atoms below which threads cost more than they bring: in the search, and in loops of a few operations for each atom.
constexpr int64_t kSearchAtoms = 2000, kLoopAtoms = 100000;
constexpr double kSlack = 1e-5;              // relative; the search compares in float32

template <typename... Arguments>
[[noreturn]] void refuse(const char* format, Arguments... arguments) {
  char text[400];
  std::snprintf(text, sizeof text, format, arguments...);
  throw AtomsError(text);
}

double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

void cross(const double* a, const double* b, double* out) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

void normalise(double* a) {
  const double inverse = 1.0 / std::sqrt(dot(a, a));
  for (int d = 0; d < 3; ++d) a[d] *= inverse;
}

// out = v M for a row v.
void row_times(const double* v, const double (*m)[3], double* out) {
  for (int d = 0; d < 3; ++d) out[d] = v[0] * m[0][d] + v[1] * m[1][d] + v[2] * m[2][d];
}

// A lower bound of the smallest singular value of A, exact where A is a rotation times a uniform or uniaxial strain:
// A A^T = (1 + m) 1 + D with D symmetric and traceless, whose eigenvalues are at most sqrt(2/3) |D| in size.
double smallest_stretch(const double (*a)[3]) {
  double trace = 0, norm2 = 0, g[3][3];
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) g[i][j] = dot(a[i], a[j]);
  for (int i = 0; i < 3; ++i) trace += g[i][i];
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      const double d = g[i][j] - (i == j ? trace / 3 : 0.0);
      norm2 += d * d;
    }
  return std::sqrt(std::max(0.0, trace / 3 - std::sqrt(2.0 / 3.0 * norm2)));
}

// Stable order of `keys` by radix, 11 bits at a time; keys are at most `largest` and come back sorted.
std::vector<int32_t> radix_order(std::vector<uint64_t>& keys, uint64_t largest) {
  constexpr int bits = 11;
  const size_t n = keys.size();
  std::vector<int32_t> order(n), next_order(n);
  std::vector<uint64_t> next_keys(n);
  for (size_t i = 0; i < n; ++i) order[i] = int32_t(i);
  for (int shift = 0; shift < 64 && largest >> shift; shift += bits) {
    size_t start[(1 << bits) + 1] = {};
    for (size_t i = 0; i < n; ++i) ++start[(keys[i] >> shift & ((1 << bits) - 1)) + 1];
    for (int d = 0; d < 1 << bits; ++d) start[d + 1] += start[d];
    for (size_t i = 0; i < n; ++i) {
      const size_t to = start[keys[i] >> shift & ((1 << bits) - 1)]++;
      next_keys[to] = keys[i];
      next_order[to] = order[i];
    }
    keys.swap(next_keys);
    order.swap(next_order);
  }
  return order;
}

// Cells of width w from `low` on, numbered from 1. Centres lie two cells or more inside, so the cells around one never
// run from one row into the next.
struct Grid {
  double low[3], inverse_width[3], width[3];
  uint64_t n[3];

  Grid(const double* from, const double* to, double cell_width) {
    for (int d = 0; d < 3; ++d) {
      low[d] = from[d];
      width[d] = std::max(cell_width, (to[d] - from[d]) / (1 << 20));  // keys stay within 64 bits
      inverse_width[d] = 1.0 / width[d];
      n[d] = uint64_t((to[d] - from[d]) * inverse_width[d]) + 4;
    }
  }
  uint64_t key(const double* x) const {
    uint64_t c[3];
    for (int d = 0; d < 3; ++d) c[d] = 1 + uint64_t((x[d] - low[d]) * inverse_width[d]);
    return (c[0] * n[1] + c[1]) * n[2] + c[2];
  }
  uint64_t largest() const { return n[0] * n[1] * n[2]; }
  void center(uint64_t key, double* x) const {
    const uint64_t c[3] = {key / (n[1] * n[2]), key / n[2] % n[1], key % n[2]};
    for (int d = 0; d < 3; ++d) x[d] = low[d] + (double(c[d]) - 0.5) * width[d];
  }
};

// Atoms (centres and ghosts) by cell: those of cell k are atom[start[k]] .. atom[start[k + 1]].
struct Bins {
  std::vector<int32_t> atom;
  std::vector<uint64_t> key;
  std::vector<int32_t> start;
};

// What is near one cell: runs of Bins::atom, then the atoms themselves, grouped by type, relative to the cell.
struct Candidates {
  Candidates(const SortedAtoms& sorted, const Bins& all, const Grid& cells, int types)
      : atoms(sorted), bins(all), grid(cells), n_types(types), type_start(types + 1), cursor(25) {}

  const SortedAtoms& atoms;
  const Bins& bins;
  const Grid& grid;
  const int n_types;
  std::vector<int32_t> type_start;  // (n_types + 1,)
  std::vector<float> x, y, z, d2;
  std::vector<int32_t> index, found;
  std::vector<size_t> cursor;
  double center[3];

  // Cells have to be given in ascending order after the first one.
  void gather(size_t cell, bool first) {
    std::array<std::pair<int32_t, int32_t>, 25> runs;
    const uint64_t home = bins.key[cell];
    int32_t total = 0;
    for (int row = 0; row < 25; ++row) {
      const int64_t offset = (int64_t(row / 5 - 2) * int64_t(grid.n[1]) + (row % 5 - 2)) * int64_t(grid.n[2]) - 2;
      const uint64_t from = home + uint64_t(offset);
      size_t& at = cursor[row];
      if (first) at = size_t(std::lower_bound(bins.key.begin(), bins.key.end(), from) - bins.key.begin());
      while (at < bins.key.size() && bins.key[at] < from) ++at;
      size_t last = at;
      while (last < bins.key.size() && bins.key[last] <= from + 4) ++last;
      runs[row] = {bins.start[at], bins.start[last]};
      total += runs[row].second - runs[row].first;
    }
    grid.center(home, center);
    if (size_t(total) > index.size())
      for (std::vector<float>* v : {&x, &y, &z, &d2}) v->resize(size_t(total) + total / 4);
    index.resize(x.size());
    found.resize(x.size());

    std::fill(type_start.begin(), type_start.end(), 0);
    for (const auto& [begin, end] : runs)
      for (int32_t q = begin; q < end; ++q) ++type_start[atoms.types[bins.atom[q]] + 1];
    for (int t = 0; t < n_types; ++t) type_start[t + 1] += type_start[t];
    for (const auto& [begin, end] : runs)
      for (int32_t q = begin; q < end; ++q) {
        const int32_t j = bins.atom[q], to = type_start[atoms.types[j]]++;
        const double* r = &atoms.xyz[4 * size_t(j)];
        index[to] = j;
        x[to] = float(r[0] - center[0]);
        y[to] = float(r[1] - center[1]);
        z[to] = float(r[2] - center[2]);
      }
    for (int t = n_types; t > 0; --t) type_start[t] = type_start[t - 1];  // each had moved on to the next
    type_start[0] = 0;
  }

  // Squared distances to centre i of the candidates of a type, into d2; float32, relative to the cell.
  void distances(int32_t i, int type) {
    const double* r = &atoms.xyz[4 * size_t(i)];
    const float xi = float(r[0] - center[0]), yi = float(r[1] - center[1]), zi = float(r[2] - center[2]);
    const int32_t n = type_start[type + 1] - type_start[type];
    const float *px = &x[type_start[type]], *py = &y[type_start[type]], *pz = &z[type_start[type]];
    float* out = d2.data();
#pragma omp simd
    for (int32_t q = 0; q < n; ++q) {
      const float dx = px[q] - xi, dy = py[q] - yi, dz = pz[q] - zi;
      out[q] = dx * dx + dy * dy + dz * dz;
    }
  }

  int64_t count(int32_t i, int type, float limit) {
    distances(i, type);
    const int32_t n = type_start[type + 1] - type_start[type];
    int32_t within = 0;
#pragma omp simd reduction(+ : within)
    for (int32_t q = 0; q < n; ++q) within += d2[q] <= limit;
    return within - (atoms.types[i] == type);  // itself
  }

  void fill(int32_t i, int type, float limit, int32_t* neighbors) {
    distances(i, type);
    const int32_t n = type_start[type + 1] - type_start[type], *of = &index[type_start[type]];
    int32_t within = 0;
    for (int32_t q = 0; q < n; ++q) {
      found[within] = of[q];
      within += (d2[q] <= limit) & (of[q] != i);
    }
    std::memcpy(neighbors, found.data(), size_t(within) * sizeof *neighbors);
  }
};

// Calls body(candidates, centre) for every centre in every cell, cells shared among threads.
template <typename Body>
void each_center(const SortedAtoms& atoms, const Bins& bins, const Grid& grid, int n_types, int threads, Body body) {
  constexpr int64_t chunk = 64;
  const int64_t n_cells = int64_t(bins.key.size()), n_chunks = (n_cells + chunk - 1) / chunk;
  std::exception_ptr failure;
#pragma omp parallel num_threads(threads)
  {
    std::unique_ptr<Candidates> candidates;
#pragma omp for schedule(dynamic)
    for (int64_t c = 0; c < n_chunks; ++c) {
      try {  // no exception may leave a parallel loop
        if (!candidates) candidates = std::make_unique<Candidates>(atoms, bins, grid, n_types);
        bool first = true;
        for (int64_t cell = c * chunk; cell < std::min(n_cells, (c + 1) * chunk); ++cell) {
          bool gathered = false;
          for (int32_t q = bins.start[cell]; q < bins.start[cell + 1]; ++q) {
            if (bins.atom[q] >= atoms.n_local) continue;
            if (!gathered) candidates->gather(size_t(cell), first);
            gathered = true;
            first = false;
            body(*candidates, bins.atom[q]);
          }
        }
      } catch (...) {
#pragma omp critical(dpsim_neighbors)
        failure = std::current_exception();
      }
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// Turns counts in offsets[1..] into offsets; the sum is returned, refused where it can only be a mistake.
int64_t accumulate(Buffer<int64_t>& offsets, int64_t n_atoms, double reach) {
  offsets[0] = 0;
  for (size_t k = 1; k < offsets.size(); ++k) offsets[k] += offsets[k - 1];
  const int64_t total = offsets[offsets.size() - 1];
  if (double(total) > kMaxMeanNeighbors * double(n_atoms) + 1e8)
    refuse("`positions` and `cell` give %.0f neighbours per atom within %g A; expected at most %.0f. Check their "
           "units.",
           double(total) / double(n_atoms), reach, kMaxMeanNeighbors);
  return total;
}

void find_type_starts(SortedAtoms& atoms, int n_types) {
  atoms.type_start.assign(size_t(n_types) + 1, 0);
  for (int64_t k = 0; k < atoms.n_local; ++k) ++atoms.type_start[atoms.types[k] + 1];
  for (int t = 0; t < n_types; ++t) atoms.type_start[t + 1] += atoms.type_start[t];
}

void resize_neighbors(SortedAtoms& atoms, int64_t n_pairs) {
  atoms.neighbors.resize(size_t(n_pairs + kReadable));
  std::fill_n(atoms.neighbors.data() + n_pairs, kReadable, 0);
}

}  // namespace

int64_t SortedAtoms::bytes() const {
  return int64_t(order.bytes() + types.bytes() + xyz.bytes() + offsets.bytes() + neighbors.bytes());
}

// ---- cell -----------------------------------------------------------------------------------------------------------
Lattice::Lattice(const double* cell, const bool* periodic) {
  double lengths = 1;
  int n_periodic = 0, open = 0, given = 0;
  for (int k = 0; k < 3; ++k) {
    if (!periodic[k]) {
      open = k;
      continue;
    }
    given = k;
    ++n_periodic;
    for (int d = 0; d < 3; ++d) {
      h[k][d] = cell[3 * k + d];
      if (!(std::abs(h[k][d]) < NeighborList::max_coordinate))
        refuse("`cell[%d]` holds %g; expected finite numbers below %g A", k, h[k][d], NeighborList::max_coordinate);
    }
    lengths *= std::sqrt(dot(h[k], h[k]));
  }
  if (n_periodic == 0) {
    for (int k = 0; k < 3; ++k)
      for (int d = 0; d < 3; ++d) h[k][d] = k == d;
    lengths = 1;
  } else if (n_periodic == 1) {  // any two directions across; the smallest component makes them well defined
    const double* a = h[given];
    double *b = h[(given + 1) % 3], *c = h[(given + 2) % 3], axis[3] = {0, 0, 0};
    const double x = std::abs(a[0]), y = std::abs(a[1]), z = std::abs(a[2]);
    axis[x <= y && x <= z ? 0 : y <= z ? 1 : 2] = 1;
    cross(a, axis, b);
    if (dot(b, b) > 0) normalise(b);
    cross(a, b, c);
    if (dot(c, c) > 0) normalise(c);
  } else if (n_periodic == 2) {
    cross(h[(open + 1) % 3], h[(open + 2) % 3], h[open]);
    if (dot(h[open], h[open]) > 0) normalise(h[open]);
  }
  double across[3][3];
  for (int k = 0; k < 3; ++k) cross(h[(k + 1) % 3], h[(k + 2) % 3], across[k]);
  const double volume = dot(h[0], across[0]);
  if (!(std::abs(volume) > 1e-6 * lengths))
    refuse("`cell` has periodic vectors that are zero or linearly dependent (volume %g A^3 for lengths whose product "
           "is %g); expected vectors that span space. Correct it, or switch off `pbc` where there is no vector.",
           volume, lengths);
  for (int k = 0; k < 3; ++k)
    for (int d = 0; d < 3; ++d) inverse[d][k] = across[k][d] / volume;
}

// ---- Verlet list ----------------------------------------------------------------------------------------------------
void NeighborList::update(const Configuration& configuration, const Student& student, uint64_t student_id, double skin,
                          int threads) {
  const int64_t n = configuration.n;
  now_ = Lattice(configuration.cell, configuration.periodic);
  const bool same = student_id == student_id_ && n == atoms.n_local && skin == skin_ &&
                    std::equal(periodic_, periodic_ + 3, configuration.periodic);
  if (same && still_valid(configuration, student.rcut + skin, threads)) {
    place_ghosts(threads);
    return;
  }
  student_id_ = 0;  // no list until it is whole
  cutoff_ = student.rcut;
  skin_ = skin;
  std::copy_n(configuration.periodic, 3, periodic_);
  built_ = now_;
  atoms.first_type = n > 0 ? configuration.types[0] : 0;
  build(configuration, student, student.rcut + skin, threads);
  ++n_rebuilds;
  student_id_ = student_id;
}

// Also writes the positions of the centres.
bool NeighborList::still_valid(const Configuration& configuration, double reach, int threads) {
  const int64_t n = configuration.n;
  if (n < kLoopAtoms) threads = 1;
  double a[3][3];  // A = h0^-1 h
  for (int k = 0; k < 3; ++k) row_times(built_.inverse[k], now_.h, a[k]);
  if (std::memcmp(built_.h, now_.h, sizeof now_.h) == 0)
    for (int k = 0; k < 3; ++k)
      for (int d = 0; d < 3; ++d) a[k][d] = k == d;
  const bool any_periodic = periodic_[0] || periodic_[1] || periodic_[2];
  const double near2 = 0.25 * skin_ * skin_;

  // 1. displacement of each atom, without the lattice vectors that wrap it; its largest and smallest components
  bool same_types = true;
  double low[3], high[3];
  std::fill_n(low, 3, std::numeric_limits<double>::max());
  std::fill_n(high, 3, -std::numeric_limits<double>::max());
#pragma omp parallel for num_threads(threads) reduction(min : low[:3]) reduction(max : high[:3]) \
    reduction(&& : same_types)
  for (int64_t k = 0; k < n; ++k) {
    const int64_t i = atoms.order[k];
    double* x = &atoms.xyz[4 * k];
    double carried[3], moved[3];
    row_times(&x0_[3 * k], a, carried);
    for (int d = 0; d < 3; ++d) {
      x[d] = configuration.positions[3 * i + d];
      moved[d] = x[d] - carried[d];
    }
    if (any_periodic && dot(moved, moved) > near2) {
      double fraction[3], wrapped[3];
      row_times(moved, now_.inverse, fraction);
      for (int d = 0; d < 3; ++d) fraction[d] = periodic_[d] ? std::rint(fraction[d]) : 0.0;
      row_times(fraction, now_.h, wrapped);
      for (int d = 0; d < 3; ++d) {
        x[d] -= wrapped[d];
        moved[d] -= wrapped[d];
      }
    }
    for (int d = 0; d < 3; ++d) {
      low[d] = std::min(low[d], moved[d]);
      high[d] = std::max(high[d], moved[d]);
    }
    same_types = same_types && configuration.types[i] == atoms.types[k];
  }
  // 2. the largest distance from a common translation t
  double largest2 = 0;
#pragma omp parallel for num_threads(threads) reduction(max : largest2)
  for (int64_t k = 0; k < n; ++k) {
    double d2 = 0, carried[3];
    row_times(&x0_[3 * k], a, carried);
    for (int d = 0; d < 3; ++d) {
      const double moved = atoms.xyz[4 * k + d] - carried[d] - 0.5 * (low[d] + high[d]);
      d2 += moved * moved;
    }
    largest2 = std::max(largest2, d2);
  }
  return same_types && cutoff_ + 2 * std::sqrt(largest2) <= reach * smallest_stretch(a);
}

void NeighborList::place_ghosts(int threads) {
  if (atoms.n_all < kLoopAtoms) threads = 1;
#pragma omp parallel for num_threads(threads)
  for (int64_t g = atoms.n_local; g < atoms.n_all; ++g) {
    const int64_t ghost = g - atoms.n_local;
    const double* from = &atoms.xyz[4 * size_t(owner[ghost])];
    const double shift[3] = {double(shift_[3 * ghost]), double(shift_[3 * ghost + 1]), double(shift_[3 * ghost + 2])};
    double vector[3];
    row_times(shift, now_.h, vector);
    for (int d = 0; d < 3; ++d) atoms.xyz[4 * g + d] = from[d] + vector[d];
    atoms.xyz[4 * g + 3] = 0;
  }
}

void NeighborList::build(const Configuration& configuration, const Student& student, double reach, int threads) {
  const int64_t n = configuration.n;
  const int n_types = student.n_types();
  const double search = reach * (1 + kSlack);
  const int loop_threads = n < kLoopAtoms ? 1 : threads, search_threads = n < kSearchAtoms ? 1 : threads;
  atoms.n_local = atoms.n_all = n;
  atoms.order.resize(n);
  if (n == 0) {
    atoms.type_start.assign(size_t(n_types) + 1, 0);
    atoms.offsets.resize(1)[0] = 0;
    resize_neighbors(atoms, 0);
    return;
  }

  // 1. fractional coordinates; atoms further apart than a lattice vector are wrapped into one cell
  Buffer<double> wrapped;
  wrapped.resize(3 * size_t(n));
  double low[3], high[3];  // of the fractional coordinates
  std::fill_n(low, 3, std::numeric_limits<double>::max());
  std::fill_n(high, 3, -std::numeric_limits<double>::max());
#pragma omp parallel for num_threads(loop_threads) reduction(min : low[:3]) reduction(max : high[:3])
  for (int64_t i = 0; i < n; ++i) {
    double f[3];
    row_times(configuration.positions + 3 * i, now_.inverse, f);
    for (int d = 0; d < 3; ++d) {
      low[d] = std::min(low[d], f[d]);
      high[d] = std::max(high[d], f[d]);
    }
  }
  bool wrap[3];
  for (int d = 0; d < 3; ++d) {
    wrap[d] = periodic_[d] && high[d] - low[d] > 1;
    if (!wrap[d]) continue;
    low[d] = 0;
    high[d] = 1;
  }
  double from[3], to[3];  // box around the atoms
  std::fill_n(from, 3, std::numeric_limits<double>::max());
  std::fill_n(to, 3, -std::numeric_limits<double>::max());
#pragma omp parallel for num_threads(loop_threads) reduction(min : from[:3]) reduction(max : to[:3])
  for (int64_t i = 0; i < n; ++i) {
    double f[3], vector[3];
    row_times(configuration.positions + 3 * i, now_.inverse, f);
    for (int d = 0; d < 3; ++d) f[d] = wrap[d] ? -std::floor(f[d]) : 0.0;
    row_times(f, now_.h, vector);
    for (int d = 0; d < 3; ++d) {
      const double x = configuration.positions[3 * i + d] + vector[d];
      wrapped[3 * i + d] = x;
      from[d] = std::min(from[d], x);
      to[d] = std::max(to[d], x);
    }
  }
  for (int d = 0; d < 3; ++d) {
    from[d] -= search;
    to[d] += search;
  }

  // 2. centres by type, then by cell
  const Grid grid(from, to, 0.5 * search);
  std::vector<uint64_t> keys(n);
#pragma omp parallel for num_threads(loop_threads)
  for (int64_t i = 0; i < n; ++i) keys[i] = grid.key(&wrapped[3 * i]);
  std::vector<uint64_t> all_keys(n);  // in the order of the sorted atoms, centres first
  {
    const std::vector<int32_t> by_cell = radix_order(keys, grid.largest());
    std::vector<int64_t> next(size_t(n_types) + 1, 0);
    for (int64_t i = 0; i < n; ++i) ++next[configuration.types[i] + 1];
    for (int t = 0; t < n_types; ++t) next[t + 1] += next[t];
    for (int64_t k = 0; k < n; ++k) {
      const int64_t place = next[configuration.types[by_cell[k]]]++;
      atoms.order[place] = by_cell[k];
      all_keys[place] = keys[k];
    }
  }
  x0_.resize(3 * size_t(n));
  for (int64_t k = 0; k < n; ++k) std::copy_n(&wrapped[3 * size_t(atoms.order[k])], 3, &x0_[3 * k]);

  // 3. ghosts: the images that can be within reach of a centre, by cell
  double margin[3], expected = double(n);
  for (int d = 0; d < 3; ++d) {
    double across2 = 0;  // 1 / |column d of the inverse| is the distance of the lattice planes
    for (int c = 0; c < 3; ++c) across2 += now_.inverse[c][d] * now_.inverse[c][d];
    margin[d] = search * std::sqrt(across2) * (1 + 1e-9) + 1e-9;
    if (periodic_[d]) expected *= std::max(1.0, high[d] - low[d] + 2 * margin[d]);
  }
  if (expected > 3e7 + 100.0 * double(n))
    refuse("`cell` is so small against the cutoff of %g A that it takes about %.2g images of atoms; expected at most "
           "3e7. Use a larger cell (a supercell), or check its units (A).",
           reach, expected);
  struct Ghost {
    int32_t owner, shift[3];
  };
  std::vector<Ghost> ghosts;
  std::vector<uint64_t> ghost_keys;
  for (int64_t k = 0; k < n; ++k) {
    const double* x = &x0_[3 * k];
    double f[3];
    row_times(x, now_.inverse, f);
    int32_t first[3] = {0, 0, 0}, last[3] = {0, 0, 0}, s[3];
    for (int d = 0; d < 3; ++d) {
      if (!periodic_[d]) continue;
      first[d] = int32_t(std::ceil(low[d] - margin[d] - f[d]));
      last[d] = int32_t(std::floor(high[d] + margin[d] - f[d]));
    }
    for (s[0] = first[0]; s[0] <= last[0]; ++s[0])
      for (s[1] = first[1]; s[1] <= last[1]; ++s[1])
        for (s[2] = first[2]; s[2] <= last[2]; ++s[2]) {
          if (s[0] == 0 && s[1] == 0 && s[2] == 0) continue;
          const double shift[3] = {double(s[0]), double(s[1]), double(s[2])};
          double image[3];
          row_times(shift, now_.h, image);
          bool inside = true;
          for (int d = 0; d < 3; ++d) {
            image[d] += x[d];
            inside = inside && image[d] >= from[d] && image[d] <= to[d];
          }
          if (!inside) continue;
          ghosts.push_back({int32_t(k), {s[0], s[1], s[2]}});
          ghost_keys.push_back(grid.key(image));
        }
    if (int64_t(ghosts.size()) > max_atoms - n)
      refuse("`n` is %lld atoms and more than %lld periodic images near them; expected at most %lld in all. Use fewer.",
             (long long)n, (long long)(max_atoms - n), (long long)max_atoms);
  }
  const std::vector<int32_t> ghost_order = radix_order(ghost_keys, grid.largest());
  const int64_t n_all = atoms.n_all = n + int64_t(ghosts.size());
  owner.resize(ghosts.size());
  shift_.resize(3 * ghosts.size());
  atoms.types.resize(n_all);
  atoms.xyz.resize(4 * size_t(n_all));
  for (int64_t k = 0; k < n; ++k) {
    atoms.types[k] = configuration.types[atoms.order[k]];
    std::copy_n(&x0_[3 * k], 3, &atoms.xyz[4 * k]);
    atoms.xyz[4 * k + 3] = 0;
  }
  for (size_t g = 0; g < ghosts.size(); ++g) {
    const Ghost& ghost = ghosts[ghost_order[g]];
    owner[g] = ghost.owner;
    std::copy_n(ghost.shift, 3, &shift_[3 * g]);
    atoms.types[n + g] = atoms.types[ghost.owner];
  }
  place_ghosts(loop_threads);
  find_type_starts(atoms, n_types);

  // 4. all of them by cell
  Bins bins;
  all_keys.insert(all_keys.end(), ghost_keys.begin(), ghost_keys.end());
  bins.atom = radix_order(all_keys, grid.largest());
  for (int64_t q = 0; q < n_all; ++q) {
    if (q > 0 && all_keys[q] == all_keys[q - 1]) continue;
    bins.key.push_back(all_keys[q]);
    bins.start.push_back(int32_t(q));
  }
  bins.start.push_back(int32_t(n_all));
  all_keys = {};
  ghosts = {};
  ghost_keys = {};

  // 5. count, then fill: the list takes exactly its memory, and no thread writes where another does
  const double rounding = 1e-6 * *std::max_element(grid.width, grid.width + 3);  // of float32, in cells far apart
  const float limit = float((search + rounding) * (search + rounding));
  const char* excluded = student.pair_excluded.data();
  atoms.offsets.resize(size_t(n) * n_types + 1);
  each_center(atoms, bins, grid, n_types, search_threads, [&](Candidates& near, int32_t i) {
    const char* skipped = excluded + size_t(atoms.types[i]) * n_types;
    for (int t = 0; t < n_types; ++t)
      atoms.offsets[size_t(i) * n_types + t + 1] = skipped[t] ? 0 : near.count(i, t, limit);
  });
  const int64_t n_pairs = accumulate(atoms.offsets, n, reach);
  resize_neighbors(atoms, n_pairs);
  each_center(atoms, bins, grid, n_types, search_threads, [&](Candidates& near, int32_t i) {
    const char* skipped = excluded + size_t(atoms.types[i]) * n_types;
    for (int t = 0; t < n_types; ++t)
      if (!skipped[t]) near.fill(i, t, limit, atoms.neighbors.data() + atoms.offsets[size_t(i) * n_types + t]);
  });
}

int64_t NeighborList::bytes() const {
  return atoms.bytes() + int64_t(owner.bytes() + x0_.bytes() + shift_.bytes());
}

// ---- an engine's list -----------------------------------------------------------------------------------------------
void check_engine_list(int64_t n_local, int64_t n_all, const int64_t* offsets, const int32_t* neighbors) {
  for (int64_t i = 0; i < n_local; ++i) {
    if (offsets[i] < 0 || offsets[i + 1] < offsets[i])
      refuse("`offsets` go from %lld to %lld at atom %lld; expected numbers from 0 that never fall",
             (long long)offsets[i], (long long)offsets[i + 1], (long long)i);
    if (offsets[i + 1] > offsets[i] && !neighbors) refuse("`neighbors` is NULL; expected the indices of %lld pairs",
                                                          (long long)offsets[n_local]);
    for (int64_t q = offsets[i]; q < offsets[i + 1]; ++q)
      if (neighbors[q] < 0 || neighbors[q] >= n_all || neighbors[q] == i)
        refuse("`neighbors` of atom %lld holds %d; expected another atom, 0 to %lld", (long long)i, neighbors[q],
               (long long)n_all - 1);
  }
}

void EngineList::set(int64_t n_local, int64_t n_all, const int32_t* types, const int64_t* offsets,
                     const int32_t* neighbors, int32_t first_type, const Student& student) {
  const int n_types = student.n_types();
  const char* excluded = student.pair_excluded.data();
  atoms.n_local = n_local;
  atoms.n_all = n_all;
  atoms.first_type = first_type;
  atoms.order.resize(n_local);
  atoms.types.resize(n_all);
  atoms.xyz.resize(4 * size_t(n_all));

  std::vector<int32_t> sorted(n_local);  // index of each centre in our order
  std::vector<int64_t> next(size_t(n_types) + 1, 0);
  for (int64_t i = 0; i < n_local; ++i) ++next[types[i] + 1];
  for (int t = 0; t < n_types; ++t) next[t + 1] += next[t];
  for (int64_t i = 0; i < n_local; ++i) {
    sorted[i] = int32_t(next[types[i]]++);
    atoms.order[sorted[i]] = int32_t(i);
    atoms.types[sorted[i]] = types[i];
  }
  for (int64_t g = n_local; g < n_all; ++g) atoms.types[g] = types[g];
  find_type_starts(atoms, n_types);

  atoms.offsets.resize(size_t(n_local) * n_types + 1);
  std::fill_n(atoms.offsets.data(), atoms.offsets.size(), 0);
  for (int64_t i = 0; i < n_local; ++i) {
    int64_t* count = &atoms.offsets[size_t(sorted[i]) * n_types + 1];
    const char* skipped = excluded + size_t(types[i]) * n_types;
    for (int64_t q = offsets[i]; q < offsets[i + 1]; ++q) {
      const int32_t type = types[neighbors[q]];
      count[type] += !skipped[type];
    }
  }
  const int64_t n_pairs = accumulate(atoms.offsets, n_local, student.rcut);
  resize_neighbors(atoms, n_pairs);
  std::vector<int64_t> place(n_types);
  for (int64_t i = 0; i < n_local; ++i) {
    std::copy_n(&atoms.offsets[size_t(sorted[i]) * n_types], n_types, place.data());
    const char* skipped = excluded + size_t(types[i]) * n_types;
    for (int64_t q = offsets[i]; q < offsets[i + 1]; ++q) {
      const int32_t j = neighbors[q];
      if (!skipped[types[j]]) atoms.neighbors[place[types[j]]++] = j < n_local ? sorted[j] : j;
    }
  }
}

void EngineList::place(const double* positions) {
  for (int64_t k = 0; k < atoms.n_all; ++k) {
    const int64_t i = k < atoms.n_local ? atoms.order[k] : k;
    for (int d = 0; d < 3; ++d) atoms.xyz[4 * k + d] = positions[3 * i + d];
    atoms.xyz[4 * k + 3] = 0;
  }
}

std::pair<int64_t, int64_t> find_overlap(const SortedAtoms& atoms, const int32_t* owner, int n_types,
                                         double distance) {
  const auto original = [&](int32_t k) -> int64_t {
    if (k >= atoms.n_local && !owner) return k;
    return atoms.order[k < atoms.n_local ? k : owner[k - atoms.n_local]];
  };
  for (int64_t i = 0; i < atoms.n_local; ++i)
    for (int64_t q = atoms.offsets[size_t(i) * n_types]; q < atoms.offsets[size_t(i + 1) * n_types]; ++q) {
      const double *a = &atoms.xyz[4 * i], *b = &atoms.xyz[4 * size_t(atoms.neighbors[q])];
      const double d[3] = {a[0] - b[0], a[1] - b[1], a[2] - b[2]};
      if (dot(d, d) < distance * distance) return {original(int32_t(i)), original(atoms.neighbors[q])};
    }
  return {-1, -1};
}

}  // namespace dpsim
