// Checked entry points of the update of a line graph.
#include "entry.h"

namespace dpsim {
namespace {

int check(const dpsim_line_graph* g) {
  if (!g || !g->offsets || g->n_alpha < 0 || g->n_beta < 0 || g->offsets[0] != 0)
    return fail(DPSIM_INVALID_ARGUMENT, "`n_alpha`, `n_beta` or `offsets` is invalid; expected >= 0 and from 0");
  if (g->n_in < 1 || g->n_conv < 0 || g->n_self < 0 || (g->n_self && g->n_self != g->n_in))
    return fail(DPSIM_INVALID_ARGUMENT, "`n_in, n_conv, n_self` are %d, %d, %d; expected >= 1, >= 0, and 0 or n_in",
                g->n_in, g->n_conv, g->n_self);
  if (g->activation < DPSIM_TANH || g->activation > DPSIM_SILUT)
    return fail(DPSIM_INVALID_ARGUMENT, "`activation` is %d; expected a dpsim_activation", g->activation);
  if (const int status = check_rising(g->offsets, g->n_alpha, "vertex")) return status;
  for (int64_t m = 0; m < g->offsets[g->n_alpha]; ++m)
    if (g->beta[m] < 0 || g->beta[m] >= g->n_beta)
      return fail(DPSIM_INVALID_ARGUMENT, "`beta` of edge %lld is %lld; expected 0 to %lld", static_cast<long long>(m),
                  static_cast<long long>(g->beta[m]), static_cast<long long>(g->n_beta - 1));
  return DPSIM_OK;
}

template <typename T, typename Call>
int run_line_graph(const dpsim_line_graph* graph, const dpsim_execution* execution, Call call) {
  return run_checked<T>(execution, [=] { return check(graph); }, call);
}

}  // namespace
}  // namespace dpsim

#define DPSIM_DEFINE(suffix, T)                                                                                       \
  int dpsim_line_graph_forward_##suffix(const dpsim_line_graph* graph, T* u, T* e_new,                                \
                                        const dpsim_execution* execution) {                                           \
    return dpsim::run_line_graph<T>(graph, execution, [=](const auto& k, int threads) {                               \
      k.line_graph_forward(*graph, u, e_new, threads);                                                                \
    });                                                                                                               \
  }                                                                                                                   \
  int dpsim_line_graph_backward_##suffix(const dpsim_line_graph* graph, const T* u_bar, const T* e_new_bar,           \
                                         const dpsim_line_graph_arrays* grads, const dpsim_execution* execution) {    \
    return dpsim::run_line_graph<T>(graph, execution, [=](const auto& k, int threads) {                               \
      k.line_graph_backward(*graph, u_bar, e_new_bar, *grads, threads);                                               \
    });                                                                                                               \
  }                                                                                                                   \
  int dpsim_line_graph_backward_twice_##suffix(                                                                       \
      const dpsim_line_graph* graph, const T* u_bar, const T* e_new_bar, const dpsim_line_graph_arrays* tangents,     \
      const dpsim_line_graph_arrays* grads, T* u_dot, T* e_new_dot, const dpsim_execution* execution) {               \
    return dpsim::run_line_graph<T>(graph, execution, [=](const auto& k, int threads) {                               \
      k.line_graph_backward_twice(*graph, u_bar, e_new_bar, *tangents, *grads, u_dot, e_new_dot, threads);            \
    });                                                                                                               \
  }

DPSIM_DEFINE(f32, float)
DPSIM_DEFINE(f64, double)
