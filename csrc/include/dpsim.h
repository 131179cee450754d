/* The C interface of dpsim's native kernels: plain C, no dependency on any framework.
 *
 * Every function that can fail returns a dpsim_status; dpsim_last_error() then says why (per thread).
 * Arrays are contiguous, row-major, and owned by the caller. Suffix _f32 / _f64: precision of every array.
 * Nothing is kept between calls but in the objects of the last section: functions may be called from several threads
 * at once.
 */
#ifndef DPSIM_H
#define DPSIM_H

#include <stdint.h>

#define DPSIM_VERSION "0.1.0"
#define DPSIM_ABI 4 /* raised whenever a signature or struct below changes */

#if defined(__GNUC__)
#define DPSIM_API __attribute__((visibility("default")))
#else
#define DPSIM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  DPSIM_OK = 0,
  DPSIM_INVALID_ARGUMENT = 1,
  DPSIM_UNSUPPORTED = 2, /* not built, or not on this machine */
  DPSIM_OUT_OF_MEMORY = 3,
  DPSIM_CUDA_ERROR = 4,
  DPSIM_INTERNAL_ERROR = 5
} dpsim_status;

typedef enum { DPSIM_ISA_BEST = 0, DPSIM_ISA_SCALAR = 1, DPSIM_ISA_AVX2 = 2, DPSIM_ISA_AVX512 = 3 } dpsim_isa;

/* How a CPU kernel runs. A NULL pointer means {1, DPSIM_ISA_BEST}. Results depend on neither but in rounding. */
typedef struct {
  int32_t threads; /* at most this many OpenMP threads; small problems use one */
  int32_t isa;     /* dpsim_isa; an instruction set this machine lacks is DPSIM_UNSUPPORTED */
} dpsim_execution;

typedef struct {
  int32_t abi;          /* DPSIM_ABI of the library */
  int32_t isa;          /* the best dpsim_isa of this machine that was built */
  int32_t openmp;       /* 1: kernels can use threads */
  int32_t cuda;         /* 1: CUDA kernels were built */
  int32_t cuda_devices; /* usable devices; 0 without a driver */
} dpsim_capabilities_t;

DPSIM_API const char* dpsim_version(void);
DPSIM_API const char* dpsim_last_error(void);
DPSIM_API int dpsim_capabilities(dpsim_capabilities_t* capabilities);

/* ---- environment matrix of edges ---------------------------------------------------------------------------------
 * r = |edge_vec|, v = clamp((rcut - r) / (rcut - rcut_smth), 0, 1), w = v^3 (10 - 15 v + 6 v^2), r' = r + protection
 * env = (w / r', w x / r'^2, w y / r'^2, w z / r'^2)
 *
 * edge_vec (n, 3) A; env (n, 4); w (n,); d_env (n, 4, 3) = d env_c / d edge_vec_a; dw (n,) = dw/dr.
 * d_env and dw may be NULL. An edge of length zero has direction zero.
 */
DPSIM_API int dpsim_environment_f32(int64_t n, const float* edge_vec, double rcut, double rcut_smth,
                                    double protection, float* env, float* w, float* d_env, float* dw,
                                    const dpsim_execution* execution);
DPSIM_API int dpsim_environment_f64(int64_t n, const double* edge_vec, double rcut, double rcut_smth,
                                    double protection, double* env, double* w, double* d_env, double* dw,
                                    const dpsim_execution* execution);

/* Pull back: grad_edge_a = sum_c grad_env_c d env_c / d edge_vec_a + grad_w dw / d edge_vec_a.
 * grad_env (n, 4), grad_w (n,): either may be NULL (zero); grad_edge (n, 3). */
DPSIM_API int dpsim_environment_vjp_f32(int64_t n, const float* edge_vec, double rcut, double rcut_smth,
                                        double protection, const float* grad_env, const float* grad_w,
                                        float* grad_edge, const dpsim_execution* execution);
