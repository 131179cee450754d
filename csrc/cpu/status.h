// Error reporting across the C boundary.
#pragma once

#include "dpsim.h"

namespace dpsim {

// Records a printf-style message for dpsim_last_error() of this thread and returns `status`.
int fail(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Runs body() so that no exception leaves the library. body returns a dpsim_status.
int fail_from_exception() noexcept;
template <typename Body>
int guarded(Body body) noexcept {
  try {
    return body();
  } catch (...) {
    return fail_from_exception();
  }
}

}  // namespace dpsim
