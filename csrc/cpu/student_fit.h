// Steps 4 and 5 of a student, from contractions a[c, m] to energies, and their pull-back to dE/da.
//
// Lanes are centres here. A block of centres of one type is cut into tiles of 1 to kFitVectors vectors. An array of n
// rows over a block holds its tiles one after the other, and of each tile (n, vectors, lanes): row k of the tile whose
// first centre is f begins at n f + k vectors lanes. Features are made, used and forgotten chunk by chunk: there may
// be thousands, and the first layer is most of the work.
#pragma once

#include <vector>

#include "student_pack.h"

namespace dpsim {
namespace DPSIM_ISA {

constexpr int kBlockVectors = 6;  // vectors of centres in a block, at most

struct Tile {
  int first, vectors;  // first centre, within the block
};

// Tiles of a block, as even as can be.
template <typename T>
inline std::vector<Tile> tiles_of(int n_atoms) {
  const int vectors = (n_atoms + Simd<T>::lanes - 1) / Simd<T>::lanes;
  const int count = (vectors + kFitVectors - 1) / kFitVectors;
  std::vector<Tile> tiles;
  for (int k = 0, first = 0; k < count; ++k) {
    const int here = vectors * (k + 1) / count - vectors * k / count;
    tiles.push_back({first * Simd<T>::lanes, here});
    first += here;
  }
  return tiles;
}

// What one thread needs for the net of a block.
template <typename T>
struct FitBuffers {
  Buffer<T> a, b;              // a[c, m] and dE/da, n_rows each
  Buffer<T> chunk;             // features, or dE/d(features), of one tile
  Buffer<T> x, y;              // input and output of a layer; dE/d(output) and dE/d(input) on the way back
  Buffer<T> z;                 // dE/d(pre-activation)
  std::vector<Buffer<T>> slopes;  // of each layer: d(output) / d(pre-activation)

  void reserve(const PackedStudent<T>& student) {
    constexpr int atoms = kBlockVectors * Simd<T>::lanes;
    a.reserve(size_t(student.n_rows) * atoms), b.reserve(size_t(student.n_rows) * atoms);
    chunk.reserve(size_t(student.chunk) * kFitVectors * Simd<T>::lanes);
    for (Buffer<T>* buffer : {&x, &y, &z}) buffer->reserve(size_t(student.widest) * atoms);
    for (const PackedNet<T>& net : student.nets) {
      if (slopes.size() < net.layers.size()) slopes.resize(net.layers.size());
      for (size_t l = 0; l < net.layers.size(); ++l) slopes[l].reserve(size_t(net.layers[l].n_out) * atoms);
    }
  }
  int64_t bytes() const {
    int64_t sum = a.bytes() + b.bytes() + chunk.bytes() + x.bytes() + y.bytes() + z.bytes();
    for (const Buffer<T>& slope : slopes) sum += slope.bytes();
    return sum;
  }
};

// ---- products of a packed matrix with rows of centres --------------------------------------------------------------
// use(row, sum): sum[v] = sum_i w[row, i] x[i, v] over k inputs, for the rows of one tile of the matrix.
template <typename T, int NV, typename Use>
inline void multiply_tile(const T* w, int k, const T* x, int rows, Use use) {
  constexpr int L = Simd<T>::lanes;
  vec_t<T> sum[kFitRows][NV];
#pragma GCC unroll 8
  for (int r = 0; r < kFitRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) sum[r][v] = vec_t<T>{};
  for (int i = 0; i < k; ++i, w += kFitRows, x += NV * L) {
    vec_t<T> xv[NV];
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) xv[v] = load(x + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < kFitRows; ++r) {
      const T wr = w[r];
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) sum[r][v] += wr * xv[v];
    }
  }
  if (rows == kFitRows) {
#pragma GCC unroll 8
    for (int r = 0; r < kFitRows; ++r) use(r, sum[r]);
  } else {
    for (int r = 0; r < rows; ++r) use(r, sum[r]);
  }
}

