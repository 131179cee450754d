// The neighbour list of a student on the device: who is where, and who is near whom.
//
// Atoms are sorted by type, then by bin of a grid, then by their index. Images of atoms that lie within rcut + skin of
// the cell follow them as atoms of their own, so that any cell, however small or skewed, needs no special case. A list
// holds, for each centre, a row of `capacity` indices: every atom within rcut + skin, types ascending.
//
// Deterministic: integer atomics only, and what they leave in any order is sorted. What does not fit is counted
// (Header), never written; the host then makes room and builds again.
#pragma once

#include "device.h"

namespace dpsim::cuda {

constexpr int kThreads = 128;  // of a block, where nothing else is said
constexpr int kWarps = kThreads / kWarp;

// The results and flags of a step, read by the host once, after it.
struct Header {
  // set by the list
  int n_images, longest_row;  // what there is, whether it fitted or not
  int overflow;               // it did not fit
  // set by every step
  int stale;         // an atom moved so far that the list may lack a pair: nothing below was computed
  int lost;          // a position is not finite, or absurdly far from the cell
  int full;          // a centre has more neighbours than an imported model's `sel`
  int unbounded;     // a force is too large for the sums
  int overlap;       // two atoms have no direction between them
  unsigned long long below_range;
  double energy, virial[9];
};
constexpr size_t kListBytes = 3 * sizeof(int);  // the part set by the list

__device__ inline bool skip(const Header* header) { return header->stale || header->overflow; }

// What changes from call to call. It precedes the positions in the buffer that the host uploads.
struct Frame {
  double cell[9];       // rows are lattice vectors; of open directions: any that complete them
  double map[9];        // a reference position r of the list corresponds to r map in this cell
  double threshold2;    // A^2: how far from there an atom may be
  int first_type, reserved;
};
constexpr size_t kFrameBytes = 256;
static_assert(sizeof(Frame) <= kFrameBytes, "the frame has outgrown its place");

// Where an atom of the sorted order comes from: position[source] + shift cell.
struct Place {
  int source, shift[3];
};

// The bins. u = x inverse: lattice coordinates along periodic directions, A along open ones.
struct Grid {
  double inverse[9], low[3], per_bin[3];  // bin of u: (u - low) per_bin
  double margin[3];                       // rcut + skin in units of u
  int periodic[3], count[3];
  int n_bins;
};

// x . m, with m row-major.
__device__ inline void times(const double* x, const double* m, double* y) {
  for (int a = 0; a < 3; ++a) y[a] = x[0] * m[a] + x[1] * m[3 + a] + x[2] * m[6 + a];
}

__device__ inline void placed(const double* position, const int* shift, const double* cell, double* x) {
  const double s[3] = {double(shift[0]), double(shift[1]), double(shift[2])};
  times(s, cell, x);
  for (int a = 0; a < 3; ++a) x[a] += position[a];
}

// The number of atoms and images, where the number of images is on the device.
__device__ inline int64_t live(int64_t n, const int* n_images, int64_t capacity) {
  if (!n_images) return n;
  return n + *n_images < capacity ? n + *n_images : capacity;
}

__device__ inline int bin_of(const double* x, const Grid& grid) {
  double u[3];
  times(x, grid.inverse, u);
  int bin = 0;
  for (int a = 0; a < 3; ++a) {
    const double b = (u[a] - grid.low[a]) * grid.per_bin[a];
    const int last = grid.count[a] - 1;
    bin = bin * grid.count[a] + (b > 0 ? (b < last ? int(b) : last) : 0);  // NaN: 0
  }
  return bin;
}

// ---- sorting --------------------------------------------------------------------------------------------------------

// Thread per item: counts[key[i]] += 1.
__global__ void count_keys(int64_t n, const int* n_images, int64_t capacity, const int* key, int* counts) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < live(n, n_images, capacity)) atomicAdd(&counts[key[i]], 1);
}

constexpr int kScanThreads = 256, kScanTile = 4 * kScanThreads;

