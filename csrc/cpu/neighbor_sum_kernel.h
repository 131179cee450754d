// Sums of outer products over neighbours, and their two transposes. CPU, any instruction set (see isa.h).
//
// Mirrors dpsim/kernels/neighbor_sum.py. Derivatives of  sum_m sum_k sum_c h[m, k] x[j_m, c] z[i_m, k, c]  over edges m
// from centre i to row j of x (row m itself where there is no index):
//   neighbor_sum     z[i, k, c] = sum_{m of i} h[m, k] x[j, c]
//   neighbor_dot     h[m, k]    = sum_c z[i, k, c] x[j, c]
//   neighbor_spread  x[j, c]    = sum_{m to j} sum_k h[m, k] z[i, k, c]
// With a weight w, z[i, k, c] is w[k, c] z[i, c]: the sum is z[i, c] = sum_k w[k, c] sum_m .., and its derivative
//   neighbor_weight  w[k, c]    = sum_i z[i, c] sum_{m of i} h[m, k] x[j, c]
// A thread owns whole centres; sums over rows j are made as scatter.h says. The result is the same from run to run for
// one number of threads.
#pragma once

#include "gemm.h"
#include "parts.h"
#include "scatter.h"

namespace dpsim {
namespace DPSIM_ISA {

constexpr int kComponents = 4;  // k at a time, in registers

struct Neighbors {
  const int64_t *offsets, *index;  // index may be null
  int K, C;
  int64_t row(int64_t m) const { return index ? index[m] : m; }
};

// call(k, count) for groups of k, with count as a compile-time constant.
template <typename Call>
inline void for_components(int n, Call call) {
  int k = 0;
  for (; k + kComponents <= n; k += kComponents) call(k, std::integral_constant<int, kComponents>());
  if (n - k == 3) call(k, std::integral_constant<int, 3>());
  if (n - k == 2) call(k, std::integral_constant<int, 2>());
  if (n - k == 1) call(k, std::integral_constant<int, 1>());
}

// visit(c, vectors, lanes) for groups of columns: as many whole vectors as a register tile has, then single ones.
template <typename T, typename F>
inline void for_column_groups(int n, F visit) {
  constexpr int wide = kTileVectors * Simd<T>::lanes;
  const int whole = n / wide * wide;
  for (int c = 0; c < whole; c += wide) visit(c, std::integral_constant<int, kTileVectors>(), WholeVector<T>());
  for_vectors<T>(n - whole, [&](int c, auto lanes) { visit(whole + c, std::integral_constant<int, 1>(), lanes); });
}

// put(a, c, the sum over the edges m of i of h[m, k + a] x[j, c ..]) for a < KR and NV vectors of columns from c on.
template <typename T, int KR, int NV, typename Lanes, typename Put>
inline void sum_tile(const Neighbors& g, int64_t i, int k, int c, Lanes lanes, const T* h, const T* x, Put put) {
  constexpr int L = Simd<T>::lanes;
  vec_t<T> sum[KR][NV];
#pragma GCC unroll 4
  for (int a = 0; a < KR; ++a)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[a][v] = vec_t<T>{};
  for (int64_t m = g.offsets[i]; m < g.offsets[i + 1]; ++m) {
    const T *row = x + g.row(m) * g.C + c, *hm = h + m * g.K + k;
    vec_t<T> xv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) xv[v] = lanes.load(row + v * L);
#pragma GCC unroll 4
    for (int a = 0; a < KR; ++a)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[a][v] += hm[a] * xv[v];
  }
#pragma GCC unroll 4
  for (int a = 0; a < KR; ++a)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) put(k + a, c + v * L, sum[a][v]);
}

// put(i, k, c, lanes, sum) for all sums of the centres begin .. end.
template <typename T, typename Put>
inline void for_sums(const Neighbors& g, int64_t begin, int64_t end, const T* h, const T* x, Put put) {
  for (int64_t i = begin; i < end; ++i)
    for_components(g.K, [&](int k, auto count) {
      for_column_groups<T>(g.C, [&](int c, auto vectors, auto lanes) {
        sum_tile<T, count(), vectors()>(g, i, k, c, lanes, h, x,
                                        [&](int ka, int cv, vec_t<T> sum) { put(i, ka, cv, lanes, sum); });
      });
    });
}

template <typename T>
void neighbor_sum(int64_t n_centers, const int64_t* offsets, int64_t, const int64_t* index, int K, int C, const T* h,
                  const T* x, const T* w, T* z, int threads) {
  const Neighbors g{offsets, index, K, C};
  for_parts(n_centers, offsets, threads, [&](int, int64_t begin, int64_t end) {
    if (!w) {
      for_sums<T>(g, begin, end, h, x, [&](int64_t i, int k, int c, auto lanes, vec_t<T> sum) {
        lanes.store(z + (i * K + k) * C + c, sum);
      });
      return;
    }
    std::fill(z + begin * C, z + end * C, T(0));
    for_sums<T>(g, begin, end, h, x, [&](int64_t i, int k, int c, auto lanes, vec_t<T> sum) {
      T* to = z + i * C + c;
      lanes.store(to, lanes.load(to) + lanes.load(w + k * C + c) * sum);
    });
  });
}

