// What a GPU keeps between calls: buffers, the student used last, the neighbour list. And how the list is made.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "student_cells.h"
#include "student_device.h"

namespace dpsim::cuda {

#if defined(DPSIM_CUDA_EMULATION)  // small, so that small tests meet every case
constexpr int64_t kFirstCapacity = 8, kPinned = 4096;
#else
constexpr int64_t kFirstCapacity = 128;  // of a row of the list, until its longest row is known
constexpr int64_t kPinned = 4 << 20;     // bytes: larger arrays are copied from and to the caller's directly
#endif

inline unsigned blocks(int64_t n, int64_t per_block = kThreads) { return unsigned((n + per_block - 1) / per_block); }

enum class List { none, own, engine };

struct Workspace {
  explicit Workspace(int device_) : device(device_), to_device(kPinned), from_device(kPinned) {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  ~Workspace() {
    drop_graph();
    cudaStreamDestroy(stream);
  }
  // As if there had been no call: the next one sets up everything anew, in the memory at hand.
  void forget() {
    drop_graph();
    list = List::none;
    n = n_targets = 0;
  }
  void drop_graph() {
    if (graph) cudaGraphExecDestroy(graph);
    graph = nullptr;
  }

  const int device;
  cudaStream_t stream = nullptr;
  cudaGraphExec_t graph = nullptr;
  Ledger ledger;
  PinnedArray to_device, from_device;

  uint64_t student_id = ~uint64_t(0);
  std::unique_ptr<DeviceStudent<float>> student32;
  std::unique_ptr<DeviceStudent<double>> student64;

  // the configuration: n centres, n_targets atoms with a force (ghosts of an engine too), then images
  int64_t n = 0, n_targets = 0, image_capacity = 0, chunk = 0, n_rebuilds = 0;
  int capacity = 0;  // of a row of the list
  List list = List::none;
  std::vector<int32_t> types;
  std::vector<int64_t> type_start;
  int32_t pbc[3] = {0, 0, 0};
  double skin = 0, reference_cell[9] = {};
  Frame frame{};
  int tile_rows = 0;
  std::vector<int64_t> tile_start;  // of each chunk, in `tiles`

  DeviceArray<char> upload{ledger}, results{ledger}, chunk_memory{ledger};
  DeviceArray<double> reference{ledger}, partial{ledger};
  DeviceArray<int> caller_types{ledger}, type_of{ledger}, rows{ledger}, row_start{ledger};
  DeviceArray<Place> place{ledger}, unsorted{ledger};
  DeviceArray<Pack4<double>> xyz{ledger};
  DeviceArray<long long> fixed{ledger};
  DeviceArray<Tile> tiles{ledger};
  DeviceArray<int> key{ledger}, order{ledger}, starts{ledger}, cursor{ledger}, tile_sums{ledger}, images{ledger};
  DeviceArray<int64_t> offsets{ledger};

  const Frame* device_frame() const { return reinterpret_cast<const Frame*>(upload.data()); }
  const double* positions() const { return reinterpret_cast<const double*>(upload.data() + kFrameBytes); }
  // results: Header, atom_energy (n,), forces (n_targets, 3), atom_virial (n, 9)
  Header* header() const { return reinterpret_cast<Header*>(results.data()); }
  double* atom_energy() const { return reinterpret_cast<double*>(results.data() + kFrameBytes); }
  double* forces() const { return atom_energy() + n; }
  double* atom_virial() const { return forces() + 3 * n_targets; }
};
static_assert(sizeof(Header) <= kFrameBytes, "the header has outgrown its place");

template <typename T>
std::unique_ptr<DeviceStudent<T>>& student_of(Workspace& w) {
  if constexpr (sizeof(T) == 4)
    return w.student32;
  else
    return w.student64;
}

inline void copy(Workspace& w, void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, kind, w.stream));
}

// The frame and the positions, together where they are small.
inline void send(Workspace& w, const double* positions, int64_t n) {
  char* staged = w.to_device.data();
  const size_t bytes = size_t(n) * 3 * sizeof(double);
  const bool together = kFrameBytes + bytes <= size_t(kPinned);
  std::memcpy(staged, &w.frame, sizeof w.frame);
  if (together) std::memcpy(staged + kFrameBytes, positions, bytes);
  copy(w, w.upload.data(), staged, kFrameBytes + (together ? bytes : 0), cudaMemcpyHostToDevice);
  if (!together) copy(w, w.upload.data() + kFrameBytes, positions, bytes, cudaMemcpyHostToDevice);
}

// ---- the neighbour list ---------------------------------------------------------------------------------------------

// starts[i] = sum of counts before i, starts[n] = sum of all; also into `cursor` where it is not null.
inline void queue_scan(Workspace& w, int64_t n, const int* counts, int* starts, int* cursor) {
  int* sums = w.tile_sums.data();
  launch(scan_tiles, blocks(n, kScanTile), kScanThreads, 0, w.stream, n, counts, starts, sums);
  launch(scan_sums, 1, kScanThreads, 0, w.stream, int64_t(blocks(n, kScanTile)), sums, starts + n);
  launch(scan_add, blocks(n), kThreads, 0, w.stream, n, sums, starts, cursor);
}