// The sum of the lower threads' x; the block's total in `total`. All threads of a block of kScanThreads call it.
__device__ inline int exclusive_scan(int x, int* total) {
  __shared__ int sums[2][kScanThreads];
  const int t = threadIdx.x;
  int side = 0;
  sums[0][t] = x;
  __syncthreads();
  for (int step = 1; step < kScanThreads; step *= 2, side ^= 1) {
    sums[side ^ 1][t] = sums[side][t] + (t >= step ? sums[side][t - step] : 0);
    __syncthreads();
  }
  *total = sums[side][kScanThreads - 1];
  const int before = sums[side][t] - x;
  __syncthreads();
  return before;
}

// Block per kScanTile items: out[i] = sum of the items before i in the tile; tile_sums[tile] = sum of the tile.
__global__ void scan_tiles(int64_t n, const int* in, int* out, int* tile_sums) {
  const int64_t first = int64_t(blockIdx.x) * kScanTile + 4 * threadIdx.x;
  int x[4], sum = 0, total;
  for (int k = 0; k < 4; ++k) sum += x[k] = first + k < n ? in[first + k] : 0;
  int before = exclusive_scan(sum, &total);
  for (int k = 0; k < 4; before += x[k++])
    if (first + k < n) out[first + k] = before;
  if (threadIdx.x == 0) tile_sums[blockIdx.x] = total;
}

// One block: tile_sums[t] = sum of the tiles before t; *total = sum of all.
__global__ void scan_sums(int64_t n_tiles, int* tile_sums, int* total) {
  int base = 0, sum;
  for (int64_t first = 0; first < n_tiles; first += kScanThreads, base += sum) {
    const int64_t t = first + threadIdx.x;
    const int before = exclusive_scan(t < n_tiles ? tile_sums[t] : 0, &sum);
    if (t < n_tiles) tile_sums[t] = base + before;
  }
  if (threadIdx.x == 0) *total = base;
}

// Thread per item: adds what precedes its tile; a second copy, if wanted, for place_items to count in.
__global__ void scan_add(int64_t n, const int* tile_sums, int* out, int* copy) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  out[i] += tile_sums[i / kScanTile];
  if (copy) copy[i] = out[i];
}

// Thread per item: order[...] = i, in the places of its key, in any order.
__global__ void place_items(int64_t n, const int* n_images, int64_t capacity, const int* key, int* cursor,
                            int* order) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < live(n, n_images, capacity)) order[atomicAdd(&cursor[key[i]], 1)] = int(i);
}

// Thread per key: its items ascending (Shell's sort: short runs are the rule, long ones must not take for ever).
__global__ void sort_runs(int64_t n_keys, const int* start, int* order) {
  const int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= n_keys) return;
  int* run = order + start[k];
  const int n = start[k + 1] - start[k];
  int gap = 1;
  while (gap < n / 3) gap = 3 * gap + 1;
  for (; gap > 0; gap /= 3)
    for (int i = gap; i < n; ++i) {
      const int item = run[i];
      int at = i;
      for (; at >= gap && run[at - gap] > item; at -= gap) run[at] = run[at - gap];
      run[at] = item;
    }
}

// ---- atoms and images -----------------------------------------------------------------------------------------------

// Thread per atom: wraps it into the cell. Reads positions, types; writes place (caller's order), key = (type, bin).
__global__ void wrap_atoms(int64_t n, const Frame* frame, const double* positions, const int* types, Grid grid,
                           Place* place, int* key, Header* header) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  double u[3], x[3];
  times(positions + 3 * i, grid.inverse, u);
  Place p{int(i), {0, 0, 0}};
  for (int a = 0; a < 3; ++a) {
    if (!(u[a] > -1e9 && u[a] < 1e9)) {
      header->lost = 1;
    } else if (grid.periodic[a]) {
      p.shift[a] = -int(floor(u[a]));
    }
  }
  placed(positions + 3 * i, p.shift, frame->cell, x);
  place[i] = p;
  key[i] = types[i] * grid.n_bins + bin_of(x, grid);
}