template <typename T>
void neighbor_weight(int64_t n_centers, const int64_t* offsets, int64_t, const int64_t* index, int K, int C, const T* h,
                     const T* x, const T* z, T* w, int threads) {
  const Neighbors g{offsets, index, K, C};
  std::vector<Buffer<T>> sums(std::max(1, threads));  // of each thread, added up in their order
  for_parts(n_centers, offsets, threads, [&](int part, int64_t begin, int64_t end) {
    T* own = (sums[part].zeros(size_t(K) * C), sums[part].data());
    for_sums<T>(g, begin, end, h, x, [&](int64_t i, int k, int c, auto lanes, vec_t<T> sum) {
      T* to = own + k * C + c;
      lanes.store(to, lanes.load(to) + lanes.load(z + i * C + c) * sum);
    });
  });
  std::fill(w, w + int64_t(K) * C, T(0));
  for (const Buffer<T>& own : sums)
    for (int64_t c = 0; c < int64_t(K) * C; ++c) w[c] += own[c];
}

// The rows z[i, k, :] of one centre after the other: as they lie, or w[k, c] z[i, c].
template <typename T>
class CenterRows {
 public:
  CenterRows(const Neighbors& g, const T* z, const T* w) : g_(g), z_(z), w_(w) {
    if (w) rows_.reserve(size_t(g.K) * g.C);
  }
  const T* of(int64_t i) {
    if (!w_) return z_ + i * g_.K * g_.C;
    if (i != center_)
      for (int k = 0; k < g_.K; ++k)
        for (int c = 0; c < g_.C; ++c) rows_[k * g_.C + c] = w_[k * g_.C + c] * z_[i * g_.C + c];
    center_ = i;
    return rows_.data();
  }

 private:
  const Neighbors& g_;
  const T *z_, *w_;
  Buffer<T> rows_;
  int64_t center_ = -1;
};

// sum[a] = the vectors whose lanes add up to h[m, k + a], of rows z_i from component k on and a row x_j.
template <typename T, int KR>
inline void dot_tile(int C, const T* z, const T* x, T* sum) {
  vec_t<T> acc[KR];
#pragma GCC unroll 4
  for (int a = 0; a < KR; ++a) acc[a] = vec_t<T>{};
  for_vectors<T>(C, [&](int c, auto lanes) {
    const vec_t<T> xv = lanes.load(x + c);
    for (int a = 0; a < KR; ++a) acc[a] += lanes.load(z + a * C + c) * xv;
  });
#pragma GCC unroll 4
  for (int a = 0; a < KR; ++a) store(sum + a * Simd<T>::lanes, acc[a]);
}

template <typename T>
void neighbor_dot(int64_t n_centers, const int64_t* offsets, int64_t, const int64_t* index, int K, int C, const T* x,
                  const T* z, const T* w, T* h, int threads) {
  const Neighbors g{offsets, index, K, C};
  constexpr int L = Simd<T>::lanes, kGroup = 16;  // edges whose sums over lanes are made together
  for_parts(n_centers, offsets, threads, [&](int, int64_t begin, int64_t end) {
    CenterRows<T> rows_of(g, z, w);
    Buffer<T> sums;  // vectors
    sums.zeros(size_t(padded(kGroup * K, L)) * L);
    int64_t center = begin;
    for (int64_t first = offsets[begin]; first < offsets[end]; first += kGroup) {
      const int rows = int(std::min<int64_t>(kGroup, offsets[end] - first));
      for_rows(first, rows, offsets, center, [&](int r, int64_t m, int64_t i) {
        const T* zi = rows_of.of(i);
        for_components(K, [&](int k, auto count) {
          dot_tile<T, count()>(C, zi + k * C, x + g.row(m) * C, sums.data() + size_t(r * K + k) * L);
        });
      });
      sums_of_lanes<T>(reinterpret_cast<vec_t<T>*>(sums.data()), rows * K, h + first * K);
    }
  });
}

// to[c .. c + NV vectors] (+)= sum_k h_m[k] z_i[k, c ..]
template <typename T, int NV, typename Lanes>
inline void spread_tile(const Neighbors& g, int c, Lanes lanes, const T* hm, const T* zi, T* to) {
  constexpr int L = Simd<T>::lanes;
  vec_t<T> sum[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) sum[v] = g.index ? lanes.load(to + c + v * L) : vec_t<T>{};
  for (int k = 0; k < g.K; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[v] += hm[k] * lanes.load(zi + k * g.C + c + v * L);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) lanes.store(to + c + v * L, sum[v]);
}

template <typename T>
void neighbor_spread(int64_t n_centers, const int64_t* offsets, int64_t n_rows, const int64_t* index, int K, int C,
                     const T* h, const T* z, const T* w, T* x, int threads) {
  const Neighbors g{offsets, index, K, C};
  ScatterSums<T> sums(index, n_rows, C, index ? x : nullptr, threads);
  for_parts(n_centers, offsets, threads, [&](int part, int64_t begin, int64_t end) {
    CenterRows<T> rows_of(g, z, w);
    T* own = index ? sums.rows(part, offsets[begin], offsets[end]) : x;
    int64_t center = begin;
    for_rows(offsets[begin], offsets[end] - offsets[begin], offsets, center, [&](int, int64_t m, int64_t i) {
      const T* zi = rows_of.of(i);
      for_column_groups<T>(C, [&](int c, auto vectors, auto lanes) {
        spread_tile<T, vectors()>(g, c, lanes, h + m * K, zi, own + g.row(m) * C);
      });
    });
  });
  sums.add_up();
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
