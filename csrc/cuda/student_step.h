// The step of a student on a GPU: chunks of centres, which kernels run on them, captured once as a CUDA graph.
#pragma once

#include "student_fitting.cuh"
#include "student_workspace.h"

namespace dpsim::cuda {

#if defined(DPSIM_CUDA_EMULATION)  // small, so that small tests meet every case
constexpr int64_t kChunkCentres = 16, kLargeTiles = 10, kMediumTiles = 7;
#else
constexpr int64_t kChunkCentres = 1 << 17;                   // at most, in a chunk
constexpr int64_t kLargeTiles = 16384, kMediumTiles = 2048;  // chunks from so many centres on use tiles of 128, 64
#endif
constexpr int64_t kChunkBytes = int64_t(2) << 30;

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
inline void launch_dense(Workspace& w, bool forward, int64_t n_tiles, const Tile* tiles, const Layer<float>& layer) {
  if (w.tile_rows == 128)
    launch_tiles<float, 128, 128, 8, 8, 8>(w, forward, n_tiles, tiles, layer);
  else if (w.tile_rows == 64)
    launch_tiles<float, 64, 64, 16, 4, 4>(w, forward, n_tiles, tiles, layer);
  else
    launch_tiles<float, 32, 32, 32, 2, 2>(w, forward, n_tiles, tiles, layer);
}
inline void launch_dense(Workspace& w, bool forward, int64_t n_tiles, const Tile* tiles, const Layer<double>& layer) {
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

}  // namespace dpsim::cuda