// The same for matrix tiles `begin` to `end` and k inputs from `first` on; rows count from the first of the matrix.
template <typename T, int NV, typename Use>
inline void multiply(const PackedMatrix<T>& w, int first, int begin, int end, const T* x, Use use) {
  const int k = std::min(w.chunk, w.n_in - first);
  for (int tile = begin; tile < end; ++tile) {
    const int row = tile * kFitRows;
    multiply_tile<T, NV>(w.tile(first, tile), k, x, std::min(kFitRows, w.n_out - row),
                         [&](int r, const vec_t<T>* sum) { use(row + r, sum); });
  }
}

// ---- 4. features ---------------------------------------------------------------------------------------------------
// The features of one chunk and tile: rows of x from rows of a.
template <typename T, int NV>
void features(const PackedStudent<T>& student, const std::vector<FeatureRun>& runs, const T* a, T* x) {
  constexpr int W = NV * Simd<T>::lanes, L = Simd<T>::lanes;
  for (const FeatureRun& run : runs) {
    const PackedPart<T>& part = student.parts[run.part];
    const T* rows = a + part.first_row * W;
    const int next = part.channels * W;  // to the next component
    if (!part.angular) {
      std::memcpy(x, rows + run.m * W, size_t(run.count) * W * sizeof(T)), x += run.count * W;
      continue;
    }
    vec_t<T> ap[4][NV];
    for (int c = 0; c < 4; ++c)
      for (int v = 0; v < NV; ++v) ap[c][v] = load(rows + c * next + run.p * W + v * L);
    const T* am = rows + run.m * W;
    for (int k = 0; k < run.count; ++k, am += W, x += W)
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) {
        const vec_t<T> lower = ap[0][v] * load(am + v * L) + ap[1][v] * load(am + next + v * L);
        const vec_t<T> upper = ap[2][v] * load(am + 2 * next + v * L) + ap[3][v] * load(am + 3 * next + v * L);
        store(x + v * L, lower + upper);
      }
  }
}

// Pull-back: b += dE/da of the features of one chunk and tile, from x = dE/d(features).
template <typename T, int NV>
void features_back(const PackedStudent<T>& student, const std::vector<FeatureRun>& runs, const T* a, const T* x, T* b) {
  constexpr int W = NV * Simd<T>::lanes, L = Simd<T>::lanes;
  for (const FeatureRun& run : runs) {
    const PackedPart<T>& part = student.parts[run.part];
    const int next = part.channels * W, p = part.first_row * W + run.p * W, m = part.first_row * W + run.m * W;
    if (!part.angular) {
      for (int k = 0; k < run.count * W; k += L) store(b + m + k, load(b + m + k) + load(x + k));
      x += run.count * W;
      continue;
    }
    for (int v = 0; v < NV; ++v) {
      vec_t<T> ap[4], bp[4] = {};
      for (int c = 0; c < 4; ++c) ap[c] = load(a + c * next + p + v * L);
      for (int k = 0; k < run.count; ++k) {
        const vec_t<T> xk = load(x + k * W + v * L);
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          const int at = c * next + m + k * W + v * L;
          bp[c] += xk * load(a + at);
          store(b + at, load(b + at) + xk * ap[c]);
        }
      }
      for (int c = 0; c < 4; ++c) store(b + c * next + p + v * L, load(b + c * next + p + v * L) + bp[c]);
    }
    x += run.count * W;
  }
}

// ---- 5. fitting net ------------------------------------------------------------------------------------------------
// y = act(z + bias) idt + residual of x, and its slope in z, for one row of one tile.
template <typename T, int NV>
inline void activate_row(const PackedStudentLayer<T>& layer, int row, const vec_t<T>* z, const T* x, T* y, T* slope) {
  constexpr int L = Simd<T>::lanes, W = NV * L;
  const T bias = layer.bias[row], idt = layer.idt[row];
  const T* skipped = x + (row < layer.n_in ? row : row - layer.n_in) * W;
#pragma GCC unroll 3
  for (int v = 0; v < NV; ++v) {
    const vec_t<T> input = z[v] + bias;
    const Activated<T> f =
        layer.activation == Activation::tanh ? activate_tanh<T>(input) : activate<T>(layer.activation, input);
    store(slope + row * W + v * L, f.slope * idt);
    store(y + row * W + v * L, layer.residual ? f.y * idt + load(skipped + v * L) : f.y * idt);
  }
}

