#define DPSIM_ISA scalar
#define DPSIM_VECTOR_BYTES 16
#include "kernels_table.h"

const dpsim::Kernels dpsim::kernels_scalar = {dpsim::scalar::table<float>(), dpsim::scalar::table<double>()};
