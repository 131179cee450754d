// CUDA on the CPU, for tests: enough of the language and of the runtime to run this library's kernels, unchanged, where
// there is no GPU. Slow; only what the kernels use.
//
// The threads of a block are fibers of one OS thread. A fiber runs until it waits at a barrier (__syncthreads, or the
// exchange inside a warp shuffle); then the next one runs. Blocks run one after the other. Odd blocks run their
// threads in reverse, so that code that lacks a barrier gives other numbers than the CPU path. A barrier that some
// thread never reaches ends the program with a message. Device memory is malloc'ed and filled with NaN.
// A stream runs what it is given at once, or keeps it while a graph is captured.
#pragma once

#undef _FORTIFY_SOURCE  // its longjmp refuses to change stacks
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace dpsim::emulation {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 << 10;  // bytes of a fiber's stack; touched only as far as it is used

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
};

struct Warp {
  Barrier barrier;
  int live;                         // threads that have not returned
  alignas(16) char slot[2][kWarp][16];  // values being exchanged; two, used in turn
};

struct Fiber {
  jmp_buf here;
  ucontext_t start;
  std::unique_ptr<char[]> stack;
  bool running = false, done = true;
  int turn = 0;  // which slot of the warp is next
};

// The one block that an OS thread runs.
struct Block {
  dim3 thread_index, block_index, block_size, grid_size;
  std::vector<char> dynamic_shared;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  int live = 0;
  bool progress = false;
  Fiber* current = nullptr;
  jmp_buf scheduler;
  std::function<void()> body;

  Warp& warp() { return warps[thread_index.x / kWarp]; }

  // Leave this fiber; returns when it is resumed.
  void yield() {
    if (_setjmp(current->here) == 0) _longjmp(scheduler, 1);
  }
  void release(Barrier& b) {
    b.arrived = 0;
    ++b.generation;
    progress = true;
  }
  void wait(Barrier& b, const int& expected) {
    const unsigned generation = b.generation;
    if (++b.arrived == expected) return release(b);
    while (b.generation == generation) yield();
  }
  // Run the body for ever, once for every block.
  void fiber_main() {
    for (;;) {
      body();
      current->done = progress = true;
      Warp& w = warp();
      if (--live == barrier.arrived && live) release(barrier);
      if (--w.live == w.barrier.arrived && w.live) release(w.barrier);
      yield();
    }
  }
  void resume(unsigned thread);
  void run(unsigned threads);
};

inline thread_local Block block;

inline void fiber_start() { block.fiber_main(); }

inline void Block::resume(unsigned thread) {
  current = fibers[thread].get();
  thread_index.x = thread;
  if (_setjmp(scheduler)) return;
  if (current->running) _longjmp(current->here, 1);
  current->running = true;
  current->stack.reset(new char[kStack]);
  getcontext(&current->start);
  current->start.uc_stack.ss_sp = current->stack.get();
  current->start.uc_stack.ss_size = kStack;
  makecontext(&current->start, fiber_start, 0);
  setcontext(&current->start);
}

inline void Block::run(unsigned threads) {
  while (fibers.size() < threads) fibers.emplace_back(new Fiber);
  warps.resize((threads + kWarp - 1) / kWarp);
  for (Warp& w : warps) w.live = 0, w.barrier = {};
  for (unsigned i = 0; i < threads; ++i) fibers[i]->done = false, ++warps[i / kWarp].live;
  barrier = {};
  live = int(threads);
  while (live) {
    progress = false;
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned thread = block_index.x % 2 ? threads - 1 - i : i;
      if (!fibers[thread]->done) resume(thread);
    }
    if (!progress) {
      std::fprintf(stderr, "CUDA emulation: a barrier waits for a thread that never comes\n");
      std::abort();
    }
  }
}

// Exchange 16 bytes at most within the warp: what `lane` gave.
template <typename T>
T exchange(T value, int lane) {
  static_assert(sizeof(T) <= 16, "too large to exchange");
  Warp& w = block.warp();
  char(*slot)[16] = w.slot[block.current->turn ^= 1];
  std::memcpy(slot[block.thread_index.x % kWarp], &value, sizeof value);
  block.wait(w.barrier, w.live);
  std::memcpy(&value, slot[lane], sizeof value);
  return value;
}

using Task = std::function<void()>;
using Graph = std::vector<Task>;
struct Stream {
  std::unique_ptr<Graph> recording;
  void submit(Task task) {
    if (recording)
      recording->push_back(std::move(task));
    else
      task();
  }
};

}  // namespace dpsim::emulation

#define threadIdx (dpsim::emulation::block.thread_index)
#define blockIdx (dpsim::emulation::block.block_index)
#define blockDim (dpsim::emulation::block.block_size)
#define gridDim (dpsim::emulation::block.grid_size)

inline void __syncthreads() {
  dpsim::emulation::Block& block = dpsim::emulation::block;
  block.wait(block.barrier, block.live);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }

// Fibers are never interrupted between barriers: plain reads and writes are atomic.
template <typename T>
T atomicAdd(T* at, T x) {
  const T old = *at;
  *at = old + x;
  return old;
}
inline int atomicMax(int* at, int x) {
  const int old = *at;
  *at = std::max(old, x);
  return old;
}

// ---- the runtime ----------------------------------------------------------------------------------------------------
enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
using cudaStream_t = dpsim::emulation::Stream*;
using cudaGraph_t = dpsim::emulation::Graph*;
using cudaGraphExec_t = dpsim::emulation::Graph*;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "out of memory" : "no error"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 1, cudaSuccess; }

template <typename T>
cudaError_t cudaMalloc(T** data, size_t bytes) {
  *data = static_cast<T*>(bytes > size_t(1) << 36 ? nullptr : std::malloc(bytes));
  if (*data) std::memset(static_cast<void*>(*data), 0xff, bytes);
  return *data ? cudaSuccess : cudaErrorMemoryAllocation;
}
template <typename T>
cudaError_t cudaMallocHost(T** data, size_t bytes) { return cudaMalloc(data, bytes); }
inline cudaError_t cudaFree(void* data) { return std::free(data), cudaSuccess; }
inline cudaError_t cudaFreeHost(void* data) { return std::free(data), cudaSuccess; }

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = new dpsim::emulation::Stream, cudaSuccess;
}
constexpr unsigned cudaStreamNonBlocking = 1;
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  stream->submit([=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  stream->submit([=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return stream->recording.reset(new dpsim::emulation::Graph), cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return *graph = stream->recording.release(), cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return *exec = new dpsim::emulation::Graph(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const auto& task : *exec) task();
  return cudaSuccess;
}
