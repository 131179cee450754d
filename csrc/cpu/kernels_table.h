// Fills the table of one instruction set. Included last by each kernels_*.cpp.
#include "environment_kernel.h"
#include "isa.h"
#include "line_graph_kernel.h"
#include "neighbor_sum_kernel.h"
#include "pair_attention_kernel.h"
#include "radial_kernel.h"
#include "rows_kernel.h"
#include "student_kernel.h"

namespace dpsim {
namespace DPSIM_ISA {

template <typename T>
constexpr KernelsOf<T> table() {
  return {environment<T>,       environment_vjp<T>,        environment_jvp<T>,
          embedding_forward<T>, embedding_backward<T>,     radial_forward<T>,
          radial_backward_inputs<T>, radial_backward_twice<T>, radial_backward_parameters<T>,
          rows_forward<T>,       rows_backward<T>,         rows_backward_twice<T>,
          line_graph_forward<T>, line_graph_backward<T>,   line_graph_backward_twice<T>,
          neighbor_sum<T>,       neighbor_dot<T>,          neighbor_spread<T>,
          neighbor_weight<T>,
          pair_attention_forward<T>, pair_attention_backward<T>, pair_attention_backward_twice<T>,
          student_pack<T>,       student_unpack<T>,        student_scratch<T>,
          student_scratch_free<T>, student_scratch_bytes<T>, student_evaluate<T>};
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
