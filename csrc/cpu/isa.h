// Runtime choice of the instruction set.
//
// Every CPU kernel is a header included by one translation unit per instruction set (kernels_scalar.cpp, ...), which
// defines DPSIM_ISA (its namespace) and DPSIM_VECTOR_BYTES, and fills one `Kernels` table. To add a kernel: write
// cpu/X_kernel.h, add its entries here, in kernels_table.h and a checked entry point in cpu/X.cpp.
#pragma once

#include <cstdint>

#include "dpsim.h"

namespace dpsim {

struct Switch;
struct Student;
struct AtomsView;
struct StudentOutput;

template <typename T>
struct KernelsOf {
  void (*environment)(int64_t n, const T* edge_vec, Switch p, T* env, T* w, T* d_env, T* dw, int threads);
  void (*environment_vjp)(int64_t n, const T* edge_vec, Switch p, const T* grad_env, const T* grad_w, T* grad_edge,
                          int threads);
  void (*environment_jvp)(int64_t n, const T* edge_vec, Switch p, const T* t_edge, T* t_env, T* t_w, int threads);

  void (*embedding_forward)(int64_t n, const T* s, int n_layers, const dpsim_layer* layers, T* g, T* dg, int threads);
  void (*embedding_backward)(int64_t n, const T* s, int n_layers, const dpsim_layer* layers, const T* g_bar,
                             const T* dg_bar, const dpsim_layer_grad* grads, int threads);
  void (*radial_forward)(int64_t n_centers, const int64_t* offsets, int channels, const T* env, const T* s,
                         int n_layers, const dpsim_layer* layers, T* a, T* g, T* dg, int threads);
  void (*radial_backward_inputs)(int64_t n_centers, const int64_t* offsets, int channels, const T* env, const T* s,
                                 int n_layers, const dpsim_layer* layers, const T* a_bar, const T* g, const T* dg,
                                 T* env_bar, T* s_bar, int threads);
  void (*radial_backward_twice)(int64_t n_centers, const int64_t* offsets, int channels, int width, const T* env,
                                const T* u_env, const T* u_s, const T* g, const T* dg, T* a_bar_bar, int threads);
  void (*radial_backward_parameters)(int64_t n_centers, const int64_t* offsets, int channels, const T* env, const T* s,
                                     int n_layers, const dpsim_layer* layers, const T* a2_bar, const T* a_bar,
                                     const T* u_env, const T* u_s, const dpsim_layer_grad* grads, int threads);

  void (*rows_forward)(int64_t rows, int n, int64_t ld, const T* x, const T* f, bool center, double eps, T* y,
                       int threads);
  void (*rows_backward)(int64_t rows, int n, int64_t ld, const T* x, const T* f, bool center, double eps, const T* b,
                        T* x_bar, T* f_bar, int threads);
  void (*rows_backward_twice)(int64_t rows, int n, int64_t ld, const T* x, const T* f, bool center, double eps,
                              const T* b, const T* u, const T* t, T* x_grad, T* f_grad, T* b_grad, int threads);

  void (*line_graph_forward)(const dpsim_line_graph& graph, T* u, T* e_new, int threads);
  void (*line_graph_backward)(const dpsim_line_graph& graph, const T* u_bar, const T* e_new_bar,
                              const dpsim_line_graph_arrays& grads, int threads);
  void (*line_graph_backward_twice)(const dpsim_line_graph& graph, const T* u_bar, const T* e_new_bar,
                                    const dpsim_line_graph_arrays& tangents, const dpsim_line_graph_arrays& grads,
                                    T* u_dot, T* e_new_dot, int threads);

  void (*neighbor_sum)(int64_t n_centers, const int64_t* offsets, int64_t n_rows, const int64_t* index, int K, int C,
                      const T* h, const T* x, const T* w, T* z, int threads);
  void (*neighbor_dot)(int64_t n_centers, const int64_t* offsets, int64_t n_rows, const int64_t* index, int K, int C,
                      const T* x, const T* z, const T* w, T* h, int threads);
  void (*neighbor_spread)(int64_t n_centers, const int64_t* offsets, int64_t n_rows, const int64_t* index, int K, int C,
                         const T* h, const T* z, const T* w, T* x, int threads);
  void (*neighbor_weight)(int64_t n_centers, const int64_t* offsets, int64_t n_rows, const int64_t* index, int K, int C,
                         const T* h, const T* x, const T* z, T* w, int threads);

  void (*pair_attention_forward)(const dpsim_pair_attention& problem, T* r, int threads);
  void (*pair_attention_backward)(const dpsim_pair_attention& problem, const T* r_bar,
                                  const dpsim_pair_attention_arrays& grads, int threads);
  void (*pair_attention_backward_twice)(const dpsim_pair_attention& problem, const T* r_bar,
                                        const dpsim_pair_attention_arrays& tangents,
                                        const dpsim_pair_attention_arrays& grads, T* r_dot, int threads);

  void* (*student_pack)(const Student& student);
  void (*student_unpack)(void* packed);
  void* (*student_scratch)(const void* packed, int threads);
  void (*student_scratch_free)(void* scratch);
  int64_t (*student_scratch_bytes)(const void* scratch);
  void (*student_evaluate)(const void* packed, void* scratch, const AtomsView& atoms, StudentOutput& out, int threads);
};

struct Kernels {
  KernelsOf<float> f32;
  KernelsOf<double> f64;
};

template <typename T>
const KernelsOf<T>& of(const Kernels& kernels);
template <>
inline const KernelsOf<float>& of(const Kernels& kernels) {
  return kernels.f32;
}
template <>
inline const KernelsOf<double>& of(const Kernels& kernels) {
  return kernels.f64;
}

extern const Kernels kernels_scalar;
#if defined(DPSIM_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The best instruction set of this machine.
int best_isa();
// The table for execution->isa, or nullptr with dpsim_last_error set.
const Kernels* select_kernels(const dpsim_execution* execution);

}  // namespace dpsim
