// What is known about the library as a whole: version, errors, capabilities, choice of instruction set.
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <new>

#include "../cuda/cuda_runtime_info.h"
#include "isa.h"
#include "status.h"

namespace dpsim {
namespace {
thread_local char last_error[512] = "";
}

int fail(int status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

int fail_from_exception() noexcept {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return fail(DPSIM_OUT_OF_MEMORY, "out of memory in a native kernel");
  } catch (const std::exception& error) {
    return fail(DPSIM_INTERNAL_ERROR, "native kernel failed: %s", error.what());
  } catch (...) {
    return fail(DPSIM_INTERNAL_ERROR, "native kernel failed");
  }
}

#if defined(DPSIM_X86)
namespace {
int detect_isa() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return DPSIM_ISA_AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return DPSIM_ISA_AVX2;
  return DPSIM_ISA_SCALAR;
}
}  // namespace

int best_isa() {
  static const int isa = detect_isa();
  return isa;
}
#else
int best_isa() { return DPSIM_ISA_SCALAR; }
#endif

const Kernels* select_kernels(const dpsim_execution* execution) {
  const int best = best_isa();
  const int isa = execution && execution->isa != DPSIM_ISA_BEST ? execution->isa : best;
  if (isa < DPSIM_ISA_SCALAR || isa > best) {
    fail(DPSIM_UNSUPPORTED, "`isa` is %d; expected 0 (best) to %d on this machine", isa, best);
    return nullptr;
  }
#if defined(DPSIM_X86)
  if (isa == DPSIM_ISA_AVX512) return &kernels_avx512;
  if (isa == DPSIM_ISA_AVX2) return &kernels_avx2;
#endif
  return &kernels_scalar;
}

}  // namespace dpsim

const char* dpsim_version(void) { return DPSIM_VERSION; }
const char* dpsim_last_error(void) { return dpsim::last_error; }

int dpsim_capabilities(dpsim_capabilities_t* capabilities) {
  if (!capabilities) return dpsim::fail(DPSIM_INVALID_ARGUMENT, "`capabilities` is NULL; expected a struct to fill");
  capabilities->abi = DPSIM_ABI;
  capabilities->isa = dpsim::best_isa();
#ifdef _OPENMP
  capabilities->openmp = 1;
#else
  capabilities->openmp = 0;
#endif
#ifdef DPSIM_WITH_CUDA
  capabilities->cuda = 1;
  capabilities->cuda_devices = dpsim::cuda_device_count();
#else
  capabilities->cuda = 0;
  capabilities->cuda_devices = 0;
#endif
  return DPSIM_OK;
}