// The shifts that bring an atom at lattice coordinate u within the margin of the cell.
__device__ inline void image_range(double u, const Grid& grid, int a, int* low, int* high) {
  *low = grid.periodic[a] ? int(ceil(-grid.margin[a] - u)) : 0;
  *high = grid.periodic[a] ? int(floor(1 + grid.margin[a] - u)) : 0;
  if (*low > 0) *low = 0;  // the atom itself is always among them
  if (*high < 0) *high = 0;
}

// Thread per sorted atom. Reads order and place in the caller's order; writes sorted place, types and xyz, and how many
// images it has.
__global__ void gather_atoms(int64_t n, const int* order, const Frame* frame, const double* positions,
                             const int* types, Grid grid, const Place* unsorted, Place* place, int* type_of,
                             Pack4<double>* xyz, int* image_count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const Place p = unsorted[order[i]];
  double x[3], u[3];
  placed(positions + 3 * int64_t(p.source), p.shift, frame->cell, x);
  times(x, grid.inverse, u);
  int images = 1;
  for (int a = 0; a < 3; ++a) {
    int low, high;
    image_range(u[a], grid, a, &low, &high);
    images *= high - low + 1;
  }
  place[i] = p;
  type_of[i] = types[p.source];
  xyz[i] = {{x[0], x[1], x[2], 0}};
  image_count[i] = images - 1;
}

// Thread per sorted atom: writes place, type and xyz of its images, from n + image_start[i] on, as far as they fit.
__global__ void make_images(int64_t n, int64_t capacity, const int* image_start, const Frame* frame,
                            const double* positions, Grid grid, Place* place, int* type_of, Pack4<double>* xyz,
                            Header* header) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i == 0) {
    header->n_images = image_start[n];
    if (n + image_start[n] > capacity) header->overflow = 1;
  }
  if (i >= n) return;
  const double x[3] = {xyz[i].v[0], xyz[i].v[1], xyz[i].v[2]};
  double u[3];
  times(x, grid.inverse, u);
  int low[3], high[3];
  for (int a = 0; a < 3; ++a) image_range(u[a], grid, a, &low[a], &high[a]);
  int64_t at = n + image_start[i];
  const Place home = place[i];
  for (int a = low[0]; a <= high[0]; ++a)
    for (int b = low[1]; b <= high[1]; ++b)
      for (int c = low[2]; c <= high[2]; ++c) {
        if (!(a || b || c)) continue;
        if (at < capacity) {
          const Place p{home.source, {home.shift[0] + a, home.shift[1] + b, home.shift[2] + c}};
          double y[3];
          placed(positions + 3 * int64_t(p.source), p.shift, frame->cell, y);
          place[at] = p;
          type_of[at] = type_of[i];
          xyz[at] = {{y[0], y[1], y[2], 0}};
        }
        ++at;
      }
}

// Thread per atom or image: key = (type, bin).
__global__ void bin_atoms(int64_t n, const int* n_images, int64_t capacity, Grid grid, const int* type_of,
                          const Pack4<double>* xyz, int* key) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < live(n, n_images, capacity)) key[i] = type_of[i] * grid.n_bins + bin_of(xyz[i].v, grid);
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// Appends j, on the lanes where `hit`, to a row that has n entries; returns how many it has now.
__device__ inline int append(bool hit, int j, int n, int capacity, int* row) {
  const unsigned hits = ballot(hit), before = hits & ((1u << (threadIdx.x % kWarp)) - 1);
  const int at = n + __popc(before);
  if (hit && at < capacity) row[at] = j;
  return n + __popc(hits);
}

__device__ inline void end_row(int n, int capacity, Header* header) {
  if (threadIdx.x % kWarp) return;
  atomicMax(&header->longest_row, n);
  if (n > capacity) header->overflow = 1;
}

