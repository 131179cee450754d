// Moments of the neighbours of an atom, y_i = sum_m h_m (x) x[index_m], and what it takes to differentiate them. CPU,
// any instruction set (see isa.h). Mirrors dpsim/kernels/moments.py.
//
// Edges m of centre i are offsets[i] .. offsets[i + 1]; h (n_edges, 3), x (n_x, d), y (n, 3, d). All three functions are
// parts of one form T(h, x, y) = sum_m h_m . (y_i x[index_m]): its derivative in one of the three, the others given.
// A thread owns whole rows of what it writes and adds in the order of the edges: the results do not depend on threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parts.h"

namespace dpsim {
namespace DPSIM_ISA {

constexpr int kMomentBlock = 32;  // numbers of a row at a time: three accumulators of them stay in registers

// y_i = sum_m h_m (x) x[index_m]
template <typename T>
void moments_y(const dpsim_moments& edges, int d, const T* h, const T* x, T* y, int threads) {
  for_parts(edges.n, edges.offsets, threads, [&](int, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      for (int k = 0; k < d; k += kMomentBlock) {
        T sum[3][kMomentBlock] = {};
        const int width = std::min(kMomentBlock, d - k);
        const auto add = [&](int n) {
          for (int64_t m = edges.offsets[i]; m < edges.offsets[i + 1]; ++m) {
            const T* row = x + edges.index[m] * d + k;
            const T h0 = h[3 * m], h1 = h[3 * m + 1], h2 = h[3 * m + 2];
#pragma omp simd
            for (int l = 0; l < n; ++l) {
              sum[0][l] += h0 * row[l];
              sum[1][l] += h1 * row[l];
              sum[2][l] += h2 * row[l];
            }
          }
        };
        if (width == kMomentBlock)
          add(kMomentBlock);
        else
          add(width);
        for (int c = 0; c < 3; ++c) std::copy_n(sum[c], width, y + (3 * i + c) * d + k);
      }
  });
}

// h_m = y_i x[index_m]
template <typename T>
void moments_h(const dpsim_moments& edges, int d, const T* x, const T* y, T* h, int threads) {
  for_parts(edges.n, edges.offsets, threads, [&](int, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const T *y0 = y + 3 * i * d, *y1 = y0 + d, *y2 = y1 + d;
      for (int64_t m = edges.offsets[i]; m < edges.offsets[i + 1]; ++m) {
        const T* row = x + edges.index[m] * d;
        T h0 = 0, h1 = 0, h2 = 0;
#pragma omp simd reduction(+ : h0, h1, h2)
        for (int l = 0; l < d; ++l) {
          h0 += y0[l] * row[l];
          h1 += y1[l] * row[l];
          h2 += y2[l] * row[l];
        }
        h[3 * m] = h0, h[3 * m + 1] = h1, h[3 * m + 2] = h2;
      }
    }
  });
}

// x_j = sum over m with index_m = j of h_m y_i. The edges that come to j are arrivals[arrived[j]] .. [arrived[j + 1]].
template <typename T>
void moments_x(const dpsim_moments& edges, int d, const T* h, const T* y, T* x, int threads) {
  for_parts(edges.n_x, edges.arrived, threads, [&](int, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      T* row = x + j * d;
      std::fill_n(row, d, T(0));
      for (int64_t r = edges.arrived[j]; r < edges.arrived[j + 1]; ++r) {
        const int64_t m = edges.arrivals[r];
        const T *y0 = y + 3 * edges.center[m] * d, *y1 = y0 + d, *y2 = y1 + d;
        const T h0 = h[3 * m], h1 = h[3 * m + 1], h2 = h[3 * m + 2];
#pragma omp simd
        for (int l = 0; l < d; ++l) row[l] += h0 * y0[l] + h1 * y1[l] + h2 * y2[l];
      }
    }
  });
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
