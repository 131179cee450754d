// What kernels and their launches are written in: CUDA, or its emulation on the CPU (DPSIM_CUDA_EMULATION, for tests).
#pragma once

#include <cstdint>

#if defined(DPSIM_CUDA_EMULATION)
#include "emulation.h"
#else
#include <cuda_runtime.h>
#endif

namespace dpsim {

constexpr int kWarp = 32;

// Several numbers read or written by one thread at once, in 16-byte accesses.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T v[N];
};
template <typename T>
using Pack4 = Pack<T, 4>;

#if defined(DPSIM_CUDA_EMULATION)

// Every lane of the warp calls these together.
template <typename T>
T shuffle_xor(T value, int mask) {
  return emulation::exchange(value, int(threadIdx.x % kWarp) ^ mask);
}
inline unsigned ballot(bool vote) {
  unsigned result = 0;
  const emulation::Warp& warp = emulation::block.warp();
  emulation::exchange(vote, 0);
  const auto& slot = warp.slot[emulation::block.current->turn];
  for (int lane = 0; lane < kWarp; ++lane) result |= unsigned(slot[lane][0]) << lane;
  return result;
}
template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulation::block.dynamic_shared.data());
}

// kernel<<<grid, threads, shared, stream>>>(arguments...)
template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared, cudaStream_t stream, A... arguments) {
  const auto run = [=] {
    emulation::Block& block = emulation::block;
    block.grid_size = grid;
    block.block_size = dim3(threads);
    block.body = [=] { kernel(P(arguments)...); };
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          block.block_index = dim3(x, y, z);
          block.dynamic_shared.assign(shared, char(0xff));
          block.run(threads);
        }
  };
  if (stream)
    stream->submit(run);
  else
    run();
}

#else

template <typename T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ inline unsigned ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }
template <typename T>
__device__ inline T* dynamic_shared() {
  extern __shared__ double2 shared_memory[];
  return reinterpret_cast<T*>(shared_memory);
}

template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared, cudaStream_t stream, A... arguments) {
  kernel<<<grid, threads, shared, stream>>>(P(arguments)...);
}

#endif

// The sum over groups of LANES lanes of a warp, on each of them; always added in the same order.
template <int LANES = kWarp, typename T>
__device__ inline T sum_lanes(T x) {
#pragma unroll
  for (int mask = LANES / 2; mask; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

}  // namespace dpsim
