// Checked calls of the CUDA runtime, and memory that grows: host side of the CUDA kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../cpu/status.h"
#include "device.h"

namespace dpsim::cuda {

// Thrown with the message recorded (dpsim_last_error); the entry points return the status.
struct Failure {
  int status;
};

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forget it where it can be forgotten
  throw Failure{error == cudaErrorMemoryAllocation
                    ? fail(DPSIM_OUT_OF_MEMORY, "the GPU or the host has no memory left (CUDA: %s)",
                           cudaGetErrorString(error))
                    : fail(DPSIM_CUDA_ERROR, "CUDA: %s", cudaGetErrorString(error))};
}

// What the arrays of a workspace have in common.
struct Ledger {
  int64_t bytes = 0;
  bool moved = false;  // an array has a new address: a captured graph no longer holds
};

// An array on the device. What it held is lost when it grows; the stream must be idle then.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(Ledger& ledger) : ledger_(ledger) {}
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { release(); }

  // Room for n items, and an eighth more where there is memory for it, so that a slow drift does not move it each time.
  T* reserve(int64_t n) {
    n = std::max<int64_t>(n, 1);
    if (n <= size_) return data_;
    release();
    if (!allocate(n + n / 8) && !allocate(n))
      throw Failure{fail(DPSIM_OUT_OF_MEMORY,
                         "the GPU has no room for %lld bytes more (%lld are in use here). Use fewer atoms, or a GPU "
                         "with more memory.",
                         static_cast<long long>(n * int64_t(sizeof(T))), static_cast<long long>(ledger_.bytes))};
    ledger_.moved = true;
    return data_;
  }
  void release() {
    if (!data_) return;
    cudaFree(data_);
    ledger_.bytes -= size_ * int64_t(sizeof(T));
    data_ = nullptr;
    size_ = 0;
  }
  T* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  bool allocate(int64_t n) {
    const cudaError_t error = cudaMalloc(&data_, size_t(n) * sizeof(T));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      data_ = nullptr;
      return false;
    }
    check(error);
    size_ = n;
    ledger_.bytes += n * int64_t(sizeof(T));
    return true;
  }
  Ledger& ledger_;
  T* data_ = nullptr;
  int64_t size_ = 0;
};

// Page-locked memory of the host, of fixed size: copies from and to it need no staging.
class PinnedArray {
 public:
  explicit PinnedArray(size_t bytes) { check(cudaMallocHost(&data_, bytes)); }
  PinnedArray(const PinnedArray&) = delete;
  PinnedArray& operator=(const PinnedArray&) = delete;
  ~PinnedArray() { cudaFreeHost(data_); }
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

// Makes `device` current, and the one before again when it goes.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_));
    if (before_ != device) check(cudaSetDevice(device));
  }
  ~CurrentDevice() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

}  // namespace dpsim::cuda
