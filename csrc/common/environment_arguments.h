// What every entry point of the environment matrix refuses.
#pragma once

#include "../cpu/status.h"

namespace dpsim {

inline int check_environment(int64_t n, double rcut, double rcut_smth, double protection, bool arrays) {
  if (n < 0) return fail(DPSIM_INVALID_ARGUMENT, "`n` is %lld; expected at least 0", static_cast<long long>(n));
  if (n > 0 && !arrays) return fail(DPSIM_INVALID_ARGUMENT, "an array is NULL; expected edge_vec and all outputs");
  if (!(rcut_smth >= 0 && rcut > rcut_smth && rcut < 1e30))
    return fail(DPSIM_INVALID_ARGUMENT, "`rcut_smth`, `rcut` are %g, %g; expected 0 <= rcut_smth < rcut", rcut_smth,
                rcut);
  if (!(protection >= 0)) return fail(DPSIM_INVALID_ARGUMENT, "`protection` is %g; expected at least 0", protection);
  return DPSIM_OK;
}

}  // namespace dpsim
