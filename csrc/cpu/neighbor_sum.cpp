// Checked entry points of sums over neighbours.
#include "entry.h"

namespace dpsim {
namespace {

template <typename T, typename Call>
int run_neighbors(int64_t n_centers, const int64_t* offsets, int64_t n_rows, const int64_t* index, int K, int C,
                  const dpsim_execution* execution, Call call) {
  const auto check = [=]() -> int {
    if (n_centers < 0 || !offsets || offsets[0] != 0 || n_rows < 0 || K < 1 || C < 1)
      return fail(DPSIM_INVALID_ARGUMENT,
                  "`n_centers, n_rows, K, C` are %lld, %lld, %d, %d; expected >= 0, >= 0, >= 1, >= 1, offsets from 0",
                  static_cast<long long>(n_centers), static_cast<long long>(n_rows), K, C);
    if (const int status = check_rising(offsets, n_centers, "centre")) return status;
    for (int64_t m = 0; index && m < offsets[n_centers]; ++m)
      if (index[m] < 0 || index[m] >= n_rows)
        return fail(DPSIM_INVALID_ARGUMENT, "`index` of edge %lld is %lld; expected 0 to %lld",
                    static_cast<long long>(m), static_cast<long long>(index[m]), static_cast<long long>(n_rows - 1));
    return DPSIM_OK;
  };
  return run_checked<T>(execution, check, call);
}

}  // namespace
}  // namespace dpsim

#define DPSIM_DEFINE_ONE(name, suffix, T)                                                                              \
  int dpsim_##name##_##suffix(int64_t n_centers, const int64_t* offsets, int64_t n_rows, const int64_t* index, int K,  \
                              int C, const T* a, const T* b, const T* c, T* result, const dpsim_execution* execution) { \
    return dpsim::run_neighbors<T>(n_centers, offsets, n_rows, index, K, C, execution,                                 \
                                   [=](const auto& k, int threads) {                                                   \
                                     k.name(n_centers, offsets, n_rows, index, K, C, a, b, c, result, threads);        \
                                   });                                                                                 \
  }
#define DPSIM_DEFINE(suffix, T)                \
  DPSIM_DEFINE_ONE(neighbor_sum, suffix, T)    \
  DPSIM_DEFINE_ONE(neighbor_dot, suffix, T)    \
  DPSIM_DEFINE_ONE(neighbor_spread, suffix, T) \
  DPSIM_DEFINE_ONE(neighbor_weight, suffix, T)

DPSIM_DEFINE(f32, float)
DPSIM_DEFINE(f64, double)
