// The model of a student on the device, in the numbered steps of docs/students.md; T is the precision it computes in.
//
// A call works on `count` centres from `first` on (a chunk: memory per atom is bounded), of all types, in the sorted
// order of student_neighbors.cuh. In every kernel that is not a matrix product a warp has one centre.
//
// Deterministic, whatever the device: sums are made in a fixed order, but for the forces. Those are sums of integers,
// in units of 2^-36 eV/A (1.5e-11), whose order does not matter; the two atoms of a pair get the same integer with
// opposite signs, so the forces of a periodic system sum to exactly zero. Neither a reverse list nor a force per pair
// has to be kept; 64-bit integer atomics are handled by the L2 cache, three for each pair.
#pragma once

#include "../common/environment_row.h"
#include "../student/model.h"
#include "student_neighbors.cuh"

namespace dpsim::cuda {

constexpr double kForceUnit = 1.0 / (int64_t(1) << 36);  // eV/A
constexpr double kOverlap = 1e-6;  // A; atoms nearer than this have no direction left
constexpr double kForceBound = 1 << 17;  // eV/A of one pair; a thousand of them fit into the sums

// A neighbour within the cutoff of a part: what the contraction needs of it.
template <typename T>
struct alignas(16) Pair {
  T t;           // where in the interval, 0 to 1; below zero in interval 0, the Taylor continuation
  T rows[4];     // R_c
  int interval;  // of the table
  int slot;      // where in the row of the neighbour list
};

// The centres of a call and the neighbour list.
struct Atoms {
  int64_t first, count;
  int n_types, capacity;  // capacity: of a row
  const int *type_of, *rows, *row_start;
  const Place* place;
  const Pack4<double>* xyz;
  long long* forces;
  double *atom_energy, *atom_virial;
  const Frame* frame;
  Header* header;
};

// What a pair of types is to a part.
enum PairUse : unsigned char {
  kNeighbor = 1,    // it is a neighbour at all: one below r_min is counted
  kOccupies = 2,    // it occupies a slot
  kContracted = 4,  // it contributes
};

// One part: constants, tables, and the chunk's buffers, rows of which belong to centres.
template <typename T>
struct PartOf {
  Switch of_r{1, 0, 0};
  double rcut, r_min, inv_step;
  int n_intervals, width, channels;
  int n_slices, slice_width;  // the table is cut into slices of channels, so that one fits into the L1 cache
  Slots slots;
  bool counts_below;
  const T* table;             // (n, n, n_slices, n_intervals + 1, 6, slice_width): powers of t
  const T* standard;          // (n, 3): davg, inv_dstd
  const T* pad;               // (n, n, width)
  const int *sel, *channel_offset;
  const int* next_alike;      // (n,): the next type with the same channels, or -1
  const unsigned char *leads;  // (n,): whether a type is the first with its channels
  const unsigned char *use;    // (n, n): PairUse
  Pair<T>* pairs;             // (count, capacity)
  int *pair_start;            // (count, n + 1)
  int *occupied;              // (count, n): slots taken by neighbours of a type
  Pack4<T>* u;                // (n_slices, count, capacity): sum_m G_m da[c, m]
  T* h;                       // (n_slices, count, capacity): sum_m dG_m/dt sum_c R_c da[c, m]
  T* a;                       // angular: (channels, 4) per centre; radial: features, (channels,); then dE/da
  int64_t a_stride;
};

// ---- 1. environment -------------------------------------------------------------------------------------------------

// Warp per centre: its neighbours within the cutoff of the part. Reads xyz, rows; writes pairs, pair_start, occupied;
// adds to header->below_range.
template <typename T>
__global__ void __launch_bounds__(kThreads) environment_pairs(Atoms atoms, PartOf<T> part) {
  const int64_t c = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp, i = atoms.first + c;
  if (c >= atoms.count || skip(atoms.header)) return;
  const int lane = threadIdx.x % kWarp, n = atoms.n_types, ti = atoms.type_of[i];
  const int* row = atoms.rows + i * atoms.capacity;
  const int* row_start = atoms.row_start + i * (n + 1);
  const Pack4<double> x = atoms.xyz[i];
  const T davg = part.standard[3 * ti], inv0 = part.standard[3 * ti + 1], inv1 = part.standard[3 * ti + 2];
  int found = 0, below = 0, occupied = 0;
  for (int tj = 0; tj < n; ++tj) {
    const int use = part.use[ti * n + tj];
    if (lane == 0) part.pair_start[c * (n + 1) + tj] = found;
    int of_type = 0;
    for (int base = row_start[tj]; use && base < row_start[tj + 1]; base += kWarp) {
      const int slot = base + lane;
      const Pack4<double> y = atoms.xyz[slot < row_start[tj + 1] ? row[slot] : i];
      const double e[3] = {y.v[0] - x.v[0], y.v[1] - x.v[1], y.v[2] - x.v[2]};
      const double r = std::sqrt(e[0] * e[0] + e[1] * e[1] + e[2] * e[2]);
      const bool inside = slot < row_start[tj + 1] && r <= part.rcut;
      const unsigned insiders = ballot(inside);
      of_type += __popc(insiders);
      below += inside && r < part.r_min;
      if (inside && r < kOverlap) atoms.header->overlap = 1;
      if (!(use & kContracted)) continue;
      if (inside) {
        const Radial<T> env = environment_radial<T>(r, part.of_r);
        const double s = (r - part.r_min) * part.inv_step;  // in units of intervals, from the first node on
        int k = s < 0 ? -1 : int(s);
        if (k >= part.n_intervals) k = part.n_intervals - 1;
        Pair<T> pair;
        pair.t = T(s - (k < 0 ? 0 : k));
        pair.interval = k + 1;
        pair.slot = slot;
        pair.rows[0] = (env.s - davg) * inv0;
        for (int a = 0; a < 3; ++a) pair.rows[1 + a] = env.q * T(e[a]) * inv1;
        part.pairs[c * atoms.capacity + found + __popc(insiders & ((1u << lane) - 1))] = pair;
      }
      found += __popc(insiders);
    }
    if (!(use & kOccupies)) of_type = 0;
    occupied += of_type;
    if (lane == 0) part.occupied[c * n + tj] = of_type;
    if (lane == 0 && part.slots == Slots::per_type && of_type > part.sel[tj]) atoms.header->full = 1;
  }
  if (part.counts_below) below = sum_lanes(below);
  if (lane == 0) {
    part.pair_start[c * (n + 1) + n] = found;
    if (part.slots == Slots::shared && occupied > part.sel[0]) atoms.header->full = 1;
    if (part.counts_below && below) atomicAdd(&atoms.header->below_range, (unsigned long long)below);
  }
}

// ---- 2. table -------------------------------------------------------------------------------------------------------

// Four channels of G and dG/dt; `at` is the coefficient of t^0, those of higher powers follow `width` apart.
template <typename T>
__device__ inline void table_value(const T* at, int width, T t, Pack4<T>& g) {
  g = *reinterpret_cast<const Pack4<T>*>(at + 5 * width);
#pragma unroll
  for (int power = 4; power >= 0; --power) {
    const Pack4<T> k = *reinterpret_cast<const Pack4<T>*>(at + power * width);
#pragma unroll
    for (int m = 0; m < 4; ++m) g.v[m] = g.v[m] * t + k.v[m];
  }
}

template <typename T>
__device__ inline void table_value(const T* at, int width, T t, Pack4<T>& g, Pack4<T>& dg) {
  g = *reinterpret_cast<const Pack4<T>*>(at + 5 * width);
  dg = {};
#pragma unroll
  for (int power = 4; power >= 0; --power) {
    const Pack4<T> k = *reinterpret_cast<const Pack4<T>*>(at + power * width);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      dg.v[m] = dg.v[m] * t + g.v[m];
      g.v[m] = g.v[m] * t + k.v[m];
    }
  }
}

