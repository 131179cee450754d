// What every checked entry point of the kernels does: check its arguments, choose the instruction set, call.
#pragma once

#include "isa.h"
#include "status.h"

namespace dpsim {

// check() -> dpsim_status; call(kernels of T, threads).
template <typename T, typename Check, typename Call>
int run_checked(const dpsim_execution* execution, Check check, Call call) {
  return guarded([&]() -> int {
    if (const int status = check()) return status;
    const Kernels* kernels = select_kernels(execution);
    if (!kernels) return DPSIM_UNSUPPORTED;
    call(of<T>(*kernels), execution && execution->threads > 1 ? execution->threads : 1);
    return DPSIM_OK;
  });
}

// offsets[0 .. n] must not fall; `what` they are of is for the message.
inline int check_rising(const int64_t* offsets, int64_t n, const char* what) {
  for (int64_t i = 0; i < n; ++i)
    if (offsets[i + 1] < offsets[i])
      return fail(DPSIM_INVALID_ARGUMENT, "`offsets` falls after %s %lld", what, static_cast<long long>(i));
  return DPSIM_OK;
}

}  // namespace dpsim