// Warp per centre: tests the atoms of the bins around it. Writes its row and where each type begins in it:
// type t is [row_start[i (n_types + 1) + t], row_start[... + t + 1]).
__global__ void build_rows(int64_t n, int n_types, Grid grid, double cutoff2, const Pack4<double>* xyz,
                           const int* bin_start, const int* order, int capacity, int* rows, int* row_start,
                           Header* header) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= n) return;
  const int lane = threadIdx.x % kWarp;
  const Pack4<double> x = xyz[i];
  int bin = bin_of(x.v, grid), low[3], high[3];
  for (int a = 2; a >= 0; --a) {
    const int b = bin % grid.count[a];
    bin /= grid.count[a];
    low[a] = b > 0 ? b - 1 : 0;
    high[a] = b + 1 < grid.count[a] ? b + 1 : b;
  }
  int* row = rows + i * capacity;
  int found = 0;
  for (int t = 0; t < n_types; ++t) {
    if (lane == 0) row_start[i * (n_types + 1) + t] = found < capacity ? found : capacity;
    for (int a = low[0]; a <= high[0]; ++a)
      for (int b = low[1]; b <= high[1]; ++b) {
        const int64_t line = (int64_t(t) * grid.count[0] + a) * grid.count[1] + b;
        const int end = bin_start[line * grid.count[2] + high[2] + 1];
        for (int first = bin_start[line * grid.count[2] + low[2]]; first < end; first += kWarp) {
          const int j = first + lane < end ? order[first + lane] : int(i);
          const Pack4<double> y = xyz[j];
          const double d[3] = {y.v[0] - x.v[0], y.v[1] - x.v[1], y.v[2] - x.v[2]};
          const bool hit = j != i && d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < cutoff2;
          found = append(hit, j, found, capacity, row);
        }
      }
  }
  if (lane == 0) row_start[i * (n_types + 1) + n_types] = found < capacity ? found : capacity;
  end_row(found, capacity, header);
}

// Warp per centre: the same from an engine's list. Reads its neighbours in the caller's numbers; `inverse` turns those
// into the sorted order.
__global__ void take_rows(int64_t n, int n_types, const Place* place, const int64_t* offsets, const int* neighbors,
                          const int* inverse, const int* type_of, int capacity, int* rows, int* row_start,
                          Header* header) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= n) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t begin = offsets[place[i].source], end = offsets[place[i].source + 1];
  int found = 0;
  for (int t = 0; t < n_types; ++t) {
    if (lane == 0) row_start[i * (n_types + 1) + t] = found;
    for (int64_t first = begin; first < end; first += kWarp) {
      const int j = first + lane < end ? inverse[neighbors[first + lane]] : -1;
      found = append(j >= 0 && type_of[j < 0 ? 0 : j] == t, j, found, capacity, rows + i * capacity);
    }
  }
  if (lane == 0) row_start[i * (n_types + 1) + n_types] = found;
  end_row(found, capacity, header);
}

// ---- every step -----------------------------------------------------------------------------------------------------

// Thread per atom or image: xyz from the new positions; whether the list still holds; what is added to is cleared.
// reference: positions the list was built for. forces (n_targets, 3) and atom_virial (n, 9) are in the caller's order.
__global__ void update_positions(int64_t n, int64_t capacity, int64_t n_targets, const Frame* frame,
                                 const double* positions, const double* reference, const Place* place,
                                 Pack4<double>* xyz, long long* forces, double* atom_virial, Header* header) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= live(n_targets, &header->n_images, capacity)) return;
  const Place p = place[i];
  double x[3];
  placed(positions + 3 * int64_t(p.source), p.shift, frame->cell, x);
  xyz[i] = {{x[0], x[1], x[2], 0}};
  if (i >= n_targets) return;
  double was[3], moved2 = 0;
  times(reference + 3 * i, frame->map, was);
  for (int a = 0; a < 3; ++a) {
    const double at = positions[3 * i + a];
    moved2 += (at - was[a]) * (at - was[a]);
    if (!(at > -1e15 && at < 1e15)) header->lost = 1;
    forces[3 * i + a] = 0;
  }
  if (moved2 > frame->threshold2) header->stale = 1;
  if (i < n)
    for (int a = 0; a < 9; ++a) atom_virial[9 * i + a] = 0;
}

}  // namespace dpsim::cuda
