// Checked entry points of the radial embedding and its contraction.
#include "entry.h"

namespace dpsim {
namespace {

int check_net(int n_layers, const dpsim_layer* layers) {
  if (n_layers < 1 || !layers) return fail(DPSIM_INVALID_ARGUMENT, "`n_layers` is %d; expected at least 1", n_layers);
  for (int k = 0; k < n_layers; ++k) {
    const dpsim_layer& l = layers[k];
    const int n_in = k ? layers[k - 1].n_out : 1;
    if (l.n_in != n_in || l.n_out < 1 || !l.weight)
      return fail(DPSIM_INVALID_ARGUMENT, "layer %d is (%d, %d); expected (%d, >= 1) with a weight", k, l.n_in, l.n_out,
                  n_in);
    if (l.residual < 0 || (l.residual && l.n_out != l.residual * l.n_in))
      return fail(DPSIM_INVALID_ARGUMENT, "`residual` of layer %d is %d; expected n_out = residual * n_in", k,
                  l.residual);
  }
  return DPSIM_OK;
}

int check_centers(int64_t n_centers, const int64_t* offsets, int channels) {
  if (n_centers < 0 || !offsets || offsets[0] != 0 || channels < 1)
    return fail(DPSIM_INVALID_ARGUMENT, "`n_centers`, `channels` are %lld, %d; expected >= 0, >= 1, and offsets from 0",
                static_cast<long long>(n_centers), channels);
  return check_rising(offsets, n_centers, "centre");
}

template <typename T, typename Call>
int run_radial(int status, const dpsim_execution* execution, Call call) {
  return run_checked<T>(execution, [=] { return status; }, call);
}

int first_of(int a, int b) { return a ? a : b; }

}  // namespace
}  // namespace dpsim

using dpsim::check_centers;
using dpsim::check_net;
using dpsim::first_of;
using dpsim::run_radial;

#define DPSIM_DEFINE(suffix, T)                                                                                      \
  int dpsim_embedding_forward_##suffix(int64_t n, const T* s, int n_layers, const dpsim_layer* layers, T* g, T* dg,  \
                                       const dpsim_execution* execution) {                                           \
    return run_radial<T>(check_net(n_layers, layers), execution, [=](const auto& k, int threads) {                   \
      k.embedding_forward(n, s, n_layers, layers, g, dg, threads);                                                   \
    });                                                                                                              \
  }                                                                                                                  \
  int dpsim_embedding_backward_##suffix(int64_t n, const T* s, int n_layers, const dpsim_layer* layers,              \
                                        const T* g_bar, const T* dg_bar, const dpsim_layer_grad* grads,              \
                                        const dpsim_execution* execution) {                                          \
    return run_radial<T>(check_net(n_layers, layers), execution, [=](const auto& k, int threads) {                   \
      k.embedding_backward(n, s, n_layers, layers, g_bar, dg_bar, grads, threads);                                   \
    });                                                                                                              \
  }                                                                                                                  \
  int dpsim_radial_forward_##suffix(int64_t n_centers, const int64_t* offsets, int channels, const T* env,           \
                                    const T* s, int n_layers, const dpsim_layer* layers, T* a, T* g, T* dg,          \
                                    const dpsim_execution* execution) {                                              \
    const int status = first_of(check_centers(n_centers, offsets, channels), check_net(n_layers, layers));           \
    return run_radial<T>(status, execution, [=](const auto& k, int threads) {                                        \
      k.radial_forward(n_centers, offsets, channels, env, s, n_layers, layers, a, g, dg, threads);                   \
    });                                                                                                              \
  }                                                                                                                  \
  int dpsim_radial_backward_inputs_##suffix(                                                                         \
      int64_t n_centers, const int64_t* offsets, int channels, const T* env, const T* s, int n_layers,               \
      const dpsim_layer* layers, const T* a_bar, const T* g, const T* dg, T* env_bar, T* s_bar,                      \
      const dpsim_execution* execution) {                                                                            \
    const int status = first_of(check_centers(n_centers, offsets, channels), check_net(n_layers, layers));           \
    return run_radial<T>(status, execution, [=](const auto& k, int threads) {                                        \
      k.radial_backward_inputs(n_centers, offsets, channels, env, s, n_layers, layers, a_bar, g, dg, env_bar, s_bar, \
                               threads);                                                                             \
    });                                                                                                              \
  }                                                                                                                  \
  int dpsim_radial_backward_twice_##suffix(int64_t n_centers, const int64_t* offsets, int channels, int width,       \
                                           const T* env, const T* u_env, const T* u_s, const T* g, const T* dg,      \
                                           T* a_bar_bar, const dpsim_execution* execution) {                         \
    return run_radial<T>(check_centers(n_centers, offsets, channels), execution, [=](const auto& k, int threads) {   \
      k.radial_backward_twice(n_centers, offsets, channels, width, env, u_env, u_s, g, dg, a_bar_bar, threads);      \
    });                                                                                                              \
  }                                                                                                                  \
  int dpsim_radial_backward_parameters_##suffix(                                                                     \
      int64_t n_centers, const int64_t* offsets, int channels, const T* env, const T* s, int n_layers,               \
      const dpsim_layer* layers, const T* a2_bar, const T* a_bar, const T* u_env, const T* u_s,                      \
      const dpsim_layer_grad* grads, const dpsim_execution* execution) {                                             \
    const int status = first_of(check_centers(n_centers, offsets, channels), check_net(n_layers, layers));           \
    return run_radial<T>(status, execution, [=](const auto& k, int threads) {                                        \
      k.radial_backward_parameters(n_centers, offsets, channels, env, s, n_layers, layers, a2_bar, a_bar, u_env,     \
                                   u_s, grads, threads);                                                             \
    });                                                                                                              \
  }

DPSIM_DEFINE(f32, float)
DPSIM_DEFINE(f64, double)
