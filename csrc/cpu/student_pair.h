// Steps 1 to 3 of a student, from neighbours to contractions a[c, m], and their pull-back from dE/da to forces.
//
// Everything here belongs to one centre: lanes are neighbours in the environment matrix, channels in the tables. What
// the pull-back needs of a neighbour is kept, from the way forth to the way back, in the arrays of `Pairs`.
#pragma once

#include <vector>

#include "student_pack.h"

namespace dpsim {
namespace DPSIM_ISA {

// Neighbours of the centres of a block, one after the other, by type and then by ring (see PackedStudent::rings). The
// arrays of a centre begin at a multiple of the lanes.
template <typename T>
struct Pairs {
  struct OfPart {
    Buffer<int32_t> row;         // of the table
    Buffer<T> t, r0, q, dr0, dq;  // R0, Rc / edge_vec_c and their derivatives in r; dr0 in units of 1 / step
  };
  Buffer<int32_t> neighbor;
  Buffer<T> edge[3], inv_r;
  std::vector<OfPart> parts;
  std::vector<int> bounds;  // (atoms, n_types, rings + 1): where the neighbours of a type and ring begin, and end
  int end = 0;              // of the last centre
  // For one centre at a time: edges in double (x y z 0), their length, Rc, sums over channels, dE/d(edge_vec)
  Buffer<double> wide, distance;
  Buffer<T> r[3], u[4], g[3];

