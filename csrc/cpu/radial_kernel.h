// The radial embedding net with its derivative, G(s) and G'(s) = dG/ds of a dense tanh net of one input (radial_net.h),
// its contraction with the environment matrix, and every gradient that force training needs. CPU, any instruction set:
// included once per translation unit (see isa.h).
//
// Mirrors dpsim/kernels/radial.py. A thread owns whole blocks of kRows edges, keeps every layer of a block in cache, reads s, grad_g, grad_dg, and
// writes g, dg of its rows. Parameter gradients are summed per thread and then over threads in order: the result is
// the same from run to run for one number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "parts.h"
#include "radial_net.h"

namespace dpsim {
namespace DPSIM_ISA {

template <typename T>
std::vector<PackedLayer<T>> pack(int n_layers, const dpsim_layer* layers) {
  return std::vector<PackedLayer<T>>(layers, layers + n_layers);
}

template <typename T>
void embedding_forward(int64_t n, const T* s, int n_layers, const dpsim_layer* layers, T* g, T* dg, int threads) {
  const auto net = pack<T>(n_layers, layers);
  const int width = net.back().n_out, ld = net.back().ld_out;
  const int64_t blocks = (n + kRows - 1) / kRows;
  (void)threads;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    Workspace<T> ws(net);
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * kRows;
      const int rows = int(std::min<int64_t>(kRows, n - first));
      forward_block(net, s + first, rows, ws);
      for (int r = 0; r < rows; ++r) {
        std::memcpy(g + (first + r) * width, ws.out.data() + size_t(r) * ld, width * sizeof(T));
        std::memcpy(dg + (first + r) * width, ws.out.data() + size_t(r + kRows) * ld, width * sizeof(T));
      }
    }
  }
}

// ---- contraction with the environment matrix -------------------------------------------------------------------
// A_i[c, m] = sum_j env_ij[c] G_m(s_ij): edges sorted by centre, those of atom i are offsets[i] .. offsets[i + 1].

// Writes a (n_atoms, channels, M), and g, dg (n_edges, M) where they are not null.
template <typename T>
void radial_forward(int64_t n_atoms, const int64_t* offsets, int channels, const T* env, const T* s, int n_layers,
                    const dpsim_layer* layers, T* a, T* g, T* dg, int threads) {
  const auto net = pack<T>(n_layers, layers);
  const int width = net.back().n_out, ld = net.back().ld_out;
  for_parts(n_atoms, offsets, threads, [&](int, int64_t begin, int64_t end) {
    if (begin == end) return;
    Workspace<T> ws(net);
    int64_t atom = begin;
    std::fill(a + begin * channels * width, a + end * channels * width, T(0));
    for (int64_t first = offsets[begin]; first < offsets[end]; first += kRows) {
      const int rows = int(std::min<int64_t>(kRows, offsets[end] - first));
      forward_block(net, s + first, rows, ws);
      for_rows(first, rows, offsets, atom, [&](int r, int64_t edge, int64_t i) {
        const T *gr = ws.out.data() + size_t(r) * ld, *dgr = gr + size_t(kRows) * ld;
        for (int c = 0; c < channels; ++c) {
          const T x = env[edge * channels + c];
          T* row = a + (i * channels + c) * width;
          for (int m = 0; m < width; ++m) row[m] += x * gr[m];
        }
        if (g) std::memcpy(g + edge * width, gr, width * sizeof(T));
        if (dg) std::memcpy(dg + edge * width, dgr, width * sizeof(T));
      });
    }
  });
}