// ---- 3. contraction -------------------------------------------------------------------------------------------------

// Warp per centre and slice of channels (blockIdx.y). LANES lanes share a neighbour, four channels each; the groups of
// lanes take every (32 / LANES)-th neighbour and are added at the end. Reads pairs, table; writes a.
// Blocks of one slice run at about the same time: its part of the table stays in the L1 cache.
template <typename T, int LANES, bool ANGULAR>
__global__ void __launch_bounds__(kThreads) contraction_forward(Atoms atoms, PartOf<T> part) {
  constexpr int kRows = ANGULAR ? 4 : 1, kGroups = kWarp / LANES;
  const int64_t c = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (c >= atoms.count || skip(atoms.header)) return;
  const int lane = threadIdx.x % kWarp, group = lane / LANES, m4 = 4 * (lane % LANES), slice = blockIdx.y;
  const int n = atoms.n_types, ti = atoms.type_of[atoms.first + c], m0 = slice * part.slice_width + m4;
  const bool on = m4 < part.slice_width;
  const Pair<T>* pairs = part.pairs + c * atoms.capacity;
  const int* start = part.pair_start + c * (n + 1);
  const int64_t interval_size = 6 * part.slice_width, table_size = (part.n_intervals + 1) * interval_size;
  int empty_shared = 0;
  if (part.slots == Slots::shared) {
    empty_shared = part.sel[0];
    for (int tj = 0; tj < n; ++tj) empty_shared -= part.occupied[c * n + tj];
  }
  for (int lead = 0; lead < n; ++lead) {
    if (!part.leads[lead]) continue;
    T acc[kRows][4] = {}, padding[4] = {};
    for (int tj = lead; tj >= 0; tj = part.next_alike[tj]) {
      const T* table = part.table + (int64_t(ti * n + tj) * part.n_slices + slice) * table_size + m4;
      for (int k = start[tj] + group; on && k < start[tj + 1]; k += kGroups) {
        const Pair<T> pair = pairs[k];
        Pack4<T> g;
        table_value(table + pair.interval * interval_size, part.slice_width, pair.t, g);
#pragma unroll
        for (int row = 0; row < kRows; ++row)
#pragma unroll
          for (int m = 0; m < 4; ++m) acc[row][m] += ANGULAR ? pair.rows[row] * g.v[m] : g.v[m];
      }
      int empty = 0;
      if (part.slots == Slots::per_type) empty = part.sel[tj] - part.occupied[c * n + tj];
      if (part.slots == Slots::shared && tj == atoms.frame->first_type) empty = empty_shared;
      if (empty)
        for (int m = 0; m < 4; ++m)
          if (on && m0 + m < part.width) padding[m] += T(empty) * part.pad[(ti * n + tj) * part.width + m0 + m];
    }
#pragma unroll
    for (int mask = LANES; mask < kWarp; mask *= 2)
#pragma unroll
      for (int row = 0; row < kRows; ++row)
#pragma unroll
        for (int m = 0; m < 4; ++m) acc[row][m] += shuffle_xor(acc[row][m], mask);
    if (group || !on) continue;
    T* a = part.a + c * part.a_stride + kRows * (part.channel_offset[lead] + m0);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      if (m0 + m >= part.width) break;
      acc[0][m] += padding[m];
      if constexpr (ANGULAR)
        *reinterpret_cast<Pack4<T>*>(a + 4 * m) = {{acc[0][m], acc[1][m], acc[2][m], acc[3][m]}};
      else
        a[m] = acc[0][m];
    }
  }
}