// order: the items of each key, ascending; starts: where each key begins.
inline void queue_sort(Workspace& w, int64_t n, const int* n_images, int64_t capacity, int64_t n_keys) {
  check(cudaMemsetAsync(w.cursor.data(), 0, size_t(n_keys) * sizeof(int), w.stream));
  launch(count_keys, blocks(capacity), kThreads, 0, w.stream, n, n_images, capacity, w.key.data(), w.cursor.data());
  queue_scan(w, n_keys, w.cursor.data(), w.starts.data(), w.cursor.data());
  launch(place_items, blocks(capacity), kThreads, 0, w.stream, n, n_images, capacity, w.key.data(), w.cursor.data(),
         w.order.data());
  launch(sort_runs, blocks(n_keys), kThreads, 0, w.stream, n_keys, w.starts.data(), w.order.data());
}

inline void reserve_list(Workspace& w, int n_types, int64_t n_all) {
  w.type_of.reserve(n_all);
  w.place.reserve(n_all);
  w.xyz.reserve(n_all);
  w.rows.reserve(w.n * w.capacity);
  w.row_start.reserve(w.n * (n_types + 1));
}

// Our own list, for the positions uploaded last. Nothing is waited for.
inline void queue_build(Workspace& w, int n_types, const Grid& grid, double cutoff) {
  const int64_t n = w.n, capacity = n + w.image_capacity, n_keys = int64_t(n_types) * grid.n_bins;
  Header* header = w.header();
  reserve_list(w, n_types, capacity);
  w.unsorted.reserve(n);
  w.key.reserve(capacity);
  w.order.reserve(capacity);
  w.starts.reserve(n_keys + 1);
  w.cursor.reserve(n_keys + 1);
  w.images.reserve(2 * n + 1);
  w.tile_sums.reserve(blocks(std::max(n_keys, n), kScanTile));
  int *image_count = w.images.data(), *image_start = w.images.data() + n;

  check(cudaMemsetAsync(header, 0, sizeof *header, w.stream));
  launch(wrap_atoms, blocks(n), kThreads, 0, w.stream, n, w.device_frame(), w.positions(), w.caller_types.data(), grid,
         w.unsorted.data(), w.key.data(), header);
  queue_sort(w, n, static_cast<const int*>(nullptr), n, n_keys);
  launch(gather_atoms, blocks(n), kThreads, 0, w.stream, n, w.order.data(), w.device_frame(), w.positions(),
         w.caller_types.data(), grid, w.unsorted.data(), w.place.data(), w.type_of.data(), w.xyz.data(), image_count);
  queue_scan(w, n, image_count, image_start, nullptr);
  launch(make_images, blocks(n), kThreads, 0, w.stream, n, capacity, image_start, w.device_frame(), w.positions(), grid,
         w.place.data(), w.type_of.data(), w.xyz.data(), header);
  launch(bin_atoms, blocks(capacity), kThreads, 0, w.stream, n, &header->n_images, capacity, grid, w.type_of.data(),
         w.xyz.data(), w.key.data());
  queue_sort(w, n, &header->n_images, capacity, n_keys);
  launch(build_rows, blocks(n, kWarps), kThreads, 0, w.stream, n, n_types, grid, cutoff * cutoff, w.xyz.data(),
         w.starts.data(), w.order.data(), w.capacity, w.rows.data(), w.row_start.data(), header);
  copy(w, w.reference.data(), w.positions(), size_t(n) * 3 * sizeof(double), cudaMemcpyDeviceToDevice);
  check(cudaGetLastError());
}

// An engine's list, its atoms sorted by type here. Copies of the caller's arrays are made before it returns.
inline void queue_take(Workspace& w, int n_types, const int32_t* types, const int64_t* offsets,
                       const int32_t* neighbors) {
  const int64_t n = w.n, n_all = w.n_targets;
  std::vector<int64_t> next(w.type_start.begin(), w.type_start.end() - 1);
  std::vector<Place> place(n_all);
  std::vector<int32_t> inverse(n_all), type_of(n_all);
  int64_t longest = 0;
  for (int64_t i = 0; i < n_all; ++i) {
    const int64_t at = i < n ? next[types[i]]++ : i;
    place[at] = {int(i), {0, 0, 0}};
    type_of[at] = types[i];
    inverse[i] = int32_t(at);
    if (i < n) longest = std::max(longest, offsets[i + 1] - offsets[i]);
  }
  w.capacity = std::max(w.capacity, int((longest + 15) / 16 * 16));
  reserve_list(w, n_types, n_all);
  w.key.reserve(n_all);
  w.order.reserve(offsets[n]);
  w.offsets.reserve(n + 1);
  check(cudaMemsetAsync(w.header(), 0, sizeof(Header), w.stream));
  copy(w, w.place.data(), place.data(), place.size() * sizeof(Place), cudaMemcpyHostToDevice);
  copy(w, w.type_of.data(), type_of.data(), type_of.size() * sizeof(int), cudaMemcpyHostToDevice);
  copy(w, w.key.data(), inverse.data(), inverse.size() * sizeof(int), cudaMemcpyHostToDevice);
  copy(w, w.order.data(), neighbors, size_t(offsets[n]) * sizeof(int), cudaMemcpyHostToDevice);
  copy(w, w.offsets.data(), offsets, size_t(n + 1) * sizeof(int64_t), cudaMemcpyHostToDevice);
  launch(take_rows, blocks(n, kWarps), kThreads, 0, w.stream, n, n_types, w.place.data(), w.offsets.data(),
         w.order.data(), w.key.data(), w.type_of.data(), w.capacity, w.rows.data(), w.row_start.data(), w.header());
  check(cudaGetLastError());
  check(cudaStreamSynchronize(w.stream));  // the vectors above go out of scope
}

}  // namespace dpsim::cuda
