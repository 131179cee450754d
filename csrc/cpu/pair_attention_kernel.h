// Attention among the neighbours of each atom (DPA-2), and the two backward passes of force training. CPU, any
// instruction set: included once per translation unit (see isa.h).
//
// Mirrors dpsim/kernels/pair_attention.py, step by step. For neighbours j, k of one atom, and heads:
//   1. l_jk = (g_j B)_head . g_k
//   2. x_jk = shift w_j w_k + l_jk m_jk,    m_jk = u_j.u_k with the gate, else w_j w_k;    u = w h
//   3. y_jk = exp(x_jk) / (sum_k exp(x_jk) + n_empty),    a_jk = y_jk u_j.u_k / sqrt(3)
//   4. r_j  = sum_heads (sum_k a_jk v_k) C_head,    v = g, h, or [g, h]
// A thread owns whole atoms. It packs what it reads of one, and takes the rows (j, head) of its matrices in blocks
// that stay in cache, against all k. It writes whole rows of r and of the gradients in g, h and w; sums for B and C go
// to doubles of its own, which are added up in the order of the threads: the result is the same from run to run for one
// number of threads.
#pragma once

#include "pair_attention_tile.h"

namespace dpsim {
namespace DPSIM_ISA {

template <typename T>
void pair_attention_forward(const dpsim_pair_attention& arguments, T* r, int threads) {
  const PairAttention<T> s(arguments);
  const T scale = T(kScale);
  for_parts(s.n_centers, s.offsets, threads, [&](int, int64_t begin, int64_t end) {
    AttentionTile<T> b(s);
    for (int64_t i = begin; i < end; ++i) {
      b.begin(i);
      const int P = b.x.P;
      const T n_empty = empty_slots(s, b.x);
      T *ww = b.row(0), *uu = b.row(1);
      b.for_blocks([&](int j0, int n) {
        b.queries(b.x, j0, n, b.q);
        b.times_keys(b.q, b.x, n, b.l);
        for (int j = 0; j < n; ++j) {
          directions<T>(b.x, nullptr, j0 + j, ww, uu);
          for (int head = 0; head < s.heads; ++head) {
            T *l = b.l.data() + size_t(j * s.heads + head) * P, *y = b.a.data() + size_t(j * s.heads + head) * P;
            softmax_row(l, s.gate ? uu : ww, ww, s.shift, n_empty, b.x.p, P, y);
            for (int c = 0; c < P; c += Simd<T>::lanes) store(y + c, load(y + c) * (scale * load(uu + c)));
          }
        }
        b.times_values(b.a, b.x, n);
        b.project(s.offsets[i] + j0, n, r);
      });
    }
  });
}

// ---- backward passes ----------------------------------------------------------------------------------------------
template <typename T>
struct PairAttentionArrays {
  T *g, *h, *w, *query_key, *out;
  explicit PairAttentionArrays(const dpsim_pair_attention_arrays& a)
      : g(static_cast<T*>(a.g)), h(static_cast<T*>(a.h)), w(static_cast<T*>(a.w)),
        query_key(static_cast<T*>(a.query_key)), out(static_cast<T*>(a.out)) {}
};

// Runs visit(tile, sums for the weights, atom) for all atoms, and adds up the sums.
template <typename T, typename F>
inline void for_atoms_backward(const PairAttention<T>& s, const PairAttentionArrays<T>& to, int threads, F visit) {
  std::vector<WeightSums<T>> sums;
  for (int part = 0; part < std::max(1, threads); ++part) sums.emplace_back(s, to.query_key, to.out);
  for_parts(s.n_centers, s.offsets, threads, [&](int part, int64_t begin, int64_t end) {
    AttentionTile<T> tile(s);
    for (int64_t i = begin; i < end; ++i) {
      tile.begin(i), tile.begin_gradients();
      visit(tile, sums[part], i);
      sums[part].end_of_atom(i + 1 == end);
    }
  });
  const auto add_up = [&](T* result, ProductSums<T> WeightSums<T>::*which) {
    return [&sums, result, which](size_t at, int row, int column) {
      double sum = 0;
      for (const WeightSums<T>& part : sums) sum += (part.*which)(row, column);
      result[at] = T(sum);
    };
  };
  if (to.query_key) s.for_query_key(add_up(to.query_key, &WeightSums<T>::query_key));
  if (to.out) s.for_out(add_up(to.out, &WeightSums<T>::out));
}

// Gradients of <r_bar, r>, where they are wanted.
template <typename T>
void pair_attention_backward(const dpsim_pair_attention& arguments, const T* r_bar,
                             const dpsim_pair_attention_arrays& grads, int threads) {
  constexpr int L = Simd<T>::lanes;
  const PairAttention<T> s(arguments);
  const PairAttentionArrays<T> to(grads);
  const T scale = T(kScale);
  for_atoms_backward(s, to, threads, [&](AttentionTile<T>& b, WeightSums<T>& sums, int64_t i) {
    const int P = b.x.P;
    const T n_empty = empty_slots(s, b.x);
    T *ww = b.row(0), *uu = b.row(1), *ww_bar = b.row(4), *uu_bar = b.row(5), *yb = b.row(8), *m = s.gate ? uu : ww;
    b.for_blocks([&](int j0, int n) {
      b.queries(b.x, j0, n, b.q);
      b.times_keys(b.q, b.x, n, b.l);
      b.pull_back_project(r_bar, s.offsets[i] + j0, n);
      b.times_values_transposed(b.x, n, b.ab);
      for (int j = 0; j < n; ++j) {
        directions<T>(b.x, nullptr, j0 + j, ww, uu);
        std::fill(ww_bar, ww_bar + 2 * P, T(0));
        for (int head = 0; head < s.heads; ++head) {
          const size_t at = size_t(j * s.heads + head) * P;
          T *l = b.l.data() + at, *y = b.y.data() + at, *a = b.a.data() + at, *ab = b.ab.data() + at;
          softmax_row(l, m, ww, s.shift, n_empty, b.x.p, P, y);
          for (int c = 0; c < P; c += L) store(yb + c, load(ab + c) * (scale * load(uu + c)));
          const T mean = product_row(y, yb, P);
          for (int c = 0; c < P; c += L) {
            const vec_t<T> yv = load(y + c), av = load(ab + c), lv = load(l + c), bv = scale * load(uu + c);
            const vec_t<T> x_bar = yv * (load(yb + c) - mean), m_bar = x_bar * lv;
            const vec_t<T> of_ww = s.shift * x_bar, of_uu = scale * av * yv;
            store(ww_bar + c, load(ww_bar + c) + (s.gate ? of_ww : of_ww + m_bar));
            store(uu_bar + c, load(uu_bar + c) + (s.gate ? of_uu + m_bar : of_uu));
            store(a + c, yv * bv);
            store(ab + c, x_bar * load(m + c));  // the gradient in l
          }
        }
        pull_back_directions(b.x, j0 + j, ww_bar, uu_bar, b.u_bar.data());
      }
      b.add_of_values(b.a, n);
      b.add_of_keys(b.ab, b.q, n);
      b.times_keys_transposed(b.ab, b.x, n, b.qb);
      b.add_of_queries(j0, n);
      b.add_of_query_key(sums.query_key, b.x, j0, n, b.qb);
      if (to.out) b.times_values(b.a, b.x, n), b.add_of_out(sums.out, n);
    });
    b.write_gradients(s.offsets[i], to.g, to.h, to.w, nullptr, nullptr);
  });
}

// With tangents of g, h and w, each of which may be null: zero, the derivative r_dot of r along them, and the gradients
// of <r_bar, r_dot>, which is <tangents, gradients of <r_bar, r>>.
template <typename T>
void pair_attention_backward_twice(const dpsim_pair_attention& arguments, const T* r_bar,
                                   const dpsim_pair_attention_arrays& tangents,
                                   const dpsim_pair_attention_arrays& grads, T* r_dot, int threads) {
  constexpr int L = Simd<T>::lanes;
  const PairAttention<T> s(arguments);
  const PairAttentionArrays<T> to(grads), tan(tangents);
  const T scale = T(kScale);
  for_atoms_backward(s, to, threads, [&](AttentionTile<T>& b, WeightSums<T>& sums, int64_t i) {
    const int64_t first = s.offsets[i];
    const int P = b.x.P;
    const T n_empty = empty_slots(s, b.x);
    b.t.pack(first, b.x.p, tan.g, tan.h);
    if (tan.w) b.t.add_directions(tan.w + first, s.h + first * 3), b.t.set_switch(tan.w + first);
    if (tan.h) b.t.add_directions(s.w + first, tan.h + first * 3);
    T *ww = b.row(0), *uu = b.row(1), *wwt = b.row(2), *uut = b.row(3);
    T *ww_bar = b.row(4), *uu_bar = b.row(5), *wwt_bar = b.row(6), *uut_bar = b.row(7);
    T *yb = b.row(8), *xt = b.row(9), *ytb = b.row(10);
    T *m = s.gate ? uu : ww, *mt = s.gate ? uut : wwt;
    b.for_blocks([&](int j0, int n) {
      b.queries(b.x, j0, n, b.q), b.queries(b.t, j0, n, b.qt);
      b.times_keys(b.q, b.x, n, b.l);
      b.times_keys(b.qt, b.x, n, b.lt), b.template times_keys<true>(b.q, b.t, n, b.lt);
      b.pull_back_project(r_bar, first + j0, n);
      b.times_values_transposed(b.x, n, b.ab), b.times_values_transposed(b.t, n, b.abt);
      for (int j = 0; j < n; ++j) {
        directions<T>(b.x, nullptr, j0 + j, ww, uu);
        directions<T>(b.x, &b.t, j0 + j, wwt, uut);
        std::fill(ww_bar, ww_bar + 4 * P, T(0));
        for (int head = 0; head < s.heads; ++head) {
          const size_t at = size_t(j * s.heads + head) * P;
          T *l = b.l.data() + at, *lt = b.lt.data() + at, *y = b.y.data() + at, *a = b.a.data() + at;
          T *ab = b.ab.data() + at, *abt = b.abt.data() + at;
          const T empty = softmax_row(l, m, ww, s.shift, n_empty, b.x.p, P, y);
          // The gradient in y; x' and y' = y (x' - <y, x'>) along the tangents; the gradient of y' and a' in y, but for
          // a constant, <y, x'> <y, y_bar>, which only empty slots notice.
          for (int c = 0; c < P; c += L) {
            store(yb + c, load(ab + c) * (scale * load(uu + c)));
            store(xt + c, s.shift * load(wwt + c) + load(lt + c) * load(m + c) + load(l + c) * load(mt + c));
          }
          const T mean_b = product_row(y, yb, P), mean_t = product_row(y, xt, P);
          for (int c = 0; c < P; c += L) {
            const vec_t<T> of_a = scale * (load(ab + c) * load(uut + c) + load(abt + c) * load(uu + c));
            store(ytb + c, of_a + (load(yb + c) - mean_b) * (load(xt + c) - mean_t));
          }
          const T mean_tb = product_row(y, ytb, P) + empty * mean_b * mean_t;
          for (int c = 0; c < P; c += L) {
            const vec_t<T> yv = load(y + c), av = load(ab + c), bv = scale * load(uu + c), bt = scale * load(uut + c);
            const vec_t<T> lv = load(l + c), ltv = load(lt + c), mv = load(m + c), mtv = load(mt + c);
            const vec_t<T> yt = yv * (load(xt + c) - mean_t);
            const vec_t<T> xt_bar = yv * (load(yb + c) - mean_b), x_bar = yv * (load(ytb + c) - mean_tb);
            const vec_t<T> m_bar = x_bar * lv + xt_bar * ltv, mt_bar = xt_bar * lv;
            const vec_t<T> of_uu = scale * (av * yt + load(abt + c) * yv), of_uut = scale * av * yv;
            const auto add = [&](T* sums_to, vec_t<T> v) { store(sums_to + c, load(sums_to + c) + v); };
            add(ww_bar, s.shift * x_bar + (s.gate ? vec_t<T>{} : m_bar));
            add(uu_bar, s.gate ? of_uu + m_bar : of_uu);
            add(wwt_bar, s.shift * xt_bar + (s.gate ? vec_t<T>{} : mt_bar));
            add(uut_bar, s.gate ? of_uut + mt_bar : of_uut);
            store(a + c, yv * bv), store(y + c, yt * bv + yv * bt);  // a, and its derivative in the place of y
            store(ab + c, x_bar * mv + xt_bar * mtv), store(abt + c, xt_bar * mv);  // gradients in l and in lt
          }
        }
        pull_back_directions(b.x, j0 + j, ww_bar, uu_bar, b.u_bar.data());
        pull_back_directions(b.t, j0 + j, wwt_bar, uut_bar, b.u_bar.data());
        pull_back_directions(b.x, j0 + j, wwt_bar, uut_bar, b.ut_bar.data());
      }
      b.times_values(b.y, b.x, n), b.template times_values<true>(b.a, b.t, n);
      b.project(first + j0, n, r_dot);
      b.add_of_out(sums.out, n);
      b.add_of_values(b.y, n);
      b.add_of_keys(b.ab, b.q, n), b.add_of_keys(b.abt, b.qt, n);
      b.times_keys_transposed(b.ab, b.x, n, b.qb), b.template times_keys_transposed<true>(b.abt, b.t, n, b.qb);
      b.add_of_queries(j0, n);
      b.add_of_query_key(sums.query_key, b.x, j0, n, b.qb);
      if (!to.query_key) return;
      b.times_keys_transposed(b.abt, b.x, n, b.qbt);
      b.add_of_query_key(sums.query_key, b.t, j0, n, b.qbt);
    });
    b.write_gradients(first, to.g, to.h, to.w, tan.w, tan.h);
  });
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