DPSIM_API int dpsim_environment_vjp_f64(int64_t n, const double* edge_vec, double rcut, double rcut_smth,
                                        double protection, const double* grad_env, const double* grad_w,
                                        double* grad_edge, const dpsim_execution* execution);

/* Push forward: t_env_c = sum_a d env_c / d edge_vec_a t_edge_a, t_w likewise. t_edge (n, 3); t_env (n, 4); t_w (n,),
 * may be NULL. */
DPSIM_API int dpsim_environment_jvp_f32(int64_t n, const float* edge_vec, double rcut, double rcut_smth,
                                        double protection, const float* t_edge, float* t_env, float* t_w,
                                        const dpsim_execution* execution);
DPSIM_API int dpsim_environment_jvp_f64(int64_t n, const double* edge_vec, double rcut, double rcut_smth,
                                        double protection, const double* t_edge, double* t_env, double* t_w,
                                        const dpsim_execution* execution);

/* The same as dpsim_environment_*, on device pointers, queued on `stream` (a cudaStream_t, NULL: the default stream)
 * of the current device. Returns DPSIM_UNSUPPORTED if CUDA kernels were not built. */
DPSIM_API int dpsim_environment_cuda_f32(int64_t n, const float* edge_vec, double rcut, double rcut_smth,
                                         double protection, float* env, float* w, float* d_env, float* dw,
                                         void* stream);
DPSIM_API int dpsim_environment_cuda_f64(int64_t n, const double* edge_vec, double rcut, double rcut_smth,
                                         double protection, double* env, double* w, double* d_env, double* dw,
                                         void* stream);

/* ---- radial embedding and its contraction with the environment matrix ---------------------------------------------
 * A dense tanh net of one input: y = tanh(x W + b) * idt + residual copies of x; G(s) is its output, G' = dG/ds.
 *     a_i[c, m] = sum_j env_ij[c] G_m(s_ij)
 * Edges are sorted by centre; those of centre i are offsets[i] .. offsets[i + 1], offsets[0] = 0.
 * Shapes: s (n_edges,), env and u_env (n_edges, channels), u_s (n_edges,), g and dg (n_edges, M), a, a_bar, a2_bar
 * (n_centers, channels, M) with M the width of the last layer.
 */
typedef struct {
  int n_in, n_out; /* the first layer has n_in = 1, each other the n_out of the one before */
  int residual;    /* copies of the input added to the output: 0; 1 if n_out = n_in; 2 if n_out = 2 n_in */
  const void* weight; /* (n_in, n_out) */
  const void* bias;   /* (n_out,) or NULL */
  const void* idt;    /* (n_out,) or NULL: one */
} dpsim_layer;

typedef struct { /* where to write the gradients of a dpsim_layer; NULL where the parameter is NULL */
  void *weight, *bias, *idt;
} dpsim_layer_grad;

/* G and G' of each s. */
DPSIM_API int dpsim_embedding_forward_f32(int64_t n, const float* s, int n_layers, const dpsim_layer* layers, float* g,
                                          float* dg, const dpsim_execution* execution);
/* Parameter gradients of sum(g_bar . G) + sum(dg_bar . G'). */
DPSIM_API int dpsim_embedding_backward_f32(int64_t n, const float* s, int n_layers, const dpsim_layer* layers,
                                           const float* g_bar, const float* dg_bar, const dpsim_layer_grad* grads,
                                           const dpsim_execution* execution);
/* a, and g, dg where they are not NULL. */
DPSIM_API int dpsim_radial_forward_f32(int64_t n_centers, const int64_t* offsets, int channels, const float* env,
                                       const float* s, int n_layers, const dpsim_layer* layers, float* a, float* g, float* dg,
                                       const dpsim_execution* execution);
/* env_bar[c] = sum_m a_bar[c, m] G_m, s_bar = sum_c env[c] sum_m a_bar[c, m] G'_m. g, dg may both be NULL: evaluated. */
DPSIM_API int dpsim_radial_backward_inputs_f32(int64_t n_centers, const int64_t* offsets, int channels,
                                               const float* env, const float* s, int n_layers, const dpsim_layer* layers,
                                               const float* a_bar, const float* g, const float* dg, float* env_bar,
                                               float* s_bar, const dpsim_execution* execution);
