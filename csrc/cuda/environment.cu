// The environment matrix of edges on a GPU. Mirrors cpu/environment_kernel.h::environment.
//
// One thread per edge: reads edge_vec (n, 3); writes env (n, 4), w (n,) and, unless null, d_env (n, 4, 3), dw (n,).
// Nothing is accumulated: deterministic. The launch is asynchronous on the given stream.
#include "../common/environment_arguments.h"
#include "../common/environment_row.h"
#include "cuda_runtime_info.h"
#include "device.h"
#include "dpsim.h"

namespace dpsim {

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void environment_kernel(int64_t n, const T* __restrict__ edge_vec, Switch p, T* __restrict__ env,
                                   T* __restrict__ w, T* __restrict__ d_env, T* __restrict__ dw) {
  const int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= n) return;
  const T e[3] = {edge_vec[3 * k], edge_vec[3 * k + 1], edge_vec[3 * k + 2]};
  const Radial<T> a = environment_radial(e[0], e[1], e[2], p);
  env[4 * k] = a.s;
#pragma unroll
  for (int c = 0; c < 3; ++c) env[4 * k + 1 + c] = a.q * e[c];
  w[k] = a.w;
  if (dw) dw[k] = a.dw;
  if (!d_env) return;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const T unit = e[i] * a.inv_r;
    d_env[12 * k + i] = a.ds * unit;
#pragma unroll
    for (int c = 0; c < 3; ++c) d_env[12 * k + 3 * (c + 1) + i] = a.dq * e[c] * unit + (c == i ? a.q : T(0));
  }
}

template <typename T>
int environment_cuda(int64_t n, const T* edge_vec, double rcut, double rcut_smth, double protection, T* env, T* w,
                     T* d_env, T* dw, void* stream) {
  if (const int status = check_environment(n, rcut, rcut_smth, protection, edge_vec && env && w)) return status;
  if (n == 0) return DPSIM_OK;  // an empty grid is a launch error
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) return fail(DPSIM_INVALID_ARGUMENT, "`n` is too large for one launch; split the edges");
  launch(environment_kernel<T>, unsigned(blocks), kThreads, 0, static_cast<cudaStream_t>(stream), n, edge_vec,
         Switch(rcut, rcut_smth, protection), env, w, d_env, dw);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return fail(DPSIM_CUDA_ERROR, "CUDA: %s", cudaGetErrorString(error));
  return DPSIM_OK;
}

}  // namespace
}  // namespace dpsim

int dpsim_environment_cuda_f32(int64_t n, const float* edge_vec, double rcut, double rcut_smth, double protection,
                               float* env, float* w, float* d_env, float* dw, void* stream) {
  return dpsim::environment_cuda(n, edge_vec, rcut, rcut_smth, protection, env, w, d_env, dw, stream);
}
int dpsim_environment_cuda_f64(int64_t n, const double* edge_vec, double rcut, double rcut_smth, double protection,
                               double* env, double* w, double* d_env, double* dw, void* stream) {
  return dpsim::environment_cuda(n, edge_vec, rcut, rcut_smth, protection, env, w, d_env, dw, stream);
}
