// Step 5 of a student on the device: the fitting nets, forward and back, as tiled matrix products over centres of one
// type with the activation in the epilogue. Deterministic: every sum is made in one thread, in ascending order.
#pragma once

#include "student_kernels.cuh"

namespace dpsim::cuda {

// y = act(z) and its slope, as dpsim/kernels/activation.py.
template <typename T>
__device__ inline void activate(Activation activation, T z, T& y, T& slope) {
  constexpr T c = T(0.79788456080286535588), cubic = T(0.044715);
  switch (activation) {
    case Activation::tanh:
      y = std::tanh(z);
      slope = T(1) - y * y;
      break;
    case Activation::gelu:
    case Activation::gelu_tf: {
      const T t = std::tanh(c * (z + cubic * z * z * z));
      y = T(0.5) * z * (T(1) + t);
      slope = T(0.5) * (T(1) + t) + T(0.5) * z * (T(1) - t * t) * c * (T(1) + 3 * cubic * z * z);
      break;
    }
    case Activation::relu:
      y = z > T(0) ? z : T(0);
      slope = z > T(0) ? T(1) : T(0);
      break;
    case Activation::relu6:
      y = z > T(0) ? (z < T(6) ? z : T(6)) : T(0);
      slope = z > T(0) && z < T(6) ? T(1) : T(0);
      break;
    case Activation::softplus: {  // log(1 + e^z) = max(z, 0) + log(1 + e^-|z|)
      const T e = std::exp(z < T(0) ? z : -z);
      y = (z > T(0) ? z : T(0)) + std::log1p(e);
      slope = (z < T(0) ? e : T(1)) / (T(1) + e);
      break;
    }
    case Activation::sigmoid:
      y = T(1) / (T(1) + std::exp(-z));
      slope = y * (T(1) - y);
      break;
    case Activation::silu: {
      const T s = T(1) / (T(1) + std::exp(-z));
      y = z * s;
      slope = s * (T(1) + z * (T(1) - s));
      break;
    }
    case Activation::linear:
      y = z;
      slope = T(1);
      break;
  }
}

// Rows of a product that share a type, and so its weights.
struct Tile {
  int type, first, rows, reserved;  // first: in the chunk
};

// One layer for the centres of a chunk. Rows of in, out, slope belong to centres.
//   forward:  out = act(in W + b) idt + `residual` copies of in;  slope = act' idt
//   backward: in = dE/d(out of forward);  out = (in slope) W^T + the copies of in folded
template <typename T>
struct Layer {
  const T *in, *weight, *bias, *idt;  // weight: (types, k, n); backward: the transpose of forward's
  T *out, *slope;
  int in_stride, out_stride, slope_stride, k, n, residual;  // k numbers in, n out
  Activation activation;
};

// V consecutive numbers of shared memory, read at once.
template <typename T, int V>
__device__ inline void read_pack(const T* from, T* to) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = pack.v[i];
}

