// Students on a GPU: the host's side. Buffers, the neighbour list, the step as a CUDA graph, results.
//
// A step is queued without a word from the device: positions go up, the graph runs, one buffer with flags and results
// comes back, and the host waits once. If the list was too old for the new positions (found on the device, which then
// computes nothing more), or did not fit, the host builds it anew with more room and runs the step again.
// Centres are worked on in chunks, so that only positions, results and the list grow with the number of atoms.
#include <cmath>
#include <cstring>
#include <memory>

#include "device_memory.h"
#include "student_cuda.h"
#include "student_device.h"
#include "student_kernels.cuh"

namespace dpsim {
namespace cuda {
namespace {

#if defined(DPSIM_CUDA_EMULATION)  // small, so that small tests meet every case
constexpr int64_t kChunkCentres = 16, kLargeTiles = 10, kMediumTiles = 7, kFirstCapacity = 8, kPinned = 4096;
#else
constexpr int64_t kChunkCentres = 1 << 17;      // at most, in a chunk
constexpr int64_t kLargeTiles = 16384, kMediumTiles = 2048;  // chunks from so many centres on use tiles of 128, 64
constexpr int64_t kFirstCapacity = 128;         // of a row of the list, until its longest row is known
constexpr int64_t kPinned = 4 << 20;            // bytes: larger arrays are copied from and to the caller's directly
#endif
constexpr int64_t kChunkBytes = int64_t(2) << 30;
constexpr int64_t kMostAtoms = int64_t(1) << 30;  // with images; indices are 32-bit

unsigned blocks(int64_t n, int64_t per_block = kThreads) { return unsigned((n + per_block - 1) / per_block); }

// ---- cells -----------------------------------------------------------------------------------------------------------

void cross(const double* a, const double* b, double* c) {
  for (int k = 0; k < 3; ++k) c[k] = a[(k + 1) % 3] * b[(k + 2) % 3] - a[(k + 2) % 3] * b[(k + 1) % 3];
}
double norm(const double* a) { return std::sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2]); }

// The periodic rows of a cell, and unit vectors orthogonal to them and to each other in place of the others.
void complete_cell(const double* cell, const int32_t* pbc, double* full) {
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

void invert(const double* m, double* inverse) {
  double rows[9];
  for (int a = 0; a < 3; ++a) cross(m + 3 * ((a + 1) % 3), m + 3 * ((a + 2) % 3), rows + 3 * a);
  const double det = m[0] * rows[0] + m[1] * rows[1] + m[2] * rows[2];
  for (int a = 0; a < 3; ++a)
    for (int b = 0; b < 3; ++b) inverse[3 * a + b] = rows[3 * b + a] / det;
}

Grid make_grid(const double* cell, const int32_t* pbc, int64_t n, const double* positions, double cutoff,
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
void change_of(const double* from, const double* to, double* map) {
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
double allowed_way(const double* map, double rcut, double skin) {
  double strain2 = 0;
  for (int k = 0; k < 9; ++k) strain2 += std::pow(map[k] - (k % 4 == 0), 2);
  return 0.5 * ((rcut + skin) * (1 - std::sqrt(strain2)) - rcut);
}

}  // namespace

// ---- the workspace ---------------------------------------------------------------------------------------------------

enum class List { none, own, engine };

struct Workspace {
  explicit Workspace(int device_) : device(device_), to_device(kPinned), from_device(kPinned) {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  ~Workspace() {
    drop_graph();
    cudaStreamDestroy(stream);
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

namespace {

template <typename T>
std::unique_ptr<DeviceStudent<T>>& student_of(Workspace& w);
template <>
std::unique_ptr<DeviceStudent<float>>& student_of(Workspace& w) {
  return w.student32;
}
template <>
std::unique_ptr<DeviceStudent<double>>& student_of(Workspace& w) {
  return w.student64;
}

void copy(Workspace& w, void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, kind, w.stream));
}

// The frame and the positions, together where they are small.
void send(Workspace& w, const double* positions, int64_t n) {
  char* staged = w.to_device.data();
  const size_t bytes = size_t(n) * 3 * sizeof(double);
  const bool together = kFrameBytes + bytes <= size_t(kPinned);
  std::memcpy(staged, &w.frame, sizeof w.frame);
  if (together) std::memcpy(staged + kFrameBytes, positions, bytes);
  copy(w, w.upload.data(), staged, kFrameBytes + (together ? bytes : 0), cudaMemcpyHostToDevice);
  if (!together) copy(w, w.upload.data() + kFrameBytes, positions, bytes, cudaMemcpyHostToDevice);
}

// ---- the neighbour list ----------------------------------------------------------------------------------------------

// starts[i] = sum of counts before i, starts[n] = sum of all; also into `cursor` where it is not null.
void queue_scan(Workspace& w, int64_t n, const int* counts, int* starts, int* cursor) {
  int* sums = w.tile_sums.data();
  launch(scan_tiles, blocks(n, kScanTile), kScanThreads, 0, w.stream, n, counts, starts, sums);
  launch(scan_sums, 1, kScanThreads, 0, w.stream, int64_t(blocks(n, kScanTile)), sums, starts + n);
  launch(scan_add, blocks(n), kThreads, 0, w.stream, n, sums, starts, cursor);
}

// order: the items of each key, ascending; starts: where each key begins.
void queue_sort(Workspace& w, int64_t n, const int* n_images, int64_t capacity, int64_t n_keys) {
  check(cudaMemsetAsync(w.cursor.data(), 0, size_t(n_keys) * sizeof(int), w.stream));
  launch(count_keys, blocks(capacity), kThreads, 0, w.stream, n, n_images, capacity, w.key.data(), w.cursor.data());
  queue_scan(w, n_keys, w.cursor.data(), w.starts.data(), w.cursor.data());
  launch(place_items, blocks(capacity), kThreads, 0, w.stream, n, n_images, capacity, w.key.data(), w.cursor.data(),
         w.order.data());
  launch(sort_runs, blocks(n_keys), kThreads, 0, w.stream, n_keys, w.starts.data(), w.order.data());
}

void reserve_list(Workspace& w, int n_types, int64_t n_all) {
  w.type_of.reserve(n_all);
  w.place.reserve(n_all);
  w.xyz.reserve(n_all);
  w.rows.reserve(w.n * w.capacity);
  w.row_start.reserve(w.n * (n_types + 1));
}

// Our own list, for the positions uploaded last. Nothing is waited for.
void queue_build(Workspace& w, int n_types, const Grid& grid, double cutoff) {
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
void queue_take(Workspace& w, int n_types, const int32_t* types, const int64_t* offsets, const int32_t* neighbors) {
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

// ---- the step --------------------------------------------------------------------------------------------------------

// Takes arrays out of one block of memory; with a null block, finds how large it must be.
class Carver {
 public:
  explicit Carver(char* memory) : memory_(memory) {}
  template <typename U>
  void take(U*& array, int64_t n) {
    array = memory_ ? reinterpret_cast<U*>(memory_ + used_) : nullptr;
    used_ += (n * int64_t(sizeof(U)) + 255) / 256 * 256;
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// The buffers of a chunk.
template <typename T>
struct Chunk {
  std::vector<PartOf<T>> parts;
  T* features;
  T* x[2];                // what layers give, in turn
  std::vector<T*> slopes;  // of each layer

  int64_t carve(const DeviceStudent<T>& student, char* memory, int64_t count, int64_t capacity) {
    Carver carver(memory);
    const int n = student.n_types;
    parts.clear();
    slopes.assign(student.layers.size(), nullptr);
    carver.take(features, count * student.n_features);
    for (const DevicePart<T>& part : student.parts) {
      PartOf<T> view = part.view;
      carver.take(view.pairs, count * capacity);
      carver.take(view.pair_start, count * (n + 1));
      carver.take(view.occupied, count * n);
      carver.take(view.h, view.n_slices * count * capacity);
      view.u = nullptr;
      view.a = features + part.first_feature;
      view.a_stride = student.n_features;
      if (part.angular) {
        carver.take(view.u, view.n_slices * count * capacity);
        carver.take(view.a, count * 4 * view.channels);
        view.a_stride = 4 * view.channels;
      }
      parts.push_back(view);
    }
    for (T*& x_ : x) carver.take(x_, count * student.max_width);
    for (size_t l = 0; l < slopes.size(); ++l) carver.take(slopes[l], count * student.layers[l].n_out);
    return carver.used();
  }
};

template <typename T, int BM, int BN, int BK, int TM, int TN>
void launch_tiles(Workspace& w, bool forward, int64_t n_tiles, const Tile* tiles, const Layer<T>& layer) {
  static_assert(BM % TM == 0 && BN % TN == 0, "uneven tile");
  const dim3 grid(blocks(layer.n, BN), unsigned(n_tiles));
  const unsigned threads = BM / TM * (BN / TN);
  if (forward)
    launch(dense_layer<T, BM, BN, BK, TM, TN, true>, grid, threads, 0, w.stream, w.header(), tiles, layer);
  else
    launch(dense_layer<T, BM, BN, BK, TM, TN, false>, grid, threads, 0, w.stream, w.header(), tiles, layer);
}

// Tiles of 128 pay where there are enough of them for every multiprocessor; smaller ones spread small systems wider.
void launch_dense(Workspace& w, bool forward, int64_t n_tiles, const Tile* tiles, const Layer<float>& layer) {
  if (w.tile_rows == 128)
    launch_tiles<float, 128, 128, 8, 8, 8>(w, forward, n_tiles, tiles, layer);
  else if (w.tile_rows == 64)
    launch_tiles<float, 64, 64, 16, 4, 4>(w, forward, n_tiles, tiles, layer);
  else
    launch_tiles<float, 32, 32, 32, 2, 2>(w, forward, n_tiles, tiles, layer);
}
void launch_dense(Workspace& w, bool forward, int64_t n_tiles, const Tile* tiles, const Layer<double>& layer) {
  if (w.tile_rows == 64)
    launch_tiles<double, 64, 64, 16, 4, 4>(w, forward, n_tiles, tiles, layer);
  else
    launch_tiles<double, 32, 32, 16, 2, 2>(w, forward, n_tiles, tiles, layer);
}
template <typename T>
int rows_of_tiles(int64_t chunk) {
  if (chunk >= kLargeTiles && sizeof(T) == 4) return 128;
  return chunk >= kMediumTiles ? 64 : 32;
}

template <typename T>
void queue_chunk(Workspace& w, const DeviceStudent<T>& s, const Chunk<T>& chunk, const Atoms& atoms, int64_t n_tiles,
                 const Tile* tiles) {
  const cudaStream_t stream = w.stream;
  const unsigned per_warp = blocks(atoms.count, kWarps), per_block = unsigned(atoms.count);
  const size_t n_layers = s.layers.size();

  for (size_t p = 0; p < s.parts.size(); ++p) {  // 1. environment, 2. table, 3. contraction, 4. features
    const DevicePart<T>& part = s.parts[p];
    const PartOf<T>& view = chunk.parts[p];
    launch(environment_pairs<T>, per_warp, kThreads, 0, stream, atoms, view);
    auto forward = part.angular ? contraction_forward<T, 8, true> : contraction_forward<T, 8, false>;
    if (part.lanes == 4) forward = part.angular ? contraction_forward<T, 4, true> : contraction_forward<T, 4, false>;
    launch(forward, dim3(per_warp, view.n_slices), kThreads, 0, stream, atoms, view);
    if (part.angular)
      launch(gram_forward<T>, per_block, kThreads, 4 * view.channels * sizeof(T), stream, atoms.header, view.a,
             view.channels, part.n_features, part.gram_order, chunk.features + part.first_feature,
             int64_t(s.n_features));
  }

  for (size_t l = 0; l < n_layers; ++l) {  // 5. fitting
    const DeviceLayer<T>& of = s.layers[l];
    Layer<T> layer{l ? chunk.x[(l - 1) % 2] : chunk.features, of.weight, of.bias, of.idt, chunk.x[l % 2],
                   chunk.slopes[l], l ? s.max_width : s.n_features, s.max_width, of.n_out, of.n_in, of.n_out,
                   of.residual, of.activation};
    launch_dense(w, true, n_tiles, tiles, layer);
  }
  launch(energy_head<T>, per_warp, kThreads, 0, stream, atoms, chunk.x[(n_layers - 1) % 2], int64_t(s.max_width),
         s.layers.back().n_out, s.out_weight, s.out_bias, s.atom_excluded);
  for (size_t l = n_layers; l-- > 0;) {
    const DeviceLayer<T>& of = s.layers[l];
    Layer<T> layer{chunk.x[l % 2], of.transposed, nullptr, nullptr, l ? chunk.x[(l - 1) % 2] : chunk.features,
                   chunk.slopes[l], s.max_width, l ? s.max_width : s.n_features, of.n_out, of.n_out, of.n_in,
                   of.residual, of.activation};
    launch_dense(w, false, n_tiles, tiles, layer);
  }

  for (size_t p = 0; p < s.parts.size(); ++p) {  // back through 4 to 1, and forces
    const DevicePart<T>& part = s.parts[p];
    const PartOf<T>& view = chunk.parts[p];
    if (part.angular) {
      const size_t a_bytes = 4 * view.channels * sizeof(T), d_bytes = part.n_features * sizeof(T);
      const bool staged = a_bytes + d_bytes <= 48 * 1024;
      launch(gram_backward<T>, per_block, kThreads, a_bytes + (staged ? d_bytes : 0), stream, atoms.header, view.a,
             view.channels, part.axis, part.n_features, chunk.features + part.first_feature, int64_t(s.n_features),
             staged);
    }
    auto backward = part.angular ? contraction_backward<T, 8, true> : contraction_backward<T, 8, false>;
    if (part.lanes == 4) backward = part.angular ? contraction_backward<T, 4, true> : contraction_backward<T, 4, false>;
    launch(backward, dim3(per_warp, view.n_slices), kThreads, 0, stream, atoms, view);
    launch(part.angular ? pair_forces<T, true> : pair_forces<T, false>, per_warp, kThreads, 0, stream, atoms, view);
  }
  if (s.core) launch(core_repulsion, per_warp, kThreads, 0, stream, atoms, s.rcut, s.core, s.atom_excluded);
}

// Everything between the positions on the device and the results on the device.
template <typename T>
void queue_step(Workspace& w, const DeviceStudent<T>& s) {
  const int64_t capacity = w.n_targets + w.image_capacity;
  Header* header = w.header();
  check(cudaMemsetAsync(reinterpret_cast<char*>(header) + kListBytes, 0, sizeof *header - kListBytes, w.stream));
  launch(update_positions, blocks(capacity), kThreads, 0, w.stream, w.n, capacity, w.n_targets, w.device_frame(),
         w.positions(), w.reference.data(), w.place.data(), w.xyz.data(), w.fixed.data(), w.atom_virial(), header);
  Chunk<T> chunk;
  chunk.carve(s, w.chunk_memory.data(), w.chunk, w.capacity);
  for (int64_t first = 0, c = 0; first < w.n; first += w.chunk, ++c) {
    const Atoms atoms{first, std::min(w.chunk, w.n - first), s.n_types, w.capacity, w.type_of.data(), w.rows.data(),
                      w.row_start.data(), w.place.data(), w.xyz.data(), w.fixed.data(), w.atom_energy(),
                      w.atom_virial(), w.device_frame(), header};
    queue_chunk(w, s, chunk, atoms, w.tile_start[c + 1] - w.tile_start[c], w.tiles.data() + w.tile_start[c]);
  }
  const unsigned n_blocks = blocks(w.n_targets, kSumTile);
  launch(collect, n_blocks, kSumThreads, 0, w.stream, header, w.n, w.n_targets, w.atom_energy(), w.atom_virial(),
         w.fixed.data(), w.forces(), w.partial.data());
  launch(collect_header, 1, kSumThreads, 0, w.stream, header, int(n_blocks), w.partial.data());
}

template <typename T>
void run_step(Workspace& w, const DeviceStudent<T>& s) {
  if (w.ledger.moved) w.drop_graph();
  w.ledger.moved = false;
  if (!w.graph) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(w.stream, cudaStreamCaptureModeThreadLocal));
    try {
      queue_step(w, s);
    } catch (...) {
      cudaStreamEndCapture(w.stream, &graph);
      throw;
    }
    const cudaError_t launched = cudaGetLastError(), captured = cudaStreamEndCapture(w.stream, &graph);
    check(launched);
    check(captured);
    const cudaError_t made = cudaGraphInstantiateWithFlags(&w.graph, graph, 0);
    cudaGraphDestroy(graph);
    check(made);
  }
  check(cudaGraphLaunch(w.graph, w.stream));
}

// ---- calls -----------------------------------------------------------------------------------------------------------

template <typename T>
const DeviceStudent<T>& use_student(Workspace& w, const Student& student, uint64_t student_id) {
  if (w.student_id != student_id) {
    w.student_id = ~uint64_t(0);
    w.list = List::none;
    w.drop_graph();
    w.student32.reset();
    w.student64.reset();
    student_of<T>(w) = std::make_unique<DeviceStudent<T>>(student, w.ledger, w.stream);
    w.student_id = student_id;
  }
  return *student_of<T>(w);
}

// Sizes that follow from how many centres of each type there are, n_targets atoms in all.
template <typename T>
void set_atoms(Workspace& w, const DeviceStudent<T>& s, int64_t n, int64_t n_targets, const int32_t* types) {
  w.drop_graph();
  w.list = List::none;
  w.n = n;
  w.n_targets = n_targets;
  w.image_capacity = 0;
  w.types.assign(types, types + n_targets);
  w.type_start.assign(s.n_types + 1, 0);
  for (int64_t i = 0; i < n; ++i) ++w.type_start[types[i] + 1];
  for (int t = 0; t < s.n_types; ++t) w.type_start[t + 1] += w.type_start[t];
  w.upload.reserve(int64_t(kFrameBytes) + 3 * n_targets * int64_t(sizeof(double)));
  w.results.reserve(int64_t(kFrameBytes) + (10 * n + 3 * n_targets) * int64_t(sizeof(double)));
  w.reference.reserve(3 * n_targets);
  w.fixed.reserve(3 * n_targets);
  w.partial.reserve(int64_t(blocks(n_targets, kSumTile)) * kSums);
  w.caller_types.reserve(n);
  copy(w, w.caller_types.data(), types, size_t(n) * sizeof(int), cudaMemcpyHostToDevice);
  w.chunk = 0;  // made with the list
}

// Chunks of centres and the tiles of their matrix products; smaller chunks where memory is short.
template <typename T>
void set_chunks(Workspace& w, const DeviceStudent<T>& s) {
  Chunk<T> layout;
  const int64_t bytes = layout.carve(s, nullptr, 256, w.capacity) / 256 + 1;
  int64_t chunk = std::max<int64_t>(1, std::min({w.n, kChunkCentres, kChunkBytes / bytes}));
  for (;; chunk /= 2) {
    const int64_t n_chunks = (w.n + chunk - 1) / chunk;
    w.chunk = (w.n + n_chunks - 1) / n_chunks;
    try {
      w.chunk_memory.reserve(layout.carve(s, nullptr, w.chunk, w.capacity));
      break;
    } catch (const Failure& failure) {
      if (failure.status != DPSIM_OUT_OF_MEMORY || chunk <= 1024) throw;
    }
  }
  w.drop_graph();
  w.tile_rows = rows_of_tiles<T>(w.chunk);
  std::vector<Tile> tiles;
  w.tile_start.assign(1, 0);
  for (int64_t first = 0; first < w.n; first += w.chunk) {
    const int64_t end = std::min(first + w.chunk, w.n);
    for (int t = 0; t < s.n_types; ++t) {
      const int64_t stop = std::min(w.type_start[t + 1], end);
      for (int64_t i = std::max(first, w.type_start[t]); i < stop; i += w.tile_rows)
        tiles.push_back({t, int(i - first), int(std::min<int64_t>(stop - i, w.tile_rows)), 0});
    }
    w.tile_start.push_back(int64_t(tiles.size()));
  }
  w.tiles.reserve(int64_t(tiles.size()));
  copy(w, w.tiles.data(), tiles.data(), tiles.size() * sizeof(Tile), cudaMemcpyHostToDevice);
  check(cudaStreamSynchronize(w.stream));
}

// Runs the step and brings back the header and, where they are small, all arrays (`bytes` of results) with it.
template <typename T>
Header step(Workspace& w, const DeviceStudent<T>& s, size_t bytes) {
  run_step(w, s);
  Header header;
  copy(w, w.from_device.data(), w.results.data(), bytes <= size_t(kPinned) ? bytes : sizeof header,
       cudaMemcpyDeviceToHost);
  check(cudaStreamSynchronize(w.stream));
  std::memcpy(&header, w.from_device.data(), sizeof header);
  if (header.overflow || header.stale) return header;
  if (header.lost) {
    if (w.list == List::own) w.list = List::none;
    throw Failure{fail(DPSIM_INVALID_ARGUMENT, "`positions` are not finite, or 1e9 cells away; expected real numbers")};
  }
  if (header.full)
    throw Failure{fail(DPSIM_UNSUPPORTED, "an atom has more neighbours than the `sel` of this imported model; the GPU "
                       "does not choose among them. Use the CPU.")};
  if (header.overlap)
    throw Failure{fail(DPSIM_INVALID_ARGUMENT, "overlapping atoms: two (or a periodic image) are less than %g A apart; "
                       "expected atoms at places of their own. Correct `positions` or `cell`.", kOverlap)};
  if (header.unbounded || !std::isfinite(header.energy))
    throw Failure{fail(DPSIM_INVALID_ARGUMENT, "the energy is not finite, or a force between two atoms is beyond %g eV/A: "
                       "they are far outside of what the student knows. Check `positions`; during dynamics, the time "
                       "step.", kForceBound)};
  return header;
}

// Up to where results are wanted.
size_t wanted_bytes(const Workspace& w, const dpsim_results& results) {
  int64_t numbers = 0;
  if (results.atom_energy) numbers = w.n;
  if (results.forces) numbers = w.n + 3 * w.n_targets;
  if (results.atom_virial) numbers = w.n + 3 * w.n_targets + 9 * w.n;
  return kFrameBytes + size_t(numbers) * sizeof(double);
}

void deliver(Workspace& w, const Header& header, size_t bytes, dpsim_results* results) {
  const bool here = bytes <= size_t(kPinned);
  const auto take = [&](double* to, const double* from, int64_t n) {
    if (!to) return;
    if (here)
      std::memcpy(to, w.from_device.data() + (reinterpret_cast<const char*>(from) - w.results.data()),
                  size_t(n) * sizeof(double));
    else
      copy(w, to, from, size_t(n) * sizeof(double), cudaMemcpyDeviceToHost);
  };
  take(results->atom_energy, w.atom_energy(), w.n);
  take(results->forces, w.forces(), 3 * w.n_targets);
  take(results->atom_virial, w.atom_virial(), 9 * w.n);
  if (!here) check(cudaStreamSynchronize(w.stream));
  if (results->energy) *results->energy = header.energy;
  if (results->virial) std::copy(header.virial, header.virial + 9, results->virial);
  results->below_range = int64_t(header.below_range);
  results->n_rebuilds = w.n_rebuilds;
}

// Nothing to compute: every result is zero.
void deliver_nothing(const Workspace& w, int64_t n_targets, dpsim_results* results) {
  if (results->energy) *results->energy = 0;
  if (results->forces) std::fill_n(results->forces, 3 * n_targets, 0.0);
  if (results->virial) std::fill_n(results->virial, 9, 0.0);
  results->below_range = 0;
  results->n_rebuilds = w.n_rebuilds;
}

void check_count(int64_t n) {
  if (n >= kMostAtoms)
    throw Failure{fail(DPSIM_UNSUPPORTED, "%lld atoms; expected below %lld on one GPU", static_cast<long long>(n),
                       static_cast<long long>(kMostAtoms))};
}

template <typename T>
void compute(Workspace& w, const Student& student, uint64_t student_id, int64_t n, const int32_t* types,
             const double* positions, const double* cell, const int32_t* pbc, double skin, dpsim_results* results) {
  const DeviceStudent<T>& s = use_student<T>(w, student, student_id);
  if (n == 0) return deliver_nothing(w, 0, results);
  check_count(n);
  if (w.n != n || w.n_targets != n || w.list == List::engine || !std::equal(types, types + n, w.types.begin()))
    set_atoms(w, s, n, n, types);
  const int32_t open[3] = {0, 0, 0}, *periodic = pbc && cell ? pbc : open;
  if (skin != w.skin || !std::equal(periodic, periodic + 3, w.pbc)) w.list = List::none;
  w.skin = skin;
  std::copy(periodic, periodic + 3, w.pbc);

  // 1. how far atoms may have moved
  complete_cell(cell, periodic, w.frame.cell);
  w.frame.first_type = types[0];
  double way = -1;
  if (w.list == List::own) {
    change_of(w.reference_cell, w.frame.cell, w.frame.map);
    way = allowed_way(w.frame.map, s.rcut, skin);
    w.frame.threshold2 = way * way;
    if (way < 0)
      w.list = List::none;
    else
      send(w, positions, n);
  }
  // 2. the step, after the list where there is none that fits
  const size_t bytes = wanted_bytes(w, *results);
  for (bool built = false;; built = true) {
    if (w.list != List::own) {
      const double cutoff = s.rcut + skin;
      const Grid grid = make_grid(w.frame.cell, periodic, n, positions, cutoff, s.n_types);
      std::copy(w.frame.cell, w.frame.cell + 9, w.reference_cell);
      change_of(w.reference_cell, w.frame.cell, w.frame.map);
      w.frame.threshold2 = 0.25 * skin * skin;
      send(w, positions, n);
      if (w.capacity == 0) w.capacity = kFirstCapacity;
      reserve_list(w, s.n_types, n + w.image_capacity);
      if (w.chunk == 0) set_chunks(w, s);
      queue_build(w, s.n_types, grid, cutoff);
      w.list = List::own;
    }
    const Header header = step(w, s, bytes);
    if (header.overflow) {  // more room, a little to spare
      w.list = List::none;
      if (header.n_images > w.image_capacity) w.image_capacity = header.n_images + header.n_images / 8 + 64, w.drop_graph();
      if (header.longest_row > w.capacity) w.capacity = (header.longest_row + header.longest_row / 16 + 15) / 16 * 16, w.chunk = 0;
    } else if (header.stale) {
      if (built) throw Failure{fail(DPSIM_INTERNAL_ERROR, "a neighbour list was too old when it was new")};
      w.list = List::none;
    } else {
      w.n_rebuilds += built || way < 0;
      return deliver(w, header, bytes, results);
    }
  }
}

template <typename T>
void compute_neighbors(Workspace& w, const Student& student, uint64_t student_id, int64_t n_local, int64_t n_all,
                       const int32_t* types, const double* positions, const int64_t* offsets, const int32_t* neighbors,
                       bool list_changed, int32_t first_type, dpsim_results* results) {
  const bool same = w.student_id == student_id && w.list == List::engine && w.n == n_local && w.n_targets == n_all;
  const DeviceStudent<T>& s = use_student<T>(w, student, student_id);
  if (n_local == 0) return deliver_nothing(w, n_all, results);
  check_count(n_all);
  if (!list_changed && !same)
    throw Failure{fail(DPSIM_INVALID_ARGUMENT, "`list_changed` is 0, but the GPU has no list of these atoms; expected 1")};
  w.frame = {};
  w.frame.threshold2 = INFINITY;
  w.frame.first_type = first_type;
  if (list_changed) {
    if (!same || !std::equal(types, types + n_all, w.types.begin())) set_atoms(w, s, n_local, n_all, types);
    const int before = w.capacity;
    queue_take(w, s.n_types, types, offsets, neighbors);
    if (w.chunk == 0 || w.capacity != before) set_chunks(w, s);
    w.list = List::engine;
    ++w.n_rebuilds;
  }
  send(w, positions, n_all);
  const size_t bytes = wanted_bytes(w, *results);
  const Header header = step(w, s, bytes);
  deliver(w, header, bytes, results);
}

// Runs the body on the workspace's device; turns failures into their status. Where the device failed half-way, the list
// is not relied on again; a step that the caller's atoms are to blame for leaves it as it was.
template <typename Body>
int on_device(Workspace& w, Body body) {
  return guarded([&]() -> int {
    try {
      const CurrentDevice current(w.device);
      body();
      return DPSIM_OK;
    } catch (const Failure& failure) {
      if (failure.status != DPSIM_INVALID_ARGUMENT && failure.status != DPSIM_UNSUPPORTED) w.list = List::none;
      return failure.status;
    } catch (...) {
      w.list = List::none;
      throw;
    }
  });
}

}  // namespace
}  // namespace cuda

// ---- what the C interface calls --------------------------------------------------------------------------------------

struct CudaWorkspace : cuda::Workspace {
  using cuda::Workspace::Workspace;
};

int cuda_workspace_create(int device, CudaWorkspace** workspace) {
  return guarded([&]() -> int {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    if (count == 0) return fail(DPSIM_UNSUPPORTED, "no CUDA device is usable here; use the CPU, or check the driver");
    if (device < 0 || device >= count)
      return fail(DPSIM_INVALID_ARGUMENT, "`device` is %d; expected 0 to %d", device, count - 1);
    try {
      const cuda::CurrentDevice current(device);
      *workspace = new CudaWorkspace(device);
      return DPSIM_OK;
    } catch (const cuda::Failure& failure) {
      return failure.status;
    }
  });
}

void cuda_workspace_free(CudaWorkspace* workspace) {
  if (!workspace) return;
  int before = 0;
  const bool known = cudaGetDevice(&before) == cudaSuccess;
  cudaSetDevice(workspace->device);
  delete workspace;
  if (known) cudaSetDevice(before);
}

int64_t cuda_workspace_bytes(const CudaWorkspace* workspace) { return workspace->ledger.bytes; }

int cuda_student_compute(const Student& student, uint64_t student_id, CudaWorkspace& workspace, int64_t n,
                         const int32_t* types, const double* positions, const double* cell, const int32_t* pbc,
                         double skin, dpsim_results* results) {
  const auto run = student.float64 ? cuda::compute<double> : cuda::compute<float>;
  return cuda::on_device(workspace, [&] {
    run(workspace, student, student_id, n, types, positions, cell, pbc, skin, results);
  });
}

int cuda_student_compute_neighbors(const Student& student, uint64_t student_id, CudaWorkspace& workspace,
                                   int64_t n_local, int64_t n_all, const int32_t* types, const double* positions,
                                   const int64_t* offsets, const int32_t* neighbors, int list_changed,
                                   int32_t first_type, dpsim_results* results) {
  const auto run = student.float64 ? cuda::compute_neighbors<double> : cuda::compute_neighbors<float>;
  return cuda::on_device(workspace, [&] {
    run(workspace, student, student_id, n_local, n_all, types, positions, offsets, neighbors, list_changed != 0,
        first_type, results);
  });
}

}  // namespace dpsim
