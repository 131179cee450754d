// Small matrix products, row-major, of matrices that stay in cache. CPU, any instruction set (see isa.h).
#pragma once

#include "simd.h"

namespace dpsim {
namespace DPSIM_ISA {

// c (rows x NV vectors) = a (rows x k, leading dimension lda) times b (k x NV vectors, leading dimension ldb).
template <typename T, int MR, int NV>
inline void tile(int k, const T* a, int lda, const T* b, int ldb, T* c, int ldc) {
  constexpr int L = Simd<T>::lanes;
  vec_t<T> acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = vec_t<T>{};
  for (int i = 0; i < k; ++i) {
    vec_t<T> bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) bv[v] = load(b + int64_t(i) * ldb + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const T x = a[int64_t(r) * lda + i];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] += x * bv[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(c + int64_t(r) * ldc + v * L, acc[r][v]);
}

// c += a^T b: a (k x rows), so that c (rows x NV vectors) sums over k rows.
template <typename T, int MR, int NV>
inline void tile_transposed(int k, const T* a, int lda, const T* b, int ldb, T* c, int ldc) {
  constexpr int L = Simd<T>::lanes;
  vec_t<T> acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = load(c + int64_t(r) * ldc + v * L);
  for (int i = 0; i < k; ++i) {
    vec_t<T> bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) bv[v] = load(b + int64_t(i) * ldb + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const T x = a[int64_t(i) * lda + r];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] += x * bv[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(c + int64_t(r) * ldc + v * L, acc[r][v]);
}

constexpr int kTileRows = 6;
constexpr int kTileVectors = DPSIM_VECTOR_BYTES == 64 ? 4 : 2;

template <typename T, int NV>
inline void gemm_columns(int rows, int k, const T* a, int lda, const T* b, int ldb, T* c, int ldc) {
  for (int r = 0; r < rows; r += kTileRows)
    tile<T, kTileRows, NV>(k, a + int64_t(r) * lda, lda, b, ldb, c + int64_t(r) * ldc, ldc);
}

// c = a b; rows is a multiple of kTileRows, n (= ldb) a multiple of the lanes.
template <typename T>
inline void gemm(int rows, int n, int k, const T* a, int lda, const T* b, T* c, int ldc) {
  constexpr int L = Simd<T>::lanes;
  for (int j = 0; j < n;) {
    const int left = (n - j) / L;
    if (left >= 4 && kTileVectors >= 4) {
      gemm_columns<T, kTileVectors>(rows, k, a, lda, b + j, n, c + j, ldc), j += kTileVectors * L;
    } else if (left >= 3 && kTileVectors >= 4) {
      gemm_columns<T, 3>(rows, k, a, lda, b + j, n, c + j, ldc), j += 3 * L;
    } else if (left >= 2) {
      gemm_columns<T, 2>(rows, k, a, lda, b + j, n, c + j, ldc), j += 2 * L;
    } else {
      gemm_columns<T, 1>(rows, k, a, lda, b + j, n, c + j, ldc), j += L;
    }
  }
}

template <typename T, int NV>
inline void gemm_transposed_columns(int m, int k, const T* a, int lda, const T* b, int ldb, T* c, int ldc) {
  int r = 0;
  for (; r + 4 <= m; r += 4) tile_transposed<T, 4, NV>(k, a + r, lda, b, ldb, c + int64_t(r) * ldc, ldc);
  for (; r < m; ++r) tile_transposed<T, 1, NV>(k, a + r, lda, b, ldb, c + int64_t(r) * ldc, ldc);
}

// c (m x n) += a^T b with a (k x m), b (k x n); n (= ldc) a multiple of the lanes.
template <typename T>
inline void gemm_transposed(int m, int n, int k, const T* a, int lda, const T* b, int ldb, T* c) {
  constexpr int L = Simd<T>::lanes;
  for (int j = 0; j < n;) {
    const int left = (n - j) / L;
    if (left >= 4 && kTileVectors >= 4) {
      gemm_transposed_columns<T, kTileVectors>(m, k, a, lda, b + j, ldb, c + j, n), j += kTileVectors * L;
    } else if (left >= 2) {
      gemm_transposed_columns<T, 2>(m, k, a, lda, b + j, ldb, c + j, n), j += 2 * L;
    } else {
      gemm_transposed_columns<T, 1>(m, k, a, lda, b + j, ldb, c + j, n), j += L;
    }
  }
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