/* a_bar_bar[c, m] = sum_j u_env[c] G_m + u_s env[c] G'_m: gradient in a_bar of sum(u_env . env_bar) + sum(u_s s_bar). */
DPSIM_API int dpsim_radial_backward_twice_f32(int64_t n_centers, const int64_t* offsets, int channels, int width,
                                              const float* env, const float* u_env, const float* u_s, const float* g,
                                              const float* dg, float* a_bar_bar, const dpsim_execution* execution);
/* Parameter gradients of sum(a2_bar . a) + sum(u_env . env_bar) + sum(u_s s_bar); a_bar, u_env, u_s may all be NULL. */
DPSIM_API int dpsim_radial_backward_parameters_f32(int64_t n_centers, const int64_t* offsets, int channels,
                                                   const float* env, const float* s, int n_layers,
                                                   const dpsim_layer* layers, const float* a2_bar, const float* a_bar,
                                                   const float* u_env, const float* u_s, const dpsim_layer_grad* grads,
                                                   const dpsim_execution* execution);

/* G and G' of each s. */
DPSIM_API int dpsim_embedding_forward_f64(int64_t n, const double* s, int n_layers, const dpsim_layer* layers, double* g,
                                          double* dg, const dpsim_execution* execution);
/* Parameter gradients of sum(g_bar . G) + sum(dg_bar . G'). */
DPSIM_API int dpsim_embedding_backward_f64(int64_t n, const double* s, int n_layers, const dpsim_layer* layers,
                                           const double* g_bar, const double* dg_bar, const dpsim_layer_grad* grads,
                                           const dpsim_execution* execution);
/* a, and g, dg where they are not NULL. */
DPSIM_API int dpsim_radial_forward_f64(int64_t n_centers, const int64_t* offsets, int channels, const double* env,
                                       const double* s, int n_layers, const dpsim_layer* layers, double* a, double* g, double* dg,
                                       const dpsim_execution* execution);
/* env_bar[c] = sum_m a_bar[c, m] G_m, s_bar = sum_c env[c] sum_m a_bar[c, m] G'_m. g, dg may both be NULL: evaluated. */
DPSIM_API int dpsim_radial_backward_inputs_f64(int64_t n_centers, const int64_t* offsets, int channels,
                                               const double* env, const double* s, int n_layers, const dpsim_layer* layers,
                                               const double* a_bar, const double* g, const double* dg, double* env_bar,
                                               double* s_bar, const dpsim_execution* execution);
/* a_bar_bar[c, m] = sum_j u_env[c] G_m + u_s env[c] G'_m: gradient in a_bar of sum(u_env . env_bar) + sum(u_s s_bar). */
DPSIM_API int dpsim_radial_backward_twice_f64(int64_t n_centers, const int64_t* offsets, int channels, int width,
                                              const double* env, const double* u_env, const double* u_s, const double* g,
                                              const double* dg, double* a_bar_bar, const dpsim_execution* execution);
/* Parameter gradients of sum(a2_bar . a) + sum(u_env . env_bar) + sum(u_s s_bar); a_bar, u_env, u_s may all be NULL. */
DPSIM_API int dpsim_radial_backward_parameters_f64(int64_t n_centers, const int64_t* offsets, int channels,
                                                   const double* env, const double* s, int n_layers,
                                                   const dpsim_layer* layers, const double* a2_bar, const double* a_bar,
                                                   const double* u_env, const double* u_s, const dpsim_layer_grad* grads,
                                                   const dpsim_execution* execution);

/* ---- rows scaled to unit root mean square ---------------------------------------------------------------------------
 * c = x - mean(x) where center, else x;  r = 1 / sqrt(mean(c^2) + eps);  y = f r c, means over a row of n numbers.
 * x has rows ld apart, all else (rows, n) or (rows,) contiguous. f, t, f_bar and f_grad may be NULL (1, 0, not wanted).
 * backward: gradients of sum(b y) in x and f; backward_twice: of sum(u x_bar) + sum(t f_bar) in x, f and b.
 */