// env_bar_c = sum_m a_bar[c, m] G_m and s_bar = sum_c env_c sum_m a_bar[c, m] G'_m, per edge.
// Reads g and dg where given, and evaluates the net again where they are null.
template <typename T>
void radial_backward_inputs(int64_t n_atoms, const int64_t* offsets, int channels, const T* env, const T* s,
                            int n_layers, const dpsim_layer* layers, const T* a_bar, const T* g, const T* dg,
                            T* env_bar, T* s_bar, int threads) {
  const auto net = pack<T>(n_layers, layers);
  const int width = net.back().n_out, ld = net.back().ld_out;
  for_parts(n_atoms, offsets, threads, [&](int, int64_t begin, int64_t end) {
    if (begin == end) return;
    Workspace<T> ws(net);
    int64_t atom = begin;
    for (int64_t first = offsets[begin]; first < offsets[end]; first += kRows) {
      const int rows = int(std::min<int64_t>(kRows, offsets[end] - first));
      if (!g) forward_block(net, s + first, rows, ws);
      for_rows(first, rows, offsets, atom, [&](int r, int64_t edge, int64_t i) {
        const T* gr = g ? g + edge * width : ws.out.data() + size_t(r) * ld;
        const T* dgr = g ? dg + edge * width : ws.out.data() + size_t(r + kRows) * ld;
        T total = 0;
        for (int c = 0; c < channels; ++c) {
          const T* row = a_bar + (i * channels + c) * width;
          T sum = 0, slope = 0;
#pragma omp simd reduction(+ : sum, slope)
          for (int m = 0; m < width; ++m) sum += row[m] * gr[m], slope += row[m] * dgr[m];
          env_bar[edge * channels + c] = sum;
          total += env[edge * channels + c] * slope;
        }
        s_bar[edge] = total;
      });
    }
  });
}

// The gradient, in a_bar, of sum(u_env . env_bar) + sum(u_s s_bar):
// a[c, m] = sum_j u_env[c] G_m + u_s env[c] G'_m.
template <typename T>
void radial_backward_twice(int64_t n_atoms, const int64_t* offsets, int channels, int width, const T* env,
                           const T* u_env, const T* u_s, const T* g, const T* dg, T* a, int threads) {
  for_parts(n_atoms, offsets, threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* rows = a + i * channels * width;
      std::fill(rows, rows + channels * width, T(0));
      for (int64_t edge = offsets[i]; edge < offsets[i + 1]; ++edge) {
        const T *gr = g + edge * width, *dgr = dg + edge * width;
        for (int c = 0; c < channels; ++c) {
          const T x = u_env[edge * channels + c], y = u_s[edge] * env[edge * channels + c];
          for (int m = 0; m < width; ++m) rows[c * width + m] += x * gr[m] + y * dgr[m];
        }
      }
    }
  });
}

// ---- gradients of the parameters -------------------------------------------------------------------------------
// fill(first, rows, ws.grad) writes the stacked gradients [g_bar; dg_bar] of a block of edges [begin(part), end(part)).
// grads[l] says where to write the gradients of layer l, laid out as its parameters (null where there is none).
template <typename T, typename Range, typename Fill>
void parameter_gradients(const std::vector<PackedLayer<T>>& net, const T* s, int parts, Range range, Fill fill,
                         const dpsim_layer_grad* grads) {
  constexpr int kFlush = 16;  // blocks summed in T before they join the sum in double
  std::vector<ParameterGradients<double>> totals(parts, ParameterGradients<double>(net));
#ifdef _OPENMP
#pragma omp parallel for num_threads(parts) if (parts > 1) schedule(static, 1)
#endif
  for (int part = 0; part < parts; ++part) {
    Workspace<T> ws(net);
    ParameterGradients<T> sums(net);
    const auto [begin, end] = range(part);
    auto rows_of = fill(part);
    int blocks = 0;
    for (int64_t first = begin; first < end; first += kRows) {
      const int rows = int(std::min<int64_t>(kRows, end - first));
      forward_block(net, s + first, rows, ws);
      std::fill(ws.grad.begin(), ws.grad.begin() + size_t(2 * kRows) * net.back().ld_out, T(0));
      rows_of(first, rows, ws.grad.data());
      backward_block(net, rows, ws, sums);
      if (++blocks % kFlush == 0 || first + kRows >= end) totals[part].absorb(sums);
    }
  }
  for (size_t l = 0; l < net.size(); ++l) {
    const PackedLayer<T>& layer = net[l];
    auto total = [&](auto member, size_t index) {
      double sum = 0;
      for (const auto& t : totals) sum += (t.layers[l].*member)[index];
      return T(sum);
    };
    using Layer = typename ParameterGradients<double>::PerLayer;
    for (int o = 0; o < layer.n_out; ++o) {
      for (int i = 0; i < layer.n_in; ++i)
        static_cast<T*>(grads[l].weight)[size_t(i) * layer.n_out + o] =
            total(&Layer::weight, size_t(i) * layer.ld_out + o);
      if (grads[l].bias) static_cast<T*>(grads[l].bias)[o] = total(&Layer::bias, o);
      if (grads[l].idt) static_cast<T*>(grads[l].idt)[o] = total(&Layer::idt, o);
    }
  }
}

