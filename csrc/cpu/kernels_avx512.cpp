#define DPSIM_ISA avx512
#define DPSIM_VECTOR_BYTES 64
#include "kernels_table.h"

const dpsim::Kernels dpsim::kernels_avx512 = {dpsim::avx512::table<float>(), dpsim::avx512::table<double>()};