DPSIM_API int dpsim_rows_forward_f32(int64_t rows, int n, int64_t ld, const float* x, const float* f, int center,
                                     double eps, float* y, const dpsim_execution* execution);
DPSIM_API int dpsim_rows_backward_f32(int64_t rows, int n, int64_t ld, const float* x, const float* f, int center,
                                      double eps, const float* b, float* x_bar, float* f_bar,
                                      const dpsim_execution* execution);
DPSIM_API int dpsim_rows_backward_twice_f32(int64_t rows, int n, int64_t ld, const float* x, const float* f,
                                            int center, double eps, const float* b, const float* u, const float* t,
                                            float* x_grad, float* f_grad, float* b_grad,
                                            const dpsim_execution* execution);

DPSIM_API int dpsim_rows_forward_f64(int64_t rows, int n, int64_t ld, const double* x, const double* f, int center,
                                     double eps, double* y, const dpsim_execution* execution);
DPSIM_API int dpsim_rows_backward_f64(int64_t rows, int n, int64_t ld, const double* x, const double* f, int center,
                                      double eps, const double* b, double* x_bar, double* f_bar,
                                      const dpsim_execution* execution);
DPSIM_API int dpsim_rows_backward_twice_f64(int64_t rows, int n, int64_t ld, const double* x, const double* f,
                                            int center, double eps, const double* b, const double* u, const double* t,
                                            double* x_grad, double* f_grad, double* b_grad,
                                            const dpsim_execution* execution);

/* ---- update of the edges of a line graph (DPA-3) -------------------------------------------------------------------
 * Edges m run from vertex alpha (those of alpha: offsets[alpha] .. offsets[alpha + 1], offsets[0] = 0) to beta[m].
 *     z = e W + p[alpha] + q[beta],   u = sum_{m of alpha} sw act(z[:C]),   e_new = e + step act(z[C:])
 * Widths: d = n_in, C = n_conv, S = n_self, which is d or 0. act is silu below `threshold`, tanh(a (z - threshold)) + b
 * above, for DPSIM_SILUT. Shapes: e (n_edges, d), weight (d, C + S), p (n_alpha, C + S), q (n_beta, C + S),
 * sw (n_edges,), step (S,), u (n_alpha, C), e_new (n_edges, S); arrays of width 0 may be NULL.
 */
typedef enum { DPSIM_TANH = 0, DPSIM_SILU = 1, DPSIM_SILUT = 2 } dpsim_activation;

typedef struct {
  int64_t n_alpha, n_beta;
  const int64_t *offsets, *beta;
  int32_t n_in, n_conv, n_self;
  int32_t activation;
  double threshold;
  const void *e, *weight, *p, *q, *sw, *step;
} dpsim_line_graph;

typedef struct { /* gradients or tangents, shaped as the arrays of a dpsim_line_graph; NULL: not wanted, or zero */
  void *e, *weight, *p, *q, *sw, *step;
} dpsim_line_graph_arrays;

DPSIM_API int dpsim_line_graph_forward_f32(const dpsim_line_graph* graph, float* u, float* e_new,
                                           const dpsim_execution* execution);
/* Gradients of sum(u_bar u) + sum(e_new_bar e_new). */
DPSIM_API int dpsim_line_graph_backward_f32(const dpsim_line_graph* graph, const float* u_bar, const float* e_new_bar,
                                            const dpsim_line_graph_arrays* grads, const dpsim_execution* execution);
/* Of sum(t_e e_bar) + sum(t_p p_bar) + sum(t_q q_bar) + sum(t_sw sw_bar), tangents t and gradients of the call above:
 * its gradients in the arrays of graph, in u_bar: u_dot, and in e_new_bar: e_new_dot. */
