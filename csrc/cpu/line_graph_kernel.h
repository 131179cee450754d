// One update of the edges of a line graph with the messages to its vertices, and the two backward passes of force
// training. CPU, any instruction set: included once per translation unit (see isa.h).
//
// Mirrors dpsim/kernels/line_graph.py, step by step:
//   1. z  = e W + p[alpha] + q[beta]
//   2. u  = sum_{m of alpha} switch act(z[:C])
//   3. e' = e + step act(z[C:])
// A thread owns whole vertices alpha and takes their edges in blocks of kEdges, whose z never leaves the cache. It
// reads every row of e once and writes whole rows of u, e', p_bar, e_bar. Sums over beta go to rows of its own, sums
// over all edges to doubles of its own; both are added up in the order of the threads: the result is the same from
// run to run for one number of threads.
#pragma once

#include <cmath>
#include <vector>

#include "dpsim.h"
#include "gemm.h"
#include "line_graph_activation.h"
#include "parts.h"
#include "scatter.h"

namespace dpsim {
namespace DPSIM_ISA {

constexpr int kEdges = 48;  // edges per block: a multiple of the register tile's rows
static_assert(kEdges % kTileRows == 0);

// ---- the problem --------------------------------------------------------------------------------------------------
// A row of z has C numbers for messages and S for edges. In memory they lie side by side; in the tiles of this file
// each section is padded with zeros to whole vectors.
// The problem in the precision of its arrays, with the weights packed.
template <typename T>
struct LineGraph {
  int64_t n_alpha, n_beta, n_edges;
  const int64_t *offsets, *beta;
  int d, C, S, width;          // widths of e, of messages, of e', and C + S
  int first_self, ld, ld_in;   // in tiles: column of the first of S, length of a row of z, of a row of e
  const T *e, *p, *q, *sw, *step;
  Buffer<T> weight, weight_t;  // (d, ld) and (ld, ld_in)

  explicit LineGraph(const dpsim_line_graph& g)
      : n_alpha(g.n_alpha), n_beta(g.n_beta), n_edges(g.offsets[g.n_alpha]), offsets(g.offsets), beta(g.beta),
        d(g.n_in), C(g.n_conv), S(g.n_self), width(C + S),
        first_self(padded(C, Simd<T>::lanes)), ld(first_self + padded(S, Simd<T>::lanes)),
        ld_in(padded(d, Simd<T>::lanes)),
        e(static_cast<const T*>(g.e)), p(static_cast<const T*>(g.p)), q(static_cast<const T*>(g.q)),
        sw(static_cast<const T*>(g.sw)), step(static_cast<const T*>(g.step)) {
    const T* w = static_cast<const T*>(g.weight);
    weight.zeros(size_t(d) * ld), weight_t.zeros(size_t(ld) * ld_in);
    for (int i = 0; i < d; ++i)
      for (int o = 0; o < width; ++o)
        weight[size_t(i) * ld + packed(o)] = weight_t[size_t(packed(o)) * ld_in + i] = w[size_t(i) * width + o];
  }
  int packed(int o) const { return o < C ? o : first_self + o - C; }