// Block per tile of BM centres (blockIdx.y) and BN outputs (blockIdx.x); thread per TM x TN of them. Panels of BK
// inputs go through shared memory, two of them, so that one is loaded while the other is multiplied. The sum over
// inputs is in ascending order. Sums are made in T with fused multiply-adds: no reduced-precision matrix units.
template <typename T, int BM, int BN, int BK, int TM, int TN, bool FORWARD>
__global__ void __launch_bounds__(BM / TM * (BN / TN), TM* TN >= 64 ? 2 : 1)
    dense_layer(const Header* header, const Tile* tiles, Layer<T> layer) {
  constexpr int kBlock = BM / TM * (BN / TN), kA = BM * BK / kBlock, kB = BN * BK / kBlock;
  constexpr int VM = TM < 4 ? TM : 4, VN = TN < 4 ? TN : 4;  // a thread's rows lie in runs of VM, TM / VM of them
  static_assert(BM * BK % kBlock == 0 && BN * BK % kBlock == 0 && kBlock % kWarp == 0, "uneven tile");
  alignas(16) __shared__ T a_panel[2][BK][BM + 4];
  alignas(16) __shared__ T b_panel[2][BK][BN + 4];
  if (skip(header)) return;
  const Tile tile = tiles[blockIdx.y];
  const int thread = threadIdx.x, tm = thread / (BN / TN), tn = thread % (BN / TN), n0 = blockIdx.x * BN;
  const int in_stride = layer.in_stride, slope_stride = layer.slope_stride;  // a tile's numbers: below 2^31
  const T* in = layer.in + int64_t(tile.first) * in_stride;
  T* slope = layer.slope + int64_t(tile.first) * slope_stride;
  const T* weight = layer.weight + int64_t(tile.type) * layer.k * layer.n;
  T a_next[kA], b_next[kB];
  const auto load = [&](int k0) {
#pragma unroll
    for (int e = 0; e < kA; ++e) {
      const int k = k0 + (thread + e * kBlock) % BK, row = (thread + e * kBlock) / BK;
      const bool there = k < layer.k && row < tile.rows;
      a_next[e] = there ? in[row * in_stride + k] : T(0);
      if (!FORWARD && there) a_next[e] *= slope[row * slope_stride + k];
    }
#pragma unroll
    for (int e = 0; e < kB; ++e) {
      const int k = k0 + (thread + e * kBlock) / BN, n = n0 + (thread + e * kBlock) % BN;
      b_next[e] = k < layer.k && n < layer.n ? weight[k * layer.n + n] : T(0);
    }
  };
  const auto store = [&](int side) {
#pragma unroll
    for (int e = 0; e < kA; ++e) a_panel[side][(thread + e * kBlock) % BK][(thread + e * kBlock) / BK] = a_next[e];
#pragma unroll
    for (int e = 0; e < kB; ++e) b_panel[side][(thread + e * kBlock) / BN][(thread + e * kBlock) % BN] = b_next[e];
  };
  T acc[TM][TN] = {};
  load(0);
  store(0);
  __syncthreads();
  int side = 0;
  for (int k0 = 0; k0 < layer.k; k0 += BK, side ^= 1) {
    const bool more = k0 + BK < layer.k;
    if (more) load(k0 + BK);
#pragma unroll
    for (int k = 0; k < BK; ++k) {
      T a[TM], b[TN];
#pragma unroll
      for (int i = 0; i < TM; i += VM) read_pack<T, VM>(&a_panel[side][k][i / VM * (BM / (TM / VM)) + tm * VM], a + i);
#pragma unroll
      for (int j = 0; j < TN; j += VN) read_pack<T, VN>(&b_panel[side][k][j / VN * (BN / (TN / VN)) + tn * VN], b + j);
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) acc[i][j] += a[i] * b[j];
    }
    if (more) store(side ^ 1);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const int row = i / VM * (BM / (TM / VM)) + tm * VM + i % VM;
    if (row >= tile.rows) continue;
    const T* x = in + row * in_stride;
    T* out = layer.out + int64_t(tile.first + row) * layer.out_stride;
#pragma unroll
    for (int j = 0; j < TN; ++j) {
      const int n = n0 + j / VN * (BN / (TN / VN)) + tn * VN + j % VN;
      if (n >= layer.n) continue;
      if (FORWARD) {
        T y, dy;
        const int64_t at = int64_t(tile.type) * layer.n + n;
        activate(layer.activation, acc[i][j] + layer.bias[at], y, dy);
        y *= layer.idt[at];
        if (layer.residual) y += x[n < layer.k ? n : n - layer.k];
        out[n] = y;
        slope[row * slope_stride + n] = dy * layer.idt[at];
      } else {
        T dx = acc[i][j];
        if (layer.residual) dx += x[n];
        if (layer.residual == 2) dx += x[n + layer.n];
        out[n] = dx;
      }
    }
  }
}

// Warp per centre: E_i = x . out + bias; replaces x by dE_i/dx. The sum is made in double.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    energy_head(Atoms atoms, T* x, int64_t stride, int n, const T* out_weight, const double* out_bias,
                const unsigned char* atom_excluded) {
  const int64_t c = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (c >= atoms.count || skip(atoms.header)) return;
  const int type = atoms.type_of[atoms.first + c], lane = threadIdx.x % kWarp;
  const bool silent = atom_excluded[type];
  double sum = 0;
  for (int m = lane; m < n; m += kWarp) {
    const T w = out_weight[type * n + m];
    sum += double(w) * double(x[c * stride + m]);
    x[c * stride + m] = silent ? T(0) : w;
  }
  sum = sum_lanes(sum);
  if (lane == 0) atoms.atom_energy[atoms.place[atoms.first + c].source] = silent ? 0.0 : sum + out_bias[type];
}

}  // namespace dpsim::cuda
