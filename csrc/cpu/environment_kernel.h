// The environment matrix of edges on a CPU, its pull-back and its push-forward.
//
// Edges are independent. A thread owns a contiguous range of them and works in blocks of kBlock: the block is read
// into one small array per component, computed lane by lane, and written. Nothing is accumulated across edges, so
// the result does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/environment_row.h"

namespace dpsim {
namespace DPSIM_ISA {

constexpr int64_t kParallelEdges = 1 << 16;  // below this an OpenMP region costs more than it saves

// body(first, count) for blocks of at most kBlock edges covering [0, n).
constexpr int kBlock = 64;
template <typename Body>
inline void for_edge_blocks(int64_t n, [[maybe_unused]] int threads, Body body) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && n >= kParallelEdges)
#endif
  for (int64_t b = 0; b < blocks; ++b) body(b * kBlock, int(std::min<int64_t>(kBlock, n - b * kBlock)));
}

// Reads edge_vec (n, 3); writes env (n, 4), w (n,) and, unless null, d_env (n, 4, 3) and dw (n,).
template <typename T>
void environment(int64_t n, const T* edge_vec, Switch p, T* env, T* w, T* d_env, T* dw, int threads) {
  for_edge_blocks(n, threads, [=](int64_t first, int count) {
    const T* vec = edge_vec + 3 * first;
    T *env_b = env + 4 * first, *w_b = w + first;
#pragma omp simd
    for (int k = 0; k < count; ++k) {
      const T x = vec[3 * k], y = vec[3 * k + 1], z = vec[3 * k + 2];
      const Radial<T> a = environment_radial(x, y, z, p);
      env_b[4 * k] = a.s;
      env_b[4 * k + 1] = a.q * x;
      env_b[4 * k + 2] = a.q * y;
      env_b[4 * k + 3] = a.q * z;
      w_b[k] = a.w;
    }
    if (!d_env && !dw) return;
    for (int k = 0; k < count; ++k) {
      const T* e = vec + 3 * k;
      const Radial<T> a = environment_radial(e[0], e[1], e[2], p);
      if (dw) dw[first + k] = a.dw;
      if (!d_env) continue;
      T* d = d_env + 12 * (first + k);
      for (int i = 0; i < 3; ++i) {
        const T unit = e[i] * a.inv_r;
        d[i] = a.ds * unit;
        for (int c = 0; c < 3; ++c) d[3 * (c + 1) + i] = a.dq * e[c] * unit + (c == i ? a.q : T(0));
      }
    }
  });
}

// Reads edge_vec, grad_env (n, 4), grad_w (n,) (either may be null); writes grad_edge (n, 3).
//   grad_edge = q g + (g_s ds + (g . edge_vec) dq + g_w dw) edge_vec / r,   grad_env = (g_s, g)
template <typename T, bool has_env, bool has_w>
void environment_vjp_of(int64_t n, const T* edge_vec, Switch p, const T* grad_env, const T* grad_w, T* grad_edge,
                        int threads) {
  for_edge_blocks(n, threads, [=](int64_t first, int count) {
    const T *vec = edge_vec + 3 * first, *ge = grad_env + 4 * first, *gw = grad_w + first;
    T* out = grad_edge + 3 * first;
#pragma omp simd
    for (int k = 0; k < count; ++k) {
      const T x = vec[3 * k], y = vec[3 * k + 1], z = vec[3 * k + 2];
      const Radial<T> a = environment_radial(x, y, z, p);
      const T gs = has_env ? ge[4 * k] : T(0), gx = has_env ? ge[4 * k + 1] : T(0);
      const T gy = has_env ? ge[4 * k + 2] : T(0), gz = has_env ? ge[4 * k + 3] : T(0);
      T radial = gs * a.ds + (gx * x + gy * y + gz * z) * a.dq;
      if (has_w) radial += gw[k] * a.dw;
      radial *= a.inv_r;
      out[3 * k] = a.q * gx + radial * x;
      out[3 * k + 1] = a.q * gy + radial * y;
      out[3 * k + 2] = a.q * gz + radial * z;
    }
  });
}

template <typename T>
void environment_vjp(int64_t n, const T* edge_vec, Switch p, const T* grad_env, const T* grad_w, T* grad_edge,
                     int threads) {
  if (grad_env && grad_w) return environment_vjp_of<T, true, true>(n, edge_vec, p, grad_env, grad_w, grad_edge, threads);
  // A null array is never read: pass any valid pointer in its place, so that no arithmetic is done on a null one.
  if (grad_env) return environment_vjp_of<T, true, false>(n, edge_vec, p, grad_env, edge_vec, grad_edge, threads);
  if (grad_w) return environment_vjp_of<T, false, true>(n, edge_vec, p, edge_vec, grad_w, grad_edge, threads);
  std::fill(grad_edge, grad_edge + 3 * n, T(0));
}

// Reads edge_vec, t_edge (n, 3); writes t_env (n, 4) and, unless null, t_w (n,).
//   t_r = edge_vec . t_edge / r,  t_env = (ds t_r, q t_edge + dq t_r edge_vec),  t_w = dw t_r
template <typename T>
void environment_jvp(int64_t n, const T* edge_vec, Switch p, const T* t_edge, T* t_env, T* t_w, int threads) {
  for_edge_blocks(n, threads, [=](int64_t first, int count) {
    const T *vec = edge_vec + 3 * first, *t = t_edge + 3 * first;
    T* out = t_env + 4 * first;
    T slope[kBlock];
#pragma omp simd
    for (int k = 0; k < count; ++k) {
      const T x = vec[3 * k], y = vec[3 * k + 1], z = vec[3 * k + 2];
      const T tx = t[3 * k], ty = t[3 * k + 1], tz = t[3 * k + 2];
      const Radial<T> a = environment_radial(x, y, z, p);
      const T t_r = (x * tx + y * ty + z * tz) * a.inv_r;
      out[4 * k] = a.ds * t_r;
      out[4 * k + 1] = a.q * tx + a.dq * t_r * x;
      out[4 * k + 2] = a.q * ty + a.dq * t_r * y;
      out[4 * k + 3] = a.q * tz + a.dq * t_r * z;
      slope[k] = a.dw * t_r;
    }
    if (t_w) std::copy(slope, slope + count, t_w + first);
  });
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