  // visit(c, from, lanes) for the vectors of a row: column c of a tile is column `from` of a row in memory.
  template <typename F>
  void for_columns(F visit) const {
    for_vectors<T>(C, [&](int c, auto lanes) { visit(c, c, lanes); });
    for_vectors<T>(S, [&](int c, auto lanes) { visit(first_self + c, C + c, lanes); });
  }
};

// ---- one block of edges -------------------------------------------------------------------------------------------
// x W for rows of x in memory; rows of the last block that are missing are zero.
template <typename T>
inline void times_weight(const LineGraph<T>& g, const T* x, int rows, Buffer<T>& spare, T* z) {
  const int whole = rows / kTileRows * kTileRows;
  if (whole) gemm(whole, g.ld, g.d, x, g.d, g.weight.data(), z, g.ld);
  if (whole == rows) return;
  spare.zeros(size_t(kTileRows) * g.d);
  std::memcpy(spare.data(), x + size_t(whole) * g.d, size_t(rows - whole) * g.d * sizeof(T));
  gemm(kTileRows, g.ld, g.d, spare.data(), g.d, g.weight.data(), z + size_t(whole) * g.ld, g.ld);
}

// visit(r, m, a) for the rows of a block: edge m of vertex a, alpha that of the first edge.
template <typename T, typename F>
inline void for_edges(const LineGraph<T>& g, int64_t first, int rows, int64_t alpha, F visit) {
  for_rows(first, rows, g.offsets, alpha, visit);
}

// visit(first, rows, alpha) for blocks of the edges of vertices begin .. end; alpha: of the first edge.
template <typename T, typename F>
inline void for_blocks(const LineGraph<T>& g, int64_t begin, int64_t end, F visit) {
  int64_t alpha = begin;
  for (int64_t first = g.offsets[begin]; first < g.offsets[end]; first += kEdges) {
    while (first >= g.offsets[alpha + 1]) ++alpha;
    visit(first, int(std::min<int64_t>(kEdges, g.offsets[end] - first)), alpha);
  }
}

// call(act) with the activation function as a type of its own.
template <typename T, typename Call>
inline void with_activation(const dpsim_line_graph& g, Call call) {
  if (g.activation == DPSIM_TANH) call(Tanh<T>());
  else call(Silut<T>(g.activation == DPSIM_SILU ? INFINITY : g.threshold));
}

template <typename T>
void line_graph_forward(const dpsim_line_graph& arguments, T* u, T* e_new, int threads) {
  const LineGraph<T> g(arguments);
  with_activation<T>(arguments, [&](auto act) {
    for_parts(g.n_alpha, g.offsets, threads, [&](int, int64_t begin, int64_t end) {
      Buffer<T> z, spare;
      z.reserve(size_t(kEdges) * g.ld);
      if (g.C) std::fill(u + begin * g.C, u + end * g.C, T(0));
      for_blocks(g, begin, end, [&](int64_t first, int rows, int64_t alpha) {
        times_weight(g, g.e + first * g.d, rows, spare, z.data());  // 1.
        for_edges(g, first, rows, alpha, [&](int r, int64_t m, int64_t a) {
          const T *zr = z.data() + size_t(r) * g.ld, *pa = g.p + a * g.width, *qb = g.q + g.beta[m] * g.width;
          T* ua = u + a * g.C;
          const T w = g.C ? g.sw[m] : T(0);
          for_vectors<T>(g.C, [&](int c, auto lanes) {  // 2.
            const vec_t<T> y = act(load(zr + c) + lanes.load(pa + c) + lanes.load(qb + c)).y;
            lanes.store(ua + c, lanes.load(ua + c) + w * y);
          });
          zr += g.first_self, pa += g.C, qb += g.C;
          const T* em = g.e + m * g.S;
          T* to = e_new + m * g.S;
          for_vectors<T>(g.S, [&](int c, auto lanes) {  // 3.
            const vec_t<T> y = act(load(zr + c) + lanes.load(pa + c) + lanes.load(qb + c)).y;
            lanes.store(to + c, lanes.load(em + c) + lanes.load(g.step + c) * y);
          });
        });
      });
    });
  });
}

// ---- sums over edges ----------------------------------------------------------------------------------------------
// Sums over all edges, for the gradients of the weight and of the step: in T over some blocks, then in double.
template <typename T>
class ParameterSums {
 public:
  explicit ParameterSums(const LineGraph<T>& g, bool weight, bool step) : g_(g) {
    n_weight_ = weight ? size_t(g.d) * g.ld : 0, n_step_ = step ? g.ld - g.first_self : 0;
    sum_.zeros(n_weight_ + n_step_), total_.zeros(n_weight_ + n_step_);
  }
  T* step() { return sum_.data() + n_weight_; }

