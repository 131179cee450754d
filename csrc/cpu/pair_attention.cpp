// Checked entry points of attention among the neighbours of each atom.
#include "entry.h"

namespace dpsim {
namespace {

int check(const dpsim_pair_attention* a) {
  if (!a || !a->offsets || a->n_centers < 0 || a->offsets[0] != 0)
    return fail(DPSIM_INVALID_ARGUMENT, "`n_centers` or `offsets` is invalid; expected >= 0 and from 0");
  if (a->heads < 1 || a->width < 1 || a->n_out < 1 || !(a->of_g || a->of_h))
    return fail(DPSIM_INVALID_ARGUMENT,
                "`heads, width, n_out, of_g, of_h` are %d, %d, %d, %d, %d; expected >= 1, one of the last two not 0",
                a->heads, a->width, a->n_out, a->of_g, a->of_h);
  return check_rising(a->offsets, a->n_centers, "centre");
}

template <typename T, typename Call>
int run_pair_attention(const dpsim_pair_attention* problem, const dpsim_execution* execution, Call call) {
  return run_checked<T>(execution, [=] { return check(problem); }, call);
}

}  // namespace
}  // namespace dpsim

#define DPSIM_DEFINE(suffix, T)                                                                                        \
  int dpsim_pair_attention_forward_##suffix(const dpsim_pair_attention* problem, T* r,                                 \
                                            const dpsim_execution* execution) {                                        \
    return dpsim::run_pair_attention<T>(                                                                               \
        problem, execution, [=](const auto& k, int threads) { k.pair_attention_forward(*problem, r, threads); });      \
  }                                                                                                                    \
  int dpsim_pair_attention_backward_##suffix(const dpsim_pair_attention* problem, const T* r_bar,                      \
                                             const dpsim_pair_attention_arrays* grads,                                 \
                                             const dpsim_execution* execution) {                                       \
    return dpsim::run_pair_attention<T>(problem, execution, [=](const auto& k, int threads) {                          \
      k.pair_attention_backward(*problem, r_bar, *grads, threads);                                                     \
    });                                                                                                                \
  }                                                                                                                    \
  int dpsim_pair_attention_backward_twice_##suffix(                                                                    \
      const dpsim_pair_attention* problem, const T* r_bar, const dpsim_pair_attention_arrays* tangents,                \
      const dpsim_pair_attention_arrays* grads, T* r_dot, const dpsim_execution* execution) {                          \
    return dpsim::run_pair_attention<T>(problem, execution, [=](const auto& k, int threads) {                          \
      k.pair_attention_backward_twice(*problem, r_bar, *tangents, *grads, r_dot, threads);                             \
    });                                                                                                                \
  }

DPSIM_DEFINE(f32, float)
DPSIM_DEFINE(f64, double)
