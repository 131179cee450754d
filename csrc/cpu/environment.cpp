// Checked entry points of the environment matrix.
#include "../common/environment_row.h"
#include "../common/environment_arguments.h"
#include "entry.h"

namespace dpsim {
namespace {

template <typename T, typename Call>
int run(int64_t n, double rcut, double rcut_smth, double protection, bool arrays, const dpsim_execution* execution,
        Call call) {
  return run_checked<T>(
      execution, [=] { return check_environment(n, rcut, rcut_smth, protection, arrays); },
      [&](const auto& kernels, int threads) { call(kernels, Switch(rcut, rcut_smth, protection), threads); });
}

}  // namespace
}  // namespace dpsim

#define DPSIM_DEFINE(suffix, T)                                                                                       \
  int dpsim_environment_##suffix(int64_t n, const T* edge_vec, double rcut, double rcut_smth, double protection,      \
                                 T* env, T* w, T* d_env, T* dw, const dpsim_execution* execution) {                   \
    return dpsim::run<T>(n, rcut, rcut_smth, protection, edge_vec && env && w, execution,                             \
                         [=](const auto& k, auto p, int threads) {                                                    \
                           k.environment(n, edge_vec, p, env, w, d_env, dw, threads);                                 \
                         });                                                                                          \
  }                                                                                                                   \
  int dpsim_environment_vjp_##suffix(int64_t n, const T* edge_vec, double rcut, double rcut_smth, double protection,  \
                                     const T* grad_env, const T* grad_w, T* grad_edge,                                \
                                     const dpsim_execution* execution) {                                              \
    return dpsim::run<T>(n, rcut, rcut_smth, protection, edge_vec && grad_edge, execution,                            \
                         [=](const auto& k, auto p, int threads) {                                                    \
                           k.environment_vjp(n, edge_vec, p, grad_env, grad_w, grad_edge, threads);                   \
                         });                                                                                          \
  }                                                                                                                   \
  int dpsim_environment_jvp_##suffix(int64_t n, const T* edge_vec, double rcut, double rcut_smth, double protection,  \
                                     const T* t_edge, T* t_env, T* t_w, const dpsim_execution* execution) {           \
    return dpsim::run<T>(n, rcut, rcut_smth, protection, edge_vec && t_edge && t_env, execution,                      \
                         [=](const auto& k, auto p, int threads) {                                                    \
                           k.environment_jvp(n, edge_vec, p, t_edge, t_env, t_w, threads);                            \
                         });                                                                                          \
  }

DPSIM_DEFINE(f32, float)
DPSIM_DEFINE(f64, double)

#ifndef DPSIM_WITH_CUDA
int dpsim_environment_cuda_f32(int64_t, const float*, double, double, double, float*, float*, float*, float*, void*) {
  return dpsim::fail(DPSIM_UNSUPPORTED, "this library was built without CUDA kernels (cmake -DDPSIM_CUDA=ON)");
}
int dpsim_environment_cuda_f64(int64_t, const double*, double, double, double, double*, double*, double*, double*,
                               void*) {
  return dpsim::fail(DPSIM_UNSUPPORTED, "this library was built without CUDA kernels (cmake -DDPSIM_CUDA=ON)");
}
#endif