DPSIM_API int dpsim_line_graph_backward_twice_f32(const dpsim_line_graph* graph, const float* u_bar,
                                                  const float* e_new_bar, const dpsim_line_graph_arrays* tangents,
                                                  const dpsim_line_graph_arrays* grads, float* u_dot,
                                                  float* e_new_dot, const dpsim_execution* execution);
DPSIM_API int dpsim_line_graph_forward_f64(const dpsim_line_graph* graph, double* u, double* e_new,
                                           const dpsim_execution* execution);
/* Gradients of sum(u_bar u) + sum(e_new_bar e_new). */
DPSIM_API int dpsim_line_graph_backward_f64(const dpsim_line_graph* graph, const double* u_bar, const double* e_new_bar,
                                            const dpsim_line_graph_arrays* grads, const dpsim_execution* execution);
/* Of sum(t_e e_bar) + sum(t_p p_bar) + sum(t_q q_bar) + sum(t_sw sw_bar), tangents t and gradients of the call above:
 * its gradients in the arrays of graph, in u_bar: u_dot, and in e_new_bar: e_new_dot. */
DPSIM_API int dpsim_line_graph_backward_twice_f64(const dpsim_line_graph* graph, const double* u_bar,
                                                  const double* e_new_bar, const dpsim_line_graph_arrays* tangents,
                                                  const dpsim_line_graph_arrays* grads, double* u_dot,
                                                  double* e_new_dot, const dpsim_execution* execution);

/* ---- sums over neighbours -------------------------------------------------------------------------------------------
 * Edges m, sorted by centre i (offsets from 0), lead to row j = index[m] of x, or to row m where index is NULL.
 *     neighbor_sum     z[i, k, c] = sum_{m of i} h[m, k] x[j, c]
 *     neighbor_dot     h[m, k]    = sum_c z[i, k, c] x[j, c]
 *     neighbor_spread  x[j, c]    = sum_{m to j} sum_k h[m, k] z[i, k, c]
 * h (n_edges, K), x (n_rows, C), z (n_centers, K, C). With w (K, C), which may be NULL, z is (n_centers, C) and stands
 * for w[k, c] z[i, c]: the sum is z[i, c] = sum_k w[k, c] sum_m .., and one more function is its derivative in w:
 *     neighbor_weight  w[k, c]    = sum_i z[i, c] sum_{m of i} h[m, k] x[j, c]
 */
DPSIM_API int dpsim_neighbor_sum_f32(int64_t n_centers, const int64_t* offsets, int64_t n_rows,
                                     const int64_t* index, int K, int C, const float* h, const float* x, const float* w,
                                     float* z, const dpsim_execution* execution);
DPSIM_API int dpsim_neighbor_dot_f32(int64_t n_centers, const int64_t* offsets, int64_t n_rows,
                                     const int64_t* index, int K, int C, const float* x, const float* z, const float* w,
                                     float* h, const dpsim_execution* execution);
DPSIM_API int dpsim_neighbor_spread_f32(int64_t n_centers, const int64_t* offsets, int64_t n_rows,
                                        const int64_t* index, int K, int C, const float* h, const float* z, const float* w,
                                        float* x, const dpsim_execution* execution);
DPSIM_API int dpsim_neighbor_weight_f32(int64_t n_centers, const int64_t* offsets, int64_t n_rows,
                                        const int64_t* index, int K, int C, const float* h, const float* x, const float* z,
                                        float* w, const dpsim_execution* execution);
DPSIM_API int dpsim_neighbor_sum_f64(int64_t n_centers, const int64_t* offsets, int64_t n_rows,
                                     const int64_t* index, int K, int C, const double* h, const double* x, const double* w,
                                     double* z, const dpsim_execution* execution);
DPSIM_API int dpsim_neighbor_dot_f64(int64_t n_centers, const int64_t* offsets, int64_t n_rows,
                                     const int64_t* index, int K, int C, const double* x, const double* z, const double* w,
                                     double* h, const dpsim_execution* execution);
DPSIM_API int dpsim_neighbor_spread_f64(int64_t n_centers, const int64_t* offsets, int64_t n_rows,
                                        const int64_t* index, int K, int C, const double* h, const double* z, const double* w,
                                        double* x, const dpsim_execution* execution);