template <typename T>
void embedding_backward(int64_t n, const T* s, int n_layers, const dpsim_layer* layers, const T* grad_g,
                        const T* grad_dg, const dpsim_layer_grad* grads, int threads) {
  const auto net = pack<T>(n_layers, layers);
  const int width = net.back().n_out, ld = net.back().ld_out, parts = std::max(1, threads);
  const int64_t blocks = (n + kRows - 1) / kRows;
  auto range = [&](int part) {
    return std::make_pair(blocks * part / parts * kRows, std::min(n, blocks * (part + 1) / parts * kRows));
  };
  auto fill = [&](int) {
    return [&](int64_t first, int rows, T* grad) {
      for (int r = 0; r < rows; ++r) {
        std::memcpy(grad + size_t(r) * ld, grad_g + (first + r) * width, width * sizeof(T));
        std::memcpy(grad + size_t(r + kRows) * ld, grad_dg + (first + r) * width, width * sizeof(T));
      }
    };
  };
  parameter_gradients(net, s, parts, range, fill, grads);
}

// Parameter gradients of sum(a2_bar . A) + sum(u_env . env_bar) + sum(u_s s_bar), where env_bar, s_bar belong to a_bar:
//   g_bar = env a2_bar + u_env a_bar,   dg_bar = u_s env a_bar.      u_env, u_s, a_bar may all be null.
template <typename T>
void radial_backward_parameters(int64_t n_atoms, const int64_t* offsets, int channels, const T* env, const T* s,
                                int n_layers, const dpsim_layer* layers, const T* a2_bar, const T* a_bar,
                                const T* u_env, const T* u_s, const dpsim_layer_grad* grads, int threads) {
  const auto net = pack<T>(n_layers, layers);
  const int width = net.back().n_out, ld = net.back().ld_out, parts = std::max(1, threads);
  auto range = [&](int part) {
    return std::make_pair(offsets[first_atom(n_atoms, offsets, part, parts)],
                          offsets[first_atom(n_atoms, offsets, part + 1, parts)]);
  };
  auto fill = [&](int part) {
    int64_t atom = first_atom(n_atoms, offsets, part, parts);
    return [&, atom](int64_t first, int rows, T* grad) mutable {
      for_rows(first, rows, offsets, atom, [&](int r, int64_t edge, int64_t i) {
        T *gr = grad + size_t(r) * ld, *dgr = grad + size_t(r + kRows) * ld;
        for (int c = 0; c < channels; ++c) {
          const int64_t row = (i * channels + c) * width;
          const T x = env[edge * channels + c];
          for (int m = 0; m < width; ++m) gr[m] += x * a2_bar[row + m];
          if (!a_bar) continue;
          const T u = u_env[edge * channels + c], v = u_s[edge] * x;
          for (int m = 0; m < width; ++m) gr[m] += u * a_bar[row + m], dgr[m] += v * a_bar[row + m];
        }
      });
    };
  };
  parameter_gradients(net, s, parts, range, fill, grads);
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
