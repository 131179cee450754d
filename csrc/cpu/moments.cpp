// Checked entry points of the moments of neighbours.
#include "isa.h"
#include "status.h"

namespace dpsim {
namespace {

bool rises(int64_t n, const int64_t* offsets, int64_t last) {
  if (offsets[0] != 0 || offsets[n] != last) return false;
  for (int64_t i = 0; i < n; ++i)
    if (offsets[i + 1] < offsets[i]) return false;
  return true;
}

bool below(int64_t n, const int64_t* values, int64_t limit) {
  for (int64_t i = 0; i < n; ++i)
    if (values[i] < 0 || values[i] >= limit) return false;
  return true;
}

int check(const dpsim_moments* g, int d) {
  if (!g || g->n < 0 || g->n_x < 0 || g->n_edges < 0 || d < 1)
    return fail(DPSIM_INVALID_ARGUMENT, "`n`, `n_x`, `n_edges` or `d` is invalid; expected >= 0, and d >= 1");
  if (!rises(g->n, g->offsets, g->n_edges) || !rises(g->n_x, g->arrived, g->n_edges))
    return fail(DPSIM_INVALID_ARGUMENT, "`offsets` or `arrived` do not rise from 0 to the number of edges, %lld",
                static_cast<long long>(g->n_edges));
  if (!below(g->n_edges, g->index, g->n_x) || !below(g->n_edges, g->center, g->n) ||
      !below(g->n_edges, g->arrivals, g->n_edges))
    return fail(DPSIM_INVALID_ARGUMENT, "`index`, `center` or `arrivals` point beyond rows, centres or edges");
  return DPSIM_OK;
}

template <typename T, typename Call>
int run_moments(const dpsim_moments* edges, int d, const dpsim_execution* execution, Call call) {
  return guarded([&]() -> int {
    if (const int status = check(edges, d)) return status;
    const Kernels* kernels = select_kernels(execution);
    if (!kernels) return DPSIM_UNSUPPORTED;
    call(of<T>(*kernels), execution && execution->threads > 1 ? execution->threads : 1);
    return DPSIM_OK;
  });
}

}  // namespace
}  // namespace dpsim

#define DPSIM_DEFINE(suffix, T)                                                                                       \
  int dpsim_moments_y_##suffix(const dpsim_moments* edges, int d, const T* h, const T* x, T* y,                       \
                               const dpsim_execution* execution) {                                                    \
    return dpsim::run_moments<T>(edges, d, execution,                                                                 \
                                 [=](const auto& k, int threads) { k.moments_y(*edges, d, h, x, y, threads); });      \
  }                                                                                                                   \
  int dpsim_moments_h_##suffix(const dpsim_moments* edges, int d, const T* x, const T* y, T* h,                       \
                               const dpsim_execution* execution) {                                                    \
    return dpsim::run_moments<T>(edges, d, execution,                                                                 \
                                 [=](const auto& k, int threads) { k.moments_h(*edges, d, x, y, h, threads); });      \
  }                                                                                                                   \
  int dpsim_moments_x_##suffix(const dpsim_moments* edges, int d, const T* h, const T* y, T* x,                       \
                               const dpsim_execution* execution) {                                                    \
    return dpsim::run_moments<T>(edges, d, execution,                                                                 \
                                 [=](const auto& k, int threads) { k.moments_x(*edges, d, h, y, x, threads); });      \
  }

DPSIM_DEFINE(f32, float)
DPSIM_DEFINE(f64, double)
