#define DPSIM_ISA avx2
#define DPSIM_VECTOR_BYTES 32
#include "kernels_table.h"

const dpsim::Kernels dpsim::kernels_avx2 = {dpsim::avx2::table<float>(), dpsim::avx2::table<double>()};
