// Small matrix products, row-major, of matrices that stay in cache. CPU, any instruction set (see isa.h).
#pragma once

#include "simd.h"

namespace dpsim {
namespace DPSIM_ISA {

// c (MR x NV vectors) = or += a b with a_ri = a[r row + i step] (MR x k), b (k x NV vectors, leading dimension ldb).
template <bool Add, int MR, int NV, typename T>
inline void tile(int k, const T* a, int row, int step, const T* b, int ldb, T* c, int ldc) {
  constexpr int L = Simd<T>::lanes;
  vec_t<T> acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = Add ? load(c + int64_t(r) * ldc + v * L) : vec_t<T>{};
  for (int i = 0; i < k; ++i) {
    vec_t<T> bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) bv[v] = load(b + int64_t(i) * ldb + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const T x = a[int64_t(r) * row + int64_t(i) * step];
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

// visit(column, vectors) for groups of columns, of as many vectors as a tile has, of n in all.
template <typename T, typename F>
inline void for_tile_columns(int n, F visit) {
  constexpr int L = Simd<T>::lanes;
  for (int j = 0; j < n;) {
    const int left = (n - j) / L;
    if (left >= 4 && kTileVectors >= 4) visit(j, std::integral_constant<int, kTileVectors>()), j += kTileVectors * L;
    else if (left >= 3 && kTileVectors >= 4) visit(j, std::integral_constant<int, 3>()), j += 3 * L;
    else if (left >= 2) visit(j, std::integral_constant<int, 2>()), j += 2 * L;
    else visit(j, std::integral_constant<int, 1>()), j += L;
  }
}

// c = a b, or c += a b; rows is a multiple of kTileRows, n (= ldb) a multiple of the lanes.
template <bool Add = false, typename T>
inline void gemm(int rows, int n, int k, const T* a, int lda, const T* b, T* c, int ldc) {
  for_tile_columns<T>(n, [&](int j, auto vectors) {
    for (int64_t r = 0; r < rows; r += kTileRows)
      tile<Add, kTileRows, vectors()>(k, a + r * lda, lda, 1, b + j, n, c + r * ldc + j, ldc);
  });
}

// c (m x n) += a^T b with a (k x m), b (k x n); n (= ldc) a multiple of the lanes.
template <typename T>
inline void gemm_transposed(int m, int n, int k, const T* a, int lda, const T* b, int ldb, T* c) {
  for_tile_columns<T>(n, [&](int j, auto vectors) {
    int64_t r = 0;
    for (; r + 4 <= m; r += 4) tile<true, 4, vectors()>(k, a + r, 1, lda, b + j, ldb, c + r * n + j, n);
    for (; r < m; ++r) tile<true, 1, vectors()>(k, a + r, 1, lda, b + j, ldb, c + r * n + j, n);
  });
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