  void reserve(const PackedStudent<T>& student, int64_t n_pairs, int64_t n_of_center, int n_atoms) {
    const size_t n = n_pairs, of_center = n_of_center + 2 * Simd<T>::lanes;
    neighbor.reserve(n), inv_r.reserve(n), wide.reserve(4 * of_center), distance.reserve(of_center);
    for (int c = 0; c < 3; ++c) edge[c].reserve(n), r[c].reserve(of_center), g[c].reserve(of_center);
    for (int c = 0; c < 4; ++c) u[c].reserve(of_center);
    parts.resize(student.parts.size());
    for (OfPart& part : parts) {
      part.row.reserve(n);
      for (Buffer<T>* b : {&part.t, &part.r0, &part.q, &part.dr0, &part.dq}) b->reserve(n);
    }
    bounds.resize(size_t(n_atoms) * student.n_types * (student.rings.size() + 1));
  }
  int64_t bytes() const {
    int64_t sum = neighbor.bytes() + inv_r.bytes() + wide.bytes() + distance.bytes();
    sum += int64_t(bounds.size() * sizeof(int));
    for (int c = 0; c < 3; ++c) sum += edge[c].bytes() + r[c].bytes() + g[c].bytes();
    for (int c = 0; c < 4; ++c) sum += u[c].bytes();
    for (const OfPart& part : parts) sum += part.row.bytes() + 5 * part.t.bytes();
    return sum;
  }
  const int* bounds_of(const PackedStudent<T>& student, int atom, int type) const {
    return bounds.data() + (size_t(atom) * student.n_types + type) * (student.rings.size() + 1);
  }
};

// Where a thread adds what it finds.
struct Totals {
  double* forces;  // (n_all, 4)
  double virial[9];
  int64_t below_range;
};

// body(k) for k = 0 .. n - 1 and on to a multiple of the lanes, so that no scalar code is left at the end.
template <typename T, typename Body>
inline void for_lanes(int n, Body body) {
  const int end = padded(n, Simd<T>::lanes);
#pragma omp simd
  for (int k = 0; k < end; ++k) body(k);
}

// ---- 1. environment, 2. table rows -------------------------------------------------------------------------------
typedef double Position __attribute__((vector_size(32), aligned(8), may_alias));  // x y z 0
constexpr int kAhead = 24;  // neighbours whose positions are on their way to the cache; lists are readable beyond

// Picks the neighbours within the cutoff from the list of centre i. Reads positions and list; writes neighbor and wide
// (edges as they come, x y z 0), and the bounds of this centre, from `begin` on. Returns where its neighbours end.
template <typename T>
inline int gather(const PackedStudent<T>& student, const AtomsView& atoms, int64_t i, int ti, int begin, int* bounds,
                  Pairs<T>& pairs) {
  const Position center = *reinterpret_cast<const Position*>(atoms.xyz + 4 * i);
  int32_t* neighbor = pairs.neighbor.data() + begin;
  Position* wide = reinterpret_cast<Position*>(pairs.wide.data());
  int n = 0;
  for (int t = 0; t < student.n_types; ++t) {
    const int64_t first = atoms.offsets[i * student.n_types + t], last = atoms.offsets[i * student.n_types + t + 1];
    double inner = -1;
    *bounds++ = begin + n;
    for (double rcut : student.rings) {
      const double outer = rcut * rcut;
      for (int64_t k = student.pair_excluded[ti * student.n_types + t] ? last : first; k < last; ++k) {
        const int32_t j = atoms.neighbors[k];
        __builtin_prefetch(atoms.xyz + 4 * int64_t(atoms.neighbors[k + kAhead]));
        const Position edge = *reinterpret_cast<const Position*>(atoms.xyz + 4 * int64_t(j)) - center;
        const Position square = edge * edge;
        const double r2 = (square[0] + square[2]) + (square[1] + square[3]);
        neighbor[n] = j, wide[n] = edge;
        n += (r2 > inner) & (r2 <= outer);
      }
      *bounds++ = begin + n;
      inner = outer;
    }
  }
  return begin + n;
}

// The arrays of `pairs` for n neighbours from `begin` on. Distances are taken in double: rcut - r cancels near the
// cutoff, and t is a small difference too.
template <typename T>
inline void environment_of(const PackedPart<T>& part, int ti, int begin, int n, Pairs<T>& pairs,
                           typename Pairs<T>::OfPart& of) {
  const double* distance = pairs.distance.data();
  int32_t* row = of.row.data() + begin;
  T *t = of.t.data() + begin, *r0 = of.r0.data() + begin, *q = of.q.data() + begin;
  T *dr0 = of.dr0.data() + begin, *dq = of.dq.data() + begin;
  const double r_min = part.r_min, inv_step = 1 / part.step;
  const int last = part.n_intervals - 1, below = part.below_row();
  const Switch radial = part.radial;
  const T davg = part.davg[ti], inv0 = part.inv_dstd[2 * ti], inv1 = part.inv_dstd[2 * ti + 1];
  const T step_inv0 = T(part.step) * inv0;
  for_lanes<T>(n, [=](int k) {
    const double r = distance[k], at = (r - r_min) * inv_step;
    int32_t interval = int32_t(at < last ? at : last);
    interval = interval > 0 ? interval : 0;
    t[k] = T(at - interval);
    row[k] = r < r_min ? below : interval;
    const Radial<T> a = environment_radial<T>(r, radial);
    r0[k] = (a.s - davg) * inv0, dr0[k] = a.ds * step_inv0;
    q[k] = a.q * inv1, dq[k] = a.dq * inv1;
  });
}

// Drops neighbours beyond `sel` as dpsim/models/deepmd_conventions.py does: of the n_listed nearest, the sel[t] nearest
// of each type stay. Dropped ones read a row of zeros. counts (n_types,) is corrected.
template <typename T>
void truncate(const PackedStudent<T>& student, const PackedPart<T>& part, int begin, const int* bounds,
              const double* distance, int32_t* row, int* counts) {
  const int n_types = student.n_types, per_type = int(student.rings.size()) + 1;
  std::vector<std::pair<int, int>> nearest;  // index, type
  for (int t = 0; t < n_types; ++t)
    if (counts[t])
      for (int k = bounds[t * per_type]; k < bounds[t * per_type + part.ring + 1]; ++k)
        nearest.push_back({k - begin, t});
  std::stable_sort(nearest.begin(), nearest.end(),
                   [&](const auto& a, const auto& b) { return distance[a.first] < distance[b.first]; });
  std::fill(counts, counts + n_types, 0);
  for (size_t k = 0; k < nearest.size(); ++k) {
    const auto [index, t] = nearest[k];
    const bool has_slot = part.slots == Slots::shared ? int(k) < part.sel[0] : counts[t] < part.sel[t];
    const bool kept = int(k) < part.n_listed && has_slot;
    if (kept) ++counts[t];
    else row[index] = part.zero_row();
  }
}

// The slots of an imported model, for one centre: drops neighbours for which there is none, and adds to a[0, m] what
// the empty ones contribute.
template <typename T>
void fill_slots(const PackedStudent<T>& student, const PackedPart<T>& part, int first_type, int ti, int begin,
                const int* bounds, const double* distance, typename Pairs<T>::OfPart& of, T* a) {
  const int n_types = student.n_types, per_type = int(student.rings.size()) + 1;
  std::vector<int> counts(n_types);
  int total = 0;
  bool full = false;
  for (int t = 0; t < n_types; ++t) {
    if (part.excluded[ti * n_types + t] && !part.excluded_counted) continue;
    counts[t] = bounds[t * per_type + part.ring + 1] - bounds[t * per_type];
    total += counts[t];
    full |= part.slots == Slots::per_type && counts[t] > part.sel[t];
  }
  if (full || (part.slots == Slots::shared && total > part.sel[0])) {
    truncate(student, part, begin, bounds, distance, of.row.data() + begin, counts.data());
    total = std::min(total, part.sel[0]);
  }
  auto add_padding = [&](int t, int empty) {
    T* to = a + part.channel_offset[t];
    const T* pad = part.pad_of(ti, t);
    for (int m = 0; m < part.width; ++m) to[m] += T(empty) * pad[m];
  };
  if (part.slots == Slots::shared) return add_padding(first_type, part.sel[0] - total);
  for (int t = 0; t < n_types; ++t) add_padding(t, part.sel[t] - counts[t]);
}

// ---- 2. table, 3. contraction ------------------------------------------------------------------------------------
// a[c, m] += sum_k R_c[k] G_m(r_k) over n neighbours of one type, for NV vectors of channels. r[c] is R_c.
template <typename T, int NV, bool angular>
inline void contract_vectors(int n, const int32_t* row, const T* t, const T* const* r, const T* table,
                             int64_t row_size, T* a, int stride) {
  constexpr int L = Simd<T>::lanes, C = angular ? 4 : 1;
  vec_t<T> sum[C][NV];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[c][v] = vec_t<T>{};
  for (int k = 0; k < n; ++k) {
    const T* p = table + row[k] * row_size;
    const T tk = t[k];
    vec_t<T> g[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      g[v] = load(p + (v * kPowers + kPowers - 1) * L);
#pragma GCC unroll 8
      for (int power = kPowers - 2; power >= 0; --power) g[v] = g[v] * tk + load(p + (v * kPowers + power) * L);
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const T rc = angular ? r[c][k] : T(1);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[c][v] += rc * g[v];
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(a + c * stride + v * L, load(a + c * stride + v * L) + sum[c][v]);
}

template <typename T, bool angular>
inline void contract(int n, const int32_t* row, const T* t, const T* const* r, const T* table, int vectors, T* a,
                     int stride) {
  constexpr int L = Simd<T>::lanes, widest = kManyRegisters ? 4 : 2;
  const int64_t row_size = int64_t(vectors) * kPowers * L;
  for (int v = 0; v < vectors;) {
    const T* from = table + v * kPowers * L;
    const int left = std::min(vectors - v, widest);
    if (left == 4) contract_vectors<T, 4, angular>(n, row, t, r, from, row_size, a + v * L, stride);
    else if (left == 3) contract_vectors<T, 3, angular>(n, row, t, r, from, row_size, a + v * L, stride);
    else if (left == 2) contract_vectors<T, 2, angular>(n, row, t, r, from, row_size, a + v * L, stride);
    else contract_vectors<T, 1, angular>(n, row, t, r, from, row_size, a + v * L, stride);
    v += left;
  }
}

// Pull-back of contract, for each of n neighbours: with b = dE/da
//   u0 = step sum_m G'_m sum_c R_c b[c, m] + dr0 sum_m G_m b[0, m],     u_c = sum_m G_m b[c, m], c = 1 .. 3
// Up to lanes / 4 - 1 numbers are written past the end of u. NV is the number of vectors, or 0: known at run time.
template <typename T, bool angular, int NV>
inline void pull_back_vectors(int n, const int32_t* row, const T* t, const T* const* r, const T* dr0, const T* table,
                      int vectors, const T* b, int stride, T* const* u) {
  constexpr int L = Simd<T>::lanes, C = angular ? 4 : 1, N = L > 4 ? L / 4 : 1;  // N neighbours at a time
  constexpr int sets = (4 * N + L - 1) / L;
  if (NV) vectors = NV;
  const int64_t row_size = int64_t(vectors) * kPowers * L;
  for (int first = 0; first < n; first += N) {
    vec_t<T> x[4 * N];  // u0 of N neighbours, u1 of N neighbours, ..
    const T* p[N];
    int at[N];
#pragma GCC unroll 16
    for (int k = 0; k < 4 * N; ++k) x[k] = vec_t<T>{};
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) at[k] = std::min(first + k, n - 1), p[k] = table + row[at[k]] * row_size;
    for (int v = 0; v < vectors; ++v) {
      vec_t<T> bv[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) bv[c] = load(b + c * stride + v * L);
#pragma GCC unroll 4
      for (int k = 0; k < N; ++k) {
        const T tk = t[at[k]];
        vec_t<T> g = load(p[k] + (v * kPowers + kPowers - 1) * L), slope = g;
        g = g * tk + load(p[k] + (v * kPowers + kPowers - 2) * L);
#pragma GCC unroll 8
        for (int power = kPowers - 3; power >= 0; --power) {
          slope = slope * tk + g;
          g = g * tk + load(p[k] + (v * kPowers + power) * L);
        }
        if constexpr (angular) {
          vec_t<T> rb = r[0][at[k]] * bv[0];
#pragma GCC unroll 4
          for (int c = 1; c < 4; ++c) rb += r[c][at[k]] * bv[c], x[c * N + k] += g * bv[c];
          x[k] += slope * rb;
          x[k] += dr0[at[k]] * (g * bv[0]);
        } else {
          x[k] += slope * bv[0];
        }
      }
    }
    T sum[sets * L];
#pragma GCC unroll 2
    for (int s = 0; s < sets; ++s) store(sum + s * L, sums<T>(x + s * L));
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) std::memcpy(u[c] + first, sum + c * N, N * sizeof(T));
  }
}

template <typename T, bool angular>
inline void pull_back(int n, const int32_t* row, const T* t, const T* const* r, const T* dr0, const T* table,
                      int vectors, const T* b, int stride, T* const* u) {
  if (vectors == 1) pull_back_vectors<T, angular, 1>(n, row, t, r, dr0, table, vectors, b, stride, u);
  else if (vectors == 2) pull_back_vectors<T, angular, 2>(n, row, t, r, dr0, table, vectors, b, stride, u);
  else pull_back_vectors<T, angular, 0>(n, row, t, r, dr0, table, vectors, b, stride, u);
}

// ---- one centre ----------------------------------------------------------------------------------------------------
// R_c of part = q edge_vec_c, into pairs.r; r gets all four.
template <typename T>
inline void directions(const typename Pairs<T>::OfPart& of, int begin, int n, Pairs<T>& pairs, const T** r) {
  const T* q = of.q.data() + begin;
  r[0] = of.r0.data() + begin;
  for (int c = 0; c < 3; ++c) {
    const T* e = pairs.edge[c].data() + begin;
    T* to = pairs.r[c].data();
    for_lanes<T>(n, [=](int k) { to[k] = q[k] * e[k]; });
    r[c + 1] = to;
  }
}

// Step 6, the core repulsion of centre i: adds its forces and virial (also to atom_virial unless null), returns E_i.
template <typename T>
double core_of(const PackedStudent<T>& student, int64_t i, int ti, int begin, const int* bounds, const Pairs<T>& pairs,
               Totals& totals, double* atom_virial) {
  constexpr double energy = 1.0, length = 0.15;  // eV, A: dpsim/models/core_repulsion.py
  const int per_type = int(student.rings.size()) + 1;
  double e_i = 0;
  for (int t = 0; t < student.n_types; ++t) {
    const double r0 = student.core_distances[ti * student.n_types + t];
    for (int k = bounds[t * per_type]; k < bounds[t * per_type + per_type - 1]; ++k) {
      const double r = pairs.distance[k - begin];
      if (!(r < r0)) continue;
      const double depth = (r0 - r) / length, *edge = pairs.wide.data() + 4 * (k - begin);
      e_i += 0.5 * energy * depth * depth * depth;
      const double slope = r > 0 ? -1.5 * energy / length * depth * depth / r : 0;
      for (int a = 0; a < 3; ++a) {
        const double g = slope * edge[a];
        totals.forces[4 * i + a] += g, totals.forces[4 * int64_t(pairs.neighbor[k]) + a] -= g;
        for (int b = 0; b < 3; ++b) {
          const double w = -g * edge[b];
          totals.virial[3 * a + b] += w;
          if (atom_virial) atom_virial[3 * a + b] += w;
        }
      }
    }
  }
  return e_i;
}

// Steps 1 to 3 and 6 for centre i, the atom-th of its block. Writes a, (components, stride) of each part one after the
// other, appends to pairs, counts in totals what is below range; returns the energy of the core repulsion.
template <typename T>
double forward_center(const PackedStudent<T>& student, const AtomsView& atoms, int64_t i, int ti, int atom,
                      Pairs<T>& pairs, T* a, Totals& totals, double* atom_virial) {
  constexpr int L = Simd<T>::lanes;
  const int n_types = student.n_types, n_rings = int(student.rings.size()), begin = pairs.end;
  int* bounds = pairs.bounds.data() + size_t(atom) * n_types * (n_rings + 1);
  const int n = gather(student, atoms, i, ti, begin, bounds, pairs) - begin;
  pairs.end = begin + padded(n, L);
  // 1. environment
  double *distance = pairs.distance.data(), *wide = pairs.wide.data();
  T *ex = pairs.edge[0].data() + begin, *ey = pairs.edge[1].data() + begin, *ez = pairs.edge[2].data() + begin;
  T* inv_r = pairs.inv_r.data() + begin;
  for (int k = n; k < padded(n, L); ++k)  // beyond the last neighbour: any distance within range
    wide[4 * k] = student.rings.back(), wide[4 * k + 1] = wide[4 * k + 2] = 0;
  for_lanes<T>(n, [=](int k) {
    const double x = wide[4 * k], y = wide[4 * k + 1], z = wide[4 * k + 2], r = std::sqrt(x * x + y * y + z * z);
    distance[k] = r;
    ex[k] = T(x), ey[k] = T(y), ez[k] = T(z);
    inv_r[k] = T(r) > T(0) ? T(1) / T(r) : T(0);
  });
  totals.below_range += std::count_if(distance, distance + n, [&](double r) { return r < student.r_min; });
  std::memset(a, 0, student.center_size * sizeof(T));
  for (size_t index = 0; index < student.parts.size(); ++index) {
    const PackedPart<T>& part = student.parts[index];
    typename Pairs<T>::OfPart& of = pairs.parts[index];
    // 1., 2. environment and rows of the table
    environment_of(part, ti, begin, n, pairs, of);
    const T* r[4] = {};
    if (part.angular) directions(of, begin, n, pairs, r);
    // 3. contraction, with the empty slots of an imported model
    if (part.slots != Slots::none) fill_slots(student, part, atoms.first_type, ti, begin, bounds, distance, of, a);
    for (int t = 0; t < n_types; ++t) {
      if (part.excluded[ti * n_types + t]) continue;
      const int first = bounds[t * (n_rings + 1)], count = bounds[t * (n_rings + 1) + part.ring + 1] - first;
      const T* rt[4] = {};
      for (int c = 0; part.angular && c < 4; ++c) rt[c] = r[c] + first - begin;
      (part.angular ? contract<T, true> : contract<T, false>)(count, of.row.data() + first, of.t.data() + first, rt,
                                                              part.table_of(ti, t), part.vectors,
                                                              a + part.channel_offset[t], part.stride);
    }
    a += part.components() * part.stride;
  }
  return student.core_distances.empty() ? 0.0 : core_of(student, i, ti, begin, bounds, pairs, totals, atom_virial);
}

// Steps 3 to 1 backwards for centre i: from b = dE/da, laid out as a, to forces and virial.
template <typename T>
void backward_center(const PackedStudent<T>& student, int64_t i, int ti, int atom, Pairs<T>& pairs, const T* b,
                     Totals& totals, double* atom_virial) {
  constexpr int L = Simd<T>::lanes;
  const int n_types = student.n_types, n_rings = int(student.rings.size());
  const int* bounds = pairs.bounds_of(student, atom, 0);
  const int begin = bounds[0], n = bounds[n_types * (n_rings + 1) - 1] - begin;
  T *gx = pairs.g[0].data(), *gy = pairs.g[1].data(), *gz = pairs.g[2].data();
  T* const u[4] = {pairs.u[0].data(), pairs.u[1].data(), pairs.u[2].data(), pairs.u[3].data()};
  const T *ex = pairs.edge[0].data() + begin, *ey = pairs.edge[1].data() + begin, *ez = pairs.edge[2].data() + begin;
  const T* inv_r = pairs.inv_r.data() + begin;
  const int32_t* neighbor = pairs.neighbor.data() + begin;
  for (int k = 0; k < n; ++k) __builtin_prefetch(totals.forces + 4 * int64_t(neighbor[k]), 1);
  for (T* g : {gx, gy, gz}) std::fill(g, g + padded(n, L), T(0));
  for (size_t index = 0; index < student.parts.size(); ++index) {
    const PackedPart<T>& part = student.parts[index];
    const typename Pairs<T>::OfPart& of = pairs.parts[index];
    const T* r[4] = {};
    if (part.angular) directions(of, begin, n, pairs, r);
    for (int t = 0; t < n_types; ++t) {
      const int first = bounds[t * (n_rings + 1)], last = bounds[t * (n_rings + 1) + n_rings], k = first - begin;
      const int end = part.excluded[ti * n_types + t] ? first : bounds[t * (n_rings + 1) + part.ring + 1];
      const T* rt[4] = {};
      for (int c = 0; part.angular && c < 4; ++c) rt[c] = r[c] + k;
      T* const ut[4] = {u[0] + k, u[1] + k, u[2] + k, u[3] + k};
      (part.angular ? pull_back<T, true> : pull_back<T, false>)(
          end - first, of.row.data() + first, of.t.data() + first, rt, of.dr0.data() + first, part.table_of(ti, t),
          part.vectors, b + part.channel_offset[t], part.stride, ut);
      for (int c = 0; c < 4; ++c) std::fill(u[c] + end - begin, u[c] + last - begin, T(0));
    }
    b += part.components() * part.stride;
    // dE/d(edge_vec) = q u + (u0 / step + (u . edge_vec) dq) edge_vec / r
    const T *q = of.q.data() + begin, *dq = of.dq.data() + begin, inv_step = T(1 / part.step);
    const T *u0 = u[0], *u1 = u[1], *u2 = u[2], *u3 = u[3];
    if (part.angular) {
      for_lanes<T>(n, [=](int k) {
        const T along = u1[k] * ex[k] + u2[k] * ey[k] + u3[k] * ez[k];
        const T radial = (inv_step * u0[k] + along * dq[k]) * inv_r[k];
        gx[k] += q[k] * u1[k] + radial * ex[k];
        gy[k] += q[k] * u2[k] + radial * ey[k];
        gz[k] += q[k] * u3[k] + radial * ez[k];
      });
    } else {
      for_lanes<T>(n, [=](int k) {
        const T radial = inv_step * u0[k] * inv_r[k];
        gx[k] += radial * ex[k];
        gy[k] += radial * ey[k];
        gz[k] += radial * ez[k];
      });
    }
  }
  // 8. forces and virial
  for (int k = n; k < padded(n, L); ++k) gx[k] = gy[k] = gz[k] = T(0);
  vec_t<T> total[12] = {};  // force on the centre, virial
  for (int k = 0; k < n; k += L) {
    const vec_t<T> g[3] = {load(gx + k), load(gy + k), load(gz + k)}, e[3] = {load(ex + k), load(ey + k), load(ez + k)};
#pragma GCC unroll 3
    for (int c = 0; c < 3; ++c) {
      total[c] += g[c];
#pragma GCC unroll 3
      for (int d = 0; d < 3; ++d) total[3 + 3 * c + d] -= g[c] * e[d];
    }
  }
  double sum[12] = {};
  add_sums<T>(total, 12, sum);
  for (int c = 0; c < 3; ++c) totals.forces[4 * i + c] += sum[c];
  for (int c = 0; c < 9; ++c) totals.virial[c] += sum[3 + c];
  for (int c = 0; atom_virial && c < 9; ++c) atom_virial[c] += sum[3 + c];
  for (int k = 0; k < n; ++k) {
    Position& force = *reinterpret_cast<Position*>(totals.forces + 4 * int64_t(neighbor[k]));
    force -= Position{double(gx[k]), double(gy[k]), double(gz[k]), 0.0};
  }
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