  // weight += x^T g for a block of rows.
  void add(const T* x, const T* g, int rows) {
    if (n_weight_) gemm_transposed(g_.d, g_.ld, rows, x, g_.d, g, g_.ld, sum_.data());
  }
  void end_of_block(bool last) {
    constexpr int kFlush = 4;
    if (++blocks_ % kFlush && !last) return;
    for (size_t k = 0; k < n_weight_ + n_step_; ++k) total_[k] += sum_[k], sum_[k] = T(0);
  }

  static void add_up(const std::vector<ParameterSums>& parts, T* weight, T* step) {
    const LineGraph<T>& g = parts[0].g_;
    auto total = [&](size_t at) {
      double sum = 0;
      for (const ParameterSums& part : parts) sum += part.total_[at];
      return T(sum);
    };
    if (weight)
      for (int i = 0; i < g.d; ++i)
        for (int o = 0; o < g.width; ++o) weight[size_t(i) * g.width + o] = total(size_t(i) * g.ld + g.packed(o));
    if (step)
      for (int o = 0; o < g.S; ++o) step[o] = total(parts[0].n_weight_ + o);
  }

 private:
  const LineGraph<T>& g_;
  size_t n_weight_, n_step_;
  int blocks_ = 0;
  Buffer<T> sum_;
  Buffer<double> total_;
};

// The gradients that both backward passes have in common, as the caller wants them, written or NULL.
template <typename T>
struct LineGraphGrads {
  T *e, *weight, *p, *q, *sw, *step;
  explicit LineGraphGrads(const dpsim_line_graph_arrays& a)
      : e(static_cast<T*>(a.e)), weight(static_cast<T*>(a.weight)), p(static_cast<T*>(a.p)), q(static_cast<T*>(a.q)),
        sw(static_cast<T*>(a.sw)), step(static_cast<T*>(a.step)) {}
};

// From a tile with g, the gradient in z: sums of g over the edges of each alpha and beta, and
// e_bar = g W^T (+ e_new_bar where it is not null).
template <typename T>
inline void pull_back(const LineGraph<T>& g, const LineGraphGrads<T>& to, int64_t first, int rows, int64_t alpha,
                      const T* tile, const T* e_new_bar, T* beta_sums, Buffer<T>& x) {
  if (to.p || beta_sums)
    for_edges(g, first, rows, alpha, [&](int r, int64_t m, int64_t a) {
      const T* gr = tile + size_t(r) * g.ld;
      T *pa = to.p ? to.p + a * g.width : nullptr, *qb = beta_sums ? beta_sums + g.beta[m] * g.width : nullptr;
      g.for_columns([&](int c, int from, auto lanes) {
        const vec_t<T> gv = load(gr + c);
        if (pa) lanes.store(pa + from, lanes.load(pa + from) + gv);
        if (qb) lanes.store(qb + from, lanes.load(qb + from) + gv);
      });
    });
  if (!to.e) return;
  x.reserve(size_t(kEdges) * g.ld_in);
  gemm((rows + kTileRows - 1) / kTileRows * kTileRows, g.ld_in, g.ld, tile, g.ld, g.weight_t.data(), x.data(), g.ld_in);
  for (int r = 0; r < rows; ++r) {
    const T *xr = x.data() + size_t(r) * g.ld_in, *plus = e_new_bar ? e_new_bar + (first + r) * g.d : nullptr;
    T* e_bar = to.e + (first + r) * g.d;
    for_vectors<T>(g.d, [&](int c, auto lanes) {
      lanes.store(e_bar + c, plus ? load(xr + c) + lanes.load(plus + c) : load(xr + c));
    });
  }
}

// Runs block(tile of buffers, first, rows, alpha, parameter sums) over all edges and sums up what it leaves behind.
template <typename T, typename Block>
inline void run_backward(const LineGraph<T>& g, const LineGraphGrads<T>& to, int threads, Block block) {
  const int parts = std::max(1, threads);
  ScatterSums<T> beta_sums(g.beta, g.n_beta, g.width, to.q, parts);
  std::vector<ParameterSums<T>> parameters;
  for (int part = 0; part < parts; ++part) parameters.emplace_back(g, to.weight != nullptr, to.step != nullptr);
  for_parts(g.n_alpha, g.offsets, parts, [&](int part, int64_t begin, int64_t end) {
    T* own = beta_sums.rows(part, g.offsets[begin], g.offsets[end]);
    if (to.p) std::fill(to.p + begin * g.width, to.p + end * g.width, T(0));
    auto visit = block();
    for_blocks(g, begin, end, [&](int64_t first, int rows, int64_t alpha) {
      visit(first, rows, alpha, own, parameters[part]);
      parameters[part].end_of_block(first + rows == g.offsets[end]);
    });
  });
  beta_sums.add_up();
  ParameterSums<T>::add_up(parameters, to.weight, to.step);
}

// Buffers of one thread.
template <typename T>
struct LineGraphTile {
  Buffer<T> z, dz, x, spare;
  vec_t<T> lanes[kEdges];  // of switch_bar
  explicit LineGraphTile(const LineGraph<T>& g) {
    z.zeros(size_t(kEdges) * g.ld), dz.zeros(size_t(kEdges) * g.ld);
  }
};

// Gradients of <u_bar, u> + <e_new_bar, e'>, where they are wanted.
template <typename T>
void line_graph_backward(const dpsim_line_graph& arguments, const T* u_bar, const T* e_new_bar,
                         const dpsim_line_graph_arrays& grads, int threads) {
  const LineGraph<T> g(arguments);
  const LineGraphGrads<T> to(grads);
  auto block = [&](auto act) {
    return [&, act, tile = LineGraphTile<T>(g)](int64_t first, int rows, int64_t alpha, T* beta_sums,
                                                ParameterSums<T>& sums) mutable {
      T* z = tile.z.data();
      times_weight(g, g.e + first * g.d, rows, tile.spare, z);
      for_edges(g, first, rows, alpha, [&](int r, int64_t m, int64_t a) {
        T* zr = z + size_t(r) * g.ld;
        const T *pa = g.p + a * g.width, *qb = g.q + g.beta[m] * g.width, *ua = u_bar + a * g.C;
        vec_t<T> switch_bar{};
        const T w = g.C ? g.sw[m] : T(0);
        for_vectors<T>(g.C, [&](int c, auto lanes) {
          const auto f = act(load(zr + c) + lanes.load(pa + c) + lanes.load(qb + c));
          const vec_t<T> ub = lanes.load(ua + c);
          switch_bar += f.y * ub;
          store(zr + c, w * f.slope * ub);
        });
        tile.lanes[r] = switch_bar;
        zr += g.first_self, pa += g.C, qb += g.C;
        const T* eb = e_new_bar + m * g.S;
        for_vectors<T>(g.S, [&](int c, auto lanes) {
          const auto f = act(load(zr + c) + lanes.load(pa + c) + lanes.load(qb + c));
          const vec_t<T> bar = lanes.load(eb + c);
          if (to.step) store(sums.step() + c, load(sums.step() + c) + f.y * bar);
          store(zr + c, lanes.load(g.step + c) * f.slope * bar);
        });
      });
      if (to.sw) sums_of_lanes<T>(tile.lanes, rows, to.sw + first);
      pull_back(g, to, first, rows, alpha, z, g.S ? e_new_bar : nullptr, beta_sums, tile.x);
      sums.add(g.e + first * g.d, z, rows);
    };
  };
  with_activation<T>(arguments, [&](auto act) { run_backward(g, to, threads, [&] { return block(act); }); });
}

// With tangents t of (e_bar, p_bar, q_bar, switch_bar), each of which may be null: zero, the gradients of
// <t_e, e_bar> + <t_p, p_bar> + <t_q, q_bar> + <t_w, switch_bar> in what they depend on.
template <typename T>
void line_graph_backward_twice(const dpsim_line_graph& arguments, const T* u_bar, const T* e_new_bar,
                               const dpsim_line_graph_arrays& tangents, const dpsim_line_graph_arrays& grads,
                               T* u_dot, T* e_new_dot, int threads) {
  const LineGraph<T> g(arguments);
  const LineGraphGrads<T> to(grads), t(tangents);
  auto block = [&](auto act) {
    return [&, act, tile = LineGraphTile<T>(g)](int64_t first, int rows, int64_t alpha, T* beta_sums,
                                                ParameterSums<T>& sums) mutable {
      T *z = tile.z.data(), *dz = tile.dz.data();
      times_weight(g, g.e + first * g.d, rows, tile.spare, z);
      if (t.e) times_weight(g, t.e + first * g.d, rows, tile.spare, dz);
      else std::fill(dz, dz + size_t(rows) * g.ld, T(0));
      for_edges(g, first, rows, alpha, [&](int r, int64_t m, int64_t a) {
        const int64_t b = g.beta[m];
        T *zr = z + size_t(r) * g.ld, *dzr = dz + size_t(r) * g.ld;
        auto argument = [&](int c, int from, auto lanes) {
          return load(zr + c) + lanes.load(g.p + a * g.width + from) + lanes.load(g.q + b * g.width + from);
        };
        auto tangent = [&](int c, int from, auto lanes) {
          vec_t<T> x = load(dzr + c);
          if (t.p) x += lanes.load(t.p + a * g.width + from);
          if (t.q) x += lanes.load(t.q + b * g.width + from);
          return x;
        };
        vec_t<T> switch_grad{};
        const T w = g.C ? g.sw[m] : T(0), tw = t.sw && g.C ? t.sw[m] : T(0);
        for_vectors<T>(g.C, [&](int c, auto lanes) {
          const auto f = act(argument(c, c, lanes));
          const vec_t<T> x = tangent(c, c, lanes), ub = lanes.load(u_bar + a * g.C + c), along = f.slope * x;
          T* ua = u_dot + a * g.C + c;
          lanes.store(ua, lanes.load(ua) + (tw * f.y + w * along));
          switch_grad += ub * along;
          store(zr + c, ub * (tw * f.slope + w * (f.curvature * x)));
          store(dzr + c, ub * (w * f.slope));
        });
        tile.lanes[r] = switch_grad;
        for_vectors<T>(g.S, [&](int c, auto lanes) {
          const int at = g.first_self + c;
          const auto f = act(argument(at, g.C + c, lanes));
          const vec_t<T> x = tangent(at, g.C + c, lanes), bar = lanes.load(e_new_bar + m * g.S + c);
          const vec_t<T> along = f.slope * x, step = lanes.load(g.step + c), scaled = bar * step;
          const vec_t<T> te = t.e ? lanes.load(t.e + m * g.S + c) : vec_t<T>{};
          lanes.store(e_new_dot + m * g.S + c, te + step * along);
          if (to.step) store(sums.step() + c, load(sums.step() + c) + bar * along);
          store(zr + at, scaled * (f.curvature * x));
          store(dzr + at, scaled * f.slope);
        });
      });
      if (to.sw) sums_of_lanes<T>(tile.lanes, rows, to.sw + first);
      pull_back(g, to, first, rows, alpha, z, static_cast<const T*>(nullptr), beta_sums, tile.x);
      sums.add(g.e + first * g.d, z, rows);
      if (t.e) sums.add(t.e + first * g.d, dz, rows);
    };
  };
  if (g.C) std::fill(u_dot, u_dot + g.n_alpha * g.C, T(0));
  with_activation<T>(arguments, [&](auto act) { run_backward(g, to, threads, [&] { return block(act); }); });
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