// Warp per centre and slice of channels, as forward. Reads pairs, table, dE/da (in part.a); writes u, h of the slice.
template <typename T, int LANES, bool ANGULAR>
__global__ void __launch_bounds__(kThreads) contraction_backward(Atoms atoms, PartOf<T> part) {
  constexpr int kRows = ANGULAR ? 4 : 1, kGroups = kWarp / LANES;
  const int64_t c = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (c >= atoms.count || skip(atoms.header)) return;
  const int lane = threadIdx.x % kWarp, group = lane / LANES, m4 = 4 * (lane % LANES), slice = blockIdx.y;
  const int n = atoms.n_types, ti = atoms.type_of[atoms.first + c], m0 = slice * part.slice_width + m4;
  const bool on = m4 < part.slice_width;
  const Pair<T>* pairs = part.pairs + c * atoms.capacity;
  const int* start = part.pair_start + c * (n + 1);
  const int64_t interval_size = 6 * part.slice_width, table_size = (part.n_intervals + 1) * interval_size;
  const int64_t out = (slice * atoms.count + c) * atoms.capacity;
  for (int tj = 0; tj < n; ++tj) {
    const T* da_of = part.a + c * part.a_stride + kRows * (part.channel_offset[tj] + m0);
    T da[4][kRows];  // dE/da of this lane's channels
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int row = 0; row < kRows; ++row)
        da[m][row] = on && m0 + m < part.width ? da_of[kRows * m + row] : T(0);
    const T* table = part.table + (int64_t(ti * n + tj) * part.n_slices + slice) * table_size + (on ? m4 : 0);
    for (int base = start[tj]; base < start[tj + 1]; base += kGroups) {
      const int k = base + group < start[tj + 1] ? base + group : base;  // all lanes take part in the sums
      const Pair<T> pair = pairs[k];
      Pack4<T> g, dg;
      table_value(table + pair.interval * interval_size, part.slice_width, pair.t, g, dg);
      const bool write = lane % LANES == 0 && base + group < start[tj + 1];
      T h = 0;
      if constexpr (ANGULAR) {
        Pack4<T> u = {};
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          T along = 0;
#pragma unroll
          for (int row = 0; row < 4; ++row) {
            u.v[row] += g.v[m] * da[m][row];
            along += pair.rows[row] * da[m][row];
          }
          h += dg.v[m] * along;
        }
#pragma unroll
        for (int row = 0; row < 4; ++row) u.v[row] = sum_lanes<LANES>(u.v[row]);
        if (write) part.u[out + k] = u;
      } else {
#pragma unroll
        for (int m = 0; m < 4; ++m) h += dg.v[m] * da[m][0];
      }
      h = sum_lanes<LANES>(h);
      if (write) part.h[out + k] = h;
    }
  }
}