DPSIM_API int dpsim_neighbor_weight_f64(int64_t n_centers, const int64_t* offsets, int64_t n_rows,
                                        const int64_t* index, int K, int C, const double* h, const double* x, const double* z,
                                        double* w, const dpsim_execution* execution);

/* ---- attention among the neighbours of each atom (DPA-2) --------------------------------------------------------------
 * Edges are sorted by centre (offsets from 0). For two edges j, k of one centre, u = w h, and each head:
 *     l_jk = (g_j query_key)_head . g_k,   x_jk = shift w_j w_k + l_jk m_jk,   m_jk = u_j.u_k with `gate`, else w_j w_k
 *     a_jk = exp(x_jk) / (sum_k exp(x_jk) + n_slots - n_edges of the centre) u_j.u_k / sqrt(3)
 *     r_j  = sum_heads (sum_k a_jk v_k) out_head
 * n_slots = 0: as many slots as edges. v has g where of_g, then h where of_h: n_values = d of_g + 3 of_h, d = width.
 * Shapes: g (n_edges, d), h (n_edges, 3), w (n_edges,), query_key (d, heads d), out (heads n_values, n_out),
 * r (n_edges, n_out).
 */
typedef struct {
  int64_t n_centers;
  const int64_t* offsets;
  int64_t n_slots;
  int32_t heads, width, n_out;
  int32_t of_g, of_h, gate;
  double shift;
  const void *g, *h, *w, *query_key, *out;
} dpsim_pair_attention;

typedef struct { /* gradients or tangents, shaped as the arrays of a dpsim_pair_attention; NULL: not wanted, or zero */
  void *g, *h, *w, *query_key, *out;
} dpsim_pair_attention_arrays;

DPSIM_API int dpsim_pair_attention_forward_f32(const dpsim_pair_attention* problem, float* r,
                                               const dpsim_execution* execution);
/* Gradients of sum(r_bar r). */
DPSIM_API int dpsim_pair_attention_backward_f32(const dpsim_pair_attention* problem, const float* r_bar,
                                                const dpsim_pair_attention_arrays* grads,
                                                const dpsim_execution* execution);
/* With tangents of g, h and w: the derivative r_dot of r along them, and the gradients of sum(r_bar r_dot). */
DPSIM_API int dpsim_pair_attention_backward_twice_f32(const dpsim_pair_attention* problem, const float* r_bar,
                                                      const dpsim_pair_attention_arrays* tangents,
                                                      const dpsim_pair_attention_arrays* grads, float* r_dot,
                                                      const dpsim_execution* execution);
DPSIM_API int dpsim_pair_attention_forward_f64(const dpsim_pair_attention* problem, double* r,
                                               const dpsim_execution* execution);
/* Gradients of sum(r_bar r). */
DPSIM_API int dpsim_pair_attention_backward_f64(const dpsim_pair_attention* problem, const double* r_bar,
                                                const dpsim_pair_attention_arrays* grads,
                                                const dpsim_execution* execution);
/* With tangents of g, h and w: the derivative r_dot of r along them, and the gradients of sum(r_bar r_dot). */
DPSIM_API int dpsim_pair_attention_backward_twice_f64(const dpsim_pair_attention* problem, const double* r_bar,
                                                      const dpsim_pair_attention_arrays* tangents,
                                                      const dpsim_pair_attention_arrays* grads, double* r_dot,
                                                      const dpsim_execution* execution);

/* ---- students: tabulated models --------------------------------------------------------------------------------------
 * A student is a .dpsim file written by `dpsim compress`: tables of the embedding in r, a fitting net per element. The
 * equations are in docs/students.md, step by step as in the kernels. Everything here is in float64, A, eV, whatever
 * precision the student computes in.
 *
 * A model is immutable: any number of threads may use one at once. A workspace belongs to one caller at a time; it
 * keeps buffers and the neighbour list between calls, and decides where the work is done.
 */