// The share of one chunk of features in the first layer, for one tile; after the last chunk, the layer's output.
template <typename T, int NV>
void fit_first_layer(const PackedStudent<T>& student, const PackedStudentLayer<T>& layer, int chunk, int first_atom,
                     FitBuffers<T>& buffers) {
  constexpr int L = Simd<T>::lanes, W = NV * L;
  const int first = chunk * student.chunk, n_out = layer.n_out;
  T *x = buffers.chunk.data(), *y = buffers.y.data() + n_out * first_atom;
  T* slope = buffers.slopes[0].data() + n_out * first_atom;
  features<T, NV>(student, student.chunks[chunk], buffers.a.data() + student.n_rows * first_atom, x);
  const bool is_last = chunk + 1 == int(student.chunks.size());
  multiply<T, NV>(layer.forward, first, 0, layer.forward.tiles, x, [&](int row, const vec_t<T>* sum) {
    vec_t<T> z[NV];
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) z[v] = chunk ? load(y + row * W + v * L) + sum[v] : sum[v];
    if (is_last) return activate_row<T, NV>(layer, row, z, x, y, slope);
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) store(y + row * W + v * L, z[v]);
  });
}

// Any other layer, for one tile.
template <typename T, int NV>
void fit_layer(const PackedStudentLayer<T>& layer, int first_atom, const T* x, T* y, T* slope) {
  x += layer.n_in * first_atom, y += layer.n_out * first_atom, slope += layer.n_out * first_atom;
  multiply<T, NV>(layer.forward, 0, 0, layer.forward.tiles, x, [&](int row, const vec_t<T>* sum) {
    activate_row<T, NV>(layer, row, sum, x, y, slope);
  });
}

// energies = out_bias + sum_m out_weight[m] x[m, :], and its gradient in x.
template <typename T, int NV>
void fit_output(const PackedNet<T>& net, int first_atom, const T* x, T* grad, double* energies) {
  constexpr int L = Simd<T>::lanes, W = NV * L;
  const int n = int(net.out_weight.size());
  x += n * first_atom, grad += n * first_atom, energies += first_atom;
  std::fill(energies, energies + W, net.out_bias);
  for (int first = 0; first < n; first += 16) {  // short sums in T, then in double
    vec_t<T> sum[NV] = {};
    for (int m = first; m < std::min(n, first + 16); ++m)
      for (int v = 0; v < NV; ++v) {
        sum[v] += net.out_weight[m] * load(x + m * W + v * L);
        store(grad + m * W + v * L, vec_t<T>{} + net.out_weight[m]);
      }
    for (int v = 0; v < NV; ++v)
      for (int l = 0; l < L; ++l) energies[v * L + l] += double(sum[v][l]);
  }
}

// z = grad slope, the gradient in the pre-activation of a layer.
template <typename T, int NV>
inline T* fit_slope(int n_out, int first_atom, const T* grad, const T* slope, T* z) {
  constexpr int W = NV * Simd<T>::lanes;
  const int at = n_out * first_atom;
  for (int k = 0; k < n_out * W; k += Simd<T>::lanes) store(z + at + k, load(grad + at + k) * load(slope + at + k));
  return z + at;
}

// grad_in = w z + residual of grad, for matrix tiles `begin` to `end`; row k goes to grad_in row k - skip.
template <typename T, int NV>
inline void fit_back(const PackedStudentLayer<T>& layer, int begin, int end, int skip, const T* grad, const T* z,
                     T* grad_in) {
  constexpr int L = Simd<T>::lanes, W = NV * L;
  multiply<T, NV>(layer.backward, 0, begin, end, z, [&](int row, const vec_t<T>* sum) {
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) {
      vec_t<T> g = sum[v];
      for (int copy = 0; copy < layer.residual; ++copy) g += load(grad + (copy * layer.n_in + row) * W + v * L);
      store(grad_in + (row - skip) * W + v * L, g);
    }
  });
}

