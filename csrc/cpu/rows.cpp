// Checked entry points of the row kernels.
#include "entry.h"

namespace dpsim {
namespace {

template <typename T, typename Call>
int run_rows(int64_t rows, int n, int64_t ld, double eps, const dpsim_execution* execution, Call call) {
  const auto check = [=]() -> int {
    if (rows < 0 || n < 1 || ld < n || !(eps >= 0))
      return fail(DPSIM_INVALID_ARGUMENT, "`rows, n, ld, eps` are %lld, %d, %lld, %g; expected >= 0, >= 1, >= n, >= 0",
                  static_cast<long long>(rows), n, static_cast<long long>(ld), eps);
    return DPSIM_OK;
  };
  return run_checked<T>(execution, check, call);
}

}  // namespace
}  // namespace dpsim

#define DPSIM_DEFINE(suffix, T)                                                                                       \
  int dpsim_rows_forward_##suffix(int64_t rows, int n, int64_t ld, const T* x, const T* f, int center, double eps,    \
                                  T* y, const dpsim_execution* execution) {                                           \
    return dpsim::run_rows<T>(rows, n, ld, eps, execution, [=](const auto& k, int threads) {                          \
      k.rows_forward(rows, n, ld, x, f, center != 0, eps, y, threads);                                                \
    });                                                                                                               \
  }                                                                                                                   \
  int dpsim_rows_backward_##suffix(int64_t rows, int n, int64_t ld, const T* x, const T* f, int center, double eps,   \
                                   const T* b, T* x_bar, T* f_bar, const dpsim_execution* execution) {                \
    return dpsim::run_rows<T>(rows, n, ld, eps, execution, [=](const auto& k, int threads) {                          \
      k.rows_backward(rows, n, ld, x, f, center != 0, eps, b, x_bar, f_bar, threads);                                 \
    });                                                                                                               \
  }                                                                                                                   \
  int dpsim_rows_backward_twice_##suffix(int64_t rows, int n, int64_t ld, const T* x, const T* f, int center,         \
                                         double eps, const T* b, const T* u, const T* t, T* x_grad, T* f_grad,        \
                                         T* b_grad, const dpsim_execution* execution) {                               \
    return dpsim::run_rows<T>(rows, n, ld, eps, execution, [=](const auto& k, int threads) {                          \
      k.rows_backward_twice(rows, n, ld, x, f, center != 0, eps, b, u, t, x_grad, f_grad, b_grad, threads);           \
    });                                                                                                               \
  }

DPSIM_DEFINE(f32, float)
DPSIM_DEFINE(f64, double)
