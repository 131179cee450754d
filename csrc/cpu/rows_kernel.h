// Rows scaled to unit root mean square, and their two backward passes. CPU, any instruction set (see isa.h).
//
// Mirrors dpsim/kernels/rows.py. For a row x of n numbers and its factor f (1 where f is null):
//   c = x - mean(x) if `center`, else x;   r = 1 / sqrt(mean(c^2) + eps);   y = f r c
// A thread owns whole rows, reads and writes each once, and the results do not depend on the number of threads.
#pragma once

#include <cmath>
#include <cstdint>

namespace dpsim {
namespace DPSIM_ISA {

template <typename T>
inline T row_mean(const T* x, int n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int k = 0; k < n; ++k) sum += x[k];
  return sum / T(n);
}

// mean((a - ma) (b - mb))
template <typename T>
inline T row_product(const T* a, T ma, const T* b, T mb, int n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int k = 0; k < n; ++k) sum += (a[k] - ma) * (b[k] - mb);
  return sum / T(n);
}

template <typename T>
struct RowScale {
  T mean, r;
  RowScale(const T* x, int n, bool center, double eps)
      : mean(center ? row_mean(x, n) : T(0)), r(T(1) / std::sqrt(row_product(x, mean, x, mean, n) + T(eps))) {}
};

// x has rows `ld` apart; y and everything else are contiguous.
template <typename T>
void rows_forward(int64_t rows, int n, int64_t ld, const T* x, const T* f, bool center, double eps, T* y,
                  int threads) {
  (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
  for (int64_t i = 0; i < rows; ++i) {
    const T* xi = x + i * ld;
    T* yi = y + i * n;
    const RowScale<T> s(xi, n, center, eps);
    const T scale = s.r * (f ? f[i] : T(1));
    for (int k = 0; k < n; ++k) yi[k] = (xi[k] - s.mean) * scale;
  }
}

// With b the gradient in y:  x_bar = f r P(b - r c <r c, b>),  f_bar = n <r c, b>  (f_bar may be null).
template <typename T>
void rows_backward(int64_t rows, int n, int64_t ld, const T* x, const T* f, bool center, double eps, const T* b,
                   T* x_bar, T* f_bar, int threads) {
  (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
  for (int64_t i = 0; i < rows; ++i) {
    const T *xi = x + i * ld, *bi = b + i * n;
    const RowScale<T> s(xi, n, center, eps);
    const T mb = center ? row_mean(bi, n) : T(0), scale = s.r * (f ? f[i] : T(1));
    const T nb = row_product(xi, s.mean, bi, mb, n) * s.r, slope = s.r * nb;
    for (int k = 0; k < n; ++k) x_bar[i * n + k] = ((bi[k] - mb) - (xi[k] - s.mean) * slope) * scale;
    if (f_bar) f_bar[i] = nb * T(n);
  }
}

// Gradients of u . x_bar + t f_bar in x, f and b (t null: 0; f_grad null: not wanted). See rows.py for the algebra.
template <typename T>
void rows_backward_twice(int64_t rows, int n, int64_t ld, const T* x, const T* f, bool center, double eps, const T* b,
                         const T* u, const T* t, T* x_grad, T* f_grad, T* b_grad, int threads) {
  (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
  for (int64_t i = 0; i < rows; ++i) {
    const T *xi = x + i * ld, *bi = b + i * n, *ui = u + i * n;
    const RowScale<T> s(xi, n, center, eps);
    const T fi = f ? f[i] : T(1), ti = t ? t[i] : T(0), r = s.r;
    const T mb = center ? row_mean(bi, n) : T(0), mu = center ? row_mean(ui, n) : T(0);
    const T nb = row_product(xi, s.mean, bi, mb, n) * r, un = row_product(xi, s.mean, ui, mu, n) * r;
    const T ub = row_product(ui, mu, bi, mb, n);
    const T of_c = (-fi * r * r * (ub - 3 * un * nb) - ti * r * nb) * r;
    const T of_u = -fi * r * r * nb, of_b = -fi * r * r * un + ti * r;
    const T b_of_u = fi * r, b_of_c = (-fi * r * un + ti) * r;
    for (int k = 0; k < n; ++k) {
      const T c = xi[k] - s.mean, uk = ui[k] - mu, bk = bi[k] - mb;
      x_grad[i * n + k] = c * of_c + uk * of_u + bk * of_b;
      b_grad[i * n + k] = uk * b_of_u + c * b_of_c;
    }
    if (f_grad) f_grad[i] = T(n) * r * (ub - un * nb);
  }
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