// Pull-back of fit_layer.
template <typename T, int NV>
void fit_layer_back(const PackedStudentLayer<T>& layer, int first_atom, const T* grad, const T* slope, T* z,
                    T* grad_in) {
  z = fit_slope<T, NV>(layer.n_out, first_atom, grad, slope, z);
  fit_back<T, NV>(layer, 0, layer.backward.tiles, 0, grad + layer.n_out * first_atom, z,
                  grad_in + layer.n_in * first_atom);
}

// One chunk of features on the way back: dE/d(features), then its share of dE/da.
template <typename T, int NV>
void fit_first_layer_back(const PackedStudent<T>& student, const PackedStudentLayer<T>& layer, int chunk,
                          int first_atom, const T* grad, FitBuffers<T>& buffers) {
  const int first = chunk * student.chunk, count = std::min(student.chunk, student.n_features - first);
  T* z = buffers.z.data();
  z = chunk ? z + layer.n_out * first_atom
            : fit_slope<T, NV>(layer.n_out, first_atom, grad, buffers.slopes[0].data(), z);
  T* x = buffers.chunk.data();
  fit_back<T, NV>(layer, first / kFitRows, (first + count + kFitRows - 1) / kFitRows, first,
                  grad + layer.n_out * first_atom, z, x);
  features_back<T, NV>(student, student.chunks[chunk], buffers.a.data() + student.n_rows * first_atom, x,
                       buffers.b.data() + student.n_rows * first_atom);
}

// call(width) for each tile, with its vectors as a compile-time constant.
template <typename Call>
inline void for_tiles(const std::vector<Tile>& tiles, Call call) {
  for (const Tile& tile : tiles) {
    if (tile.vectors == 3) call(std::integral_constant<int, 3>(), tile.first);
    else if (tile.vectors == 2) call(std::integral_constant<int, 2>(), tile.first);
    else call(std::integral_constant<int, 1>(), tile.first);
  }
}

// Steps 4 and 5 for a block: reads buffers.a; writes the energies of its centres (biases included) and buffers.b.
template <typename T>
void fit_block(const PackedStudent<T>& student, int type, const std::vector<Tile>& tiles, FitBuffers<T>& buffers,
               double* energies) {
  const PackedNet<T>& net = student.nets[type];
  const int depth = int(net.layers.size()), n_chunks = int(student.chunks.size());
  T *x = buffers.x.data(), *y = buffers.y.data();
  for (int chunk = 0; chunk < n_chunks; ++chunk)
    for_tiles(tiles, [&](auto vectors, int first) {
      fit_first_layer<T, vectors()>(student, net.layers[0], chunk, first, buffers);
    });
  for (int l = 1; l < depth; ++l) {
    std::swap(x, y);
    for_tiles(tiles, [&](auto vectors, int first) {
      fit_layer<T, vectors()>(net.layers[l], first, x, y, buffers.slopes[l].data());
    });
  }
  for_tiles(tiles, [&](auto vectors, int first) { fit_output<T, vectors()>(net, first, y, x, energies); });
  for (int l = depth - 1; l > 0; --l) {  // x is dE/d(output) of layer l
    for_tiles(tiles, [&](auto vectors, int first) {
      fit_layer_back<T, vectors()>(net.layers[l], first, x, buffers.slopes[l].data(), buffers.z.data(), y);
    });
    std::swap(x, y);
  }
  const int atoms = (tiles.back().first + tiles.back().vectors * Simd<T>::lanes);
  std::memset(buffers.b.data(), 0, size_t(student.n_rows) * atoms * sizeof(T));
  for (int chunk = 0; chunk < n_chunks; ++chunk)
    for_tiles(tiles, [&](auto vectors, int first) {
      fit_first_layer_back<T, vectors()>(student, net.layers[0], chunk, first, x, buffers);
    });
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