// ---- 4. features ----------------------------------------------------------------------------------------------------

// Block per centre. Reads a (channels, 4); writes its features, D[p, m] = sum_c a[c, p] a[c, m].
// order: (n,) p and m << 16 of each feature. Dynamic shared memory: a.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gram_forward(const Header* header, const T* a, int channels, int n, const unsigned* order, T* features,
                 int64_t stride) {
  if (skip(header)) return;
  const int64_t c = blockIdx.x;
  Pack4<T>* s = dynamic_shared<Pack4<T>>();
  const Pack4<T>* of_c = reinterpret_cast<const Pack4<T>*>(a) + c * channels;
  for (int m = threadIdx.x; m < channels; m += kThreads) s[m] = of_c[m];
  __syncthreads();
  for (int f = threadIdx.x; f < n; f += kThreads) {
    const Pack4<T> x = s[order[f] & 0xffff], y = s[order[f] >> 16];
    T sum = x.v[0] * y.v[0];
    for (int k = 1; k < 4; ++k) sum += x.v[k] * y.v[k];
    features[c * stride + f] = sum;
  }
}

// Block per centre. Reads a and dE/dD; replaces a by
//   dE/da[c, m] = sum_p<=m dD[p, m] a[c, p] + sum_q>=m dD[m, q] a[c, q]    (p, and m of the second sum, below axis)
// Dynamic shared memory: a, and dD where `staged`.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gram_backward(const Header* header, T* a, int channels, int axis, int n, const T* d_features, int64_t stride,
                  bool staged) {
  if (skip(header)) return;
  const int64_t c = blockIdx.x;
  Pack4<T>* s = dynamic_shared<Pack4<T>>();
  Pack4<T>* of_c = reinterpret_cast<Pack4<T>*>(a) + c * channels;
  const T* d = d_features + c * stride;
  for (int m = threadIdx.x; m < channels; m += kThreads) s[m] = of_c[m];
  if (staged) {
    T* copy = reinterpret_cast<T*>(s + channels);
    for (int f = threadIdx.x; f < n; f += kThreads) copy[f] = d[f];
    d = copy;
  }
  __syncthreads();
  for (int m = threadIdx.x; m < channels; m += kThreads) {
    Pack4<T> sum = {};
    const T* at = d + m;  // D[p, m] is at p channels - p (p - 1) / 2 + m - p
    for (int p = 0; p < axis && p <= m; ++p) {
      const T x = *at;
      for (int k = 0; k < 4; ++k) sum.v[k] += x * s[p].v[k];
      at += channels - p - 1;
    }
    at = d + m * channels - m * (m - 1) / 2 - m;
    for (int q = m; m < axis && q < channels; ++q)
      for (int k = 0; k < 4; ++k) sum.v[k] += at[q] * s[q].v[k];
    of_c[m] = sum;
  }
}