typedef struct dpsim_student dpsim_student;
typedef struct dpsim_workspace dpsim_workspace;

typedef enum { DPSIM_PRECISION_FILE = 0, DPSIM_FLOAT32 = 32, DPSIM_FLOAT64 = 64 } dpsim_precision;

typedef struct {
  int32_t n_types;
  int32_t precision; /* 32 or 64: what it computes in */
  double rcut;       /* A, the largest of its parts */
  double r_min;      /* A, where its tables begin */
} dpsim_student_info_t;

DPSIM_API int dpsim_student_open(const char* path, int precision, dpsim_student** student);
DPSIM_API int dpsim_student_from_memory(const void* file, int64_t size, int precision, dpsim_student** student);
DPSIM_API void dpsim_student_close(dpsim_student* student); /* NULL is allowed */
DPSIM_API int dpsim_student_info(const dpsim_student* student, dpsim_student_info_t* info);
/* The element symbol of a type; NULL for a type it does not have. Lives as long as the student. */
DPSIM_API const char* dpsim_student_type_name(const dpsim_student* student, int type);

/* On the CPU, with `threads` and `isa` of `execution` (NULL: one thread, best instruction set). */
DPSIM_API int dpsim_workspace_create(const dpsim_execution* execution, dpsim_workspace** workspace);
/* On CUDA device `device`. DPSIM_UNSUPPORTED if there is none or CUDA kernels were not built. */
DPSIM_API int dpsim_workspace_create_cuda(int device, dpsim_workspace** workspace);
DPSIM_API void dpsim_workspace_free(dpsim_workspace* workspace); /* NULL is allowed */
/* Bytes of memory it holds (on the device, for CUDA). */
DPSIM_API int64_t dpsim_workspace_bytes(const dpsim_workspace* workspace);

/* What a call computes: arrays of the caller; NULL where not wanted. Every one is overwritten, never added to. */
typedef struct {
  double* energy;      /* (1,) */
  double* atom_energy; /* (n,) */
  double* forces;      /* (n, 3); with ghosts (n_all, 3): the ghosts' share is in their rows */
  double* virial;      /* (9,) row-major, -dE/d(strain), eV */
  double* atom_virial; /* (n, 9): the centre's share */
  int64_t below_range; /* out: directed pairs nearer than r_min */
  int64_t n_rebuilds;  /* out: neighbour lists built by this workspace so far */
} dpsim_results;

/* One configuration. types (n,) in [0, n_types); positions (n, 3), any real numbers, wrapped or not; cell (3, 3) rows
 * are lattice vectors, pbc (3,) 0 or 1; rows of open directions are ignored; cell may be NULL if nothing is periodic.
 * Any cell, triclinic, left-handed, smaller than the cutoff. The neighbour list holds pairs within rcut + skin and is built anew when
 * an atom has moved so far that one could be missing; 0 <= skin. Results never depend on the skin but in rounding. */
DPSIM_API int dpsim_student_compute(const dpsim_student* student, dpsim_workspace* workspace, int64_t n,
                                    const int32_t* types, const double* positions, const double* cell,
                                    const int32_t* pbc, double skin, dpsim_results* results);

/* The same for an engine with its own ghost atoms and neighbour list, as LAMMPS has: atoms 0 .. n_local - 1 are
 * centres, those up to n_all ghosts; neighbours of centre i are neighbors[offsets[i]] .. [offsets[i + 1]], both
 * directions listed, all within rcut (more may be there). `list_changed` = 0 promises that offsets, neighbors and
 * types are those of the previous call with this workspace. first_type: the type of the first atom of the whole
 * configuration (read by some imported models only). */
DPSIM_API int dpsim_student_compute_neighbors(const dpsim_student* student, dpsim_workspace* workspace,
                                              int64_t n_local, int64_t n_all, const int32_t* types,
                                              const double* positions, const int64_t* offsets,
                                              const int32_t* neighbors, int list_changed, int32_t first_type,
                                              dpsim_results* results);

#ifdef __cplusplus
}
#endif
#endif