// ---- forces ---------------------------------------------------------------------------------------------------------

// What a warp gathers of a centre's pairs: g = dE/d(edge_vec) acts on both atoms, and -g (x) edge_vec is virial.
struct PairSums {
  long long force[3] = {};
  double virial[9] = {};

  __device__ inline void add(const Atoms& atoms, int j, const double* e, const double* g) {
    long long* to = atoms.forces + 3 * int64_t(atoms.place[j].source);
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      if (!(g[a] < kForceBound && g[a] > -kForceBound)) {
        atoms.header->unbounded = 1;
        return;
      }
    }
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const long long q = llrint(g[a] * (1 / kForceUnit));
      force[a] += q;
      atomicAdd(reinterpret_cast<unsigned long long*>(to + a), (unsigned long long)(-q));
#pragma unroll
      for (int b = 0; b < 3; ++b) virial[3 * a + b] -= g[a] * e[b];
    }
  }

  // All lanes of the warp; i is the centre. No other warp adds to its virial meanwhile.
  __device__ inline void finish(const Atoms& atoms, int64_t i) {
#pragma unroll
    for (int a = 0; a < 3; ++a) force[a] = sum_lanes(force[a]);
#pragma unroll
    for (int a = 0; a < 9; ++a) virial[a] = sum_lanes(virial[a]);
    if (threadIdx.x % kWarp) return;
    const int64_t to = atoms.place[i].source;
    for (int a = 0; a < 3; ++a)
      atomicAdd(reinterpret_cast<unsigned long long*>(atoms.forces + 3 * to + a), (unsigned long long)(force[a]));
    for (int a = 0; a < 9; ++a) atoms.atom_virial[9 * to + a] += virial[a];
  }
};

// Warp per centre: from dE/dG and dE/dR of its pairs to forces and virial. Reads pairs, u, h, xyz; adds to forces (both
// atoms) and atom_virial (the centre's).
//   g_a = [u_0 ds/dr inv0 + (sum_c u_c e_c) dq/dr inv1 + h / step] e_a / r + u_a q inv1
template <typename T, bool ANGULAR>
__global__ void __launch_bounds__(kThreads) pair_forces(Atoms atoms, PartOf<T> part) {
  const int64_t c = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp, i = atoms.first + c;
  if (c >= atoms.count || skip(atoms.header)) return;
  const int n = atoms.n_types, ti = atoms.type_of[i], n_pairs = part.pair_start[c * (n + 1) + n];
  const Pack4<double> x = atoms.xyz[i];
  const T inv0 = part.standard[3 * ti + 1], inv1 = part.standard[3 * ti + 2], inv_step = T(part.inv_step);
  PairSums sums;
  for (int k = threadIdx.x % kWarp; k < n_pairs; k += kWarp) {
    T h = 0;
    Pack4<T> u = {};
    for (int slice = 0; slice < part.n_slices; ++slice) {
      const int64_t at = (slice * atoms.count + c) * atoms.capacity + k;
      h += part.h[at];
      if (!ANGULAR) continue;
      const Pack4<T> of_slice = part.u[at];
      for (int a = 0; a < 4; ++a) u.v[a] += of_slice.v[a];
    }
    const int j = atoms.rows[i * atoms.capacity + part.pairs[c * atoms.capacity + k].slot];
    const Pack4<double> y = atoms.xyz[j];
    const double e[3] = {y.v[0] - x.v[0], y.v[1] - x.v[1], y.v[2] - x.v[2]};
    const T ex = T(e[0]), ey = T(e[1]), ez = T(e[2]);
    const Radial<T> env = environment_radial<T>(std::sqrt(e[0] * e[0] + e[1] * e[1] + e[2] * e[2]), part.of_r);
    T along = h * inv_step;
    if (ANGULAR)
      along += u.v[0] * env.ds * inv0 + (u.v[1] * ex + u.v[2] * ey + u.v[3] * ez) * env.dq * inv1;
    along *= env.inv_r;
    double g[3];
    for (int a = 0; a < 3; ++a) g[a] = double(along * T(e[a]) + (ANGULAR ? u.v[1 + a] * env.q * inv1 : T(0)));
    sums.add(atoms, j, e, g);
  }
  sums.finish(atoms, i);
}

// ---- 6. core --------------------------------------------------------------------------------------------------------

// Warp per centre: E_i += 1/2 E0 ((r0 - r) / d)^3 for r < r0. Reads xyz, rows; adds to atom_energy, forces and
// atom_virial. Mirrors dpsim/models/core_repulsion.py. r0: (n, n), zero where the pair has none.
__global__ void core_repulsion(Atoms atoms, double rcut, const double* r0, const unsigned char* atom_excluded) {
  constexpr double kEnergy = 1.0, kLength = 0.15;  // eV, A
  const int64_t c = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp, i = atoms.first + c;
  if (c >= atoms.count || skip(atoms.header)) return;
  const int lane = threadIdx.x % kWarp, n = atoms.n_types, ti = atoms.type_of[i];
  if (atom_excluded[ti]) return;
  const int* row_start = atoms.row_start + i * (n + 1);
  const Pack4<double> x = atoms.xyz[i];
  PairSums sums;
  double energy = 0;
  for (int tj = 0; tj < n; ++tj) {
    const double reach = r0[ti * n + tj];
    for (int slot = row_start[tj] + lane; reach > 0 && slot < row_start[tj + 1]; slot += kWarp) {
      const int j = atoms.rows[i * atoms.capacity + slot];
      const Pack4<double> y = atoms.xyz[j];
      const double e[3] = {y.v[0] - x.v[0], y.v[1] - x.v[1], y.v[2] - x.v[2]};
      const double r = std::sqrt(e[0] * e[0] + e[1] * e[1] + e[2] * e[2]);
      if (!(r < reach && r <= rcut)) continue;
      const double depth = (reach - r) / kLength;
      energy += 0.5 * kEnergy * depth * depth * depth;
      const double along = r > 0 ? -1.5 * kEnergy / kLength * depth * depth / r : 0.0;
      const double g[3] = {along * e[0], along * e[1], along * e[2]};
      sums.add(atoms, j, e, g);
    }
  }
  energy = sum_lanes(energy);
  if (lane == 0) atoms.atom_energy[atoms.place[i].source] += energy;
  sums.finish(atoms, i);
}

// ---- sums -----------------------------------------------------------------------------------------------------------

constexpr int kSumThreads = 256, kSumTile = 8 * kSumThreads, kSums = 10;  // energy and virial

// The block's sums of one number per thread, pairwise; valid on thread 0.
__device__ inline double block_sum(double x) {
  __shared__ double sums[kSumThreads];
  sums[threadIdx.x] = x;
  __syncthreads();
  for (int half = kSumThreads / 2; half; half /= 2) {
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  x = sums[0];
  __syncthreads();
  return x;
}

// Block per kSumTile atoms: partial[block] = sums of energy and virial. Thread per force component besides: from the
// integer sums to eV/A.
__global__ void collect(const Header* header, int64_t n, int64_t n_targets, const double* atom_energy,
                               const double* atom_virial, const long long* fixed, double* forces, double* partial) {
  if (skip(header)) return;
  const int64_t first = int64_t(blockIdx.x) * kSumTile;
  for (int k = threadIdx.x; k < 3 * kSumTile; k += kSumThreads)
    if (3 * first + k < 3 * n_targets) forces[3 * first + k] = double(fixed[3 * first + k]) * kForceUnit;
  for (int s = 0; s < kSums; ++s) {
    double sum = 0;
    for (int64_t i = first + threadIdx.x; i < first + kSumTile && i < n; i += kSumThreads)
      sum += s ? atom_virial[9 * i + s - 1] : atom_energy[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x * kSums + s] = sum;
  }
}

// One block: the sums of all blocks of `collect`, into the header.
__global__ void collect_header(Header* header, int n_blocks, const double* partial) {
  if (skip(header)) return;
  for (int s = 0; s < kSums; ++s) {
    double sum = 0;
    for (int b = threadIdx.x; b < n_blocks; b += kSumThreads) sum += partial[b * kSums + s];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *(s ? &header->virial[s - 1] : &header->energy) = sum;
  }
}

}  // namespace dpsim::cuda
