// Attention among the neighbours of an atom: the problem, one atom of it, and the matrix products of a block of rows,
// of which the passes in pair_attention_kernel.h are made. CPU, any instruction set (see isa.h).
#pragma once

#include <cmath>
#include <vector>

#include "dpsim.h"
#include "gemm.h"
#include "line_graph_activation.h"
#include "parts.h"

namespace dpsim {
namespace DPSIM_ISA {

// ---- the problem --------------------------------------------------------------------------------------------------
// The problem in the precision of its arrays. Rows of d, n_values or n_out numbers in memory have D, V or O in tiles:
// whole vectors, with zeros beyond. The weights are packed so.
template <typename T>
struct PairAttention {
  int64_t n_centers, n_slots;
  const int64_t* offsets;
  int heads, d, n_values, n_out, D, V, O;
  int block;  // neighbours j in a block of rows (j, head): a multiple of the register tile's rows
  bool of_g, of_h, gate;
  T shift;
  const T *g, *h, *w;
  Buffer<T> query_key, query_key_t, out, out_t;  // (d, heads D), (heads D, D), (heads V, O), (n_out, heads V)

  explicit PairAttention(const dpsim_pair_attention& a)
      : n_centers(a.n_centers), n_slots(a.n_slots), offsets(a.offsets), heads(a.heads), d(a.width),
        n_values((a.of_g ? d : 0) + (a.of_h ? 3 : 0)), n_out(a.n_out), D(padded(d, Simd<T>::lanes)),
        V(padded(n_values, Simd<T>::lanes)), O(padded(n_out, Simd<T>::lanes)),
        block(kTileRows * std::max(1, kRows / (kTileRows * heads))), of_g(a.of_g), of_h(a.of_h), gate(a.gate),
        shift(T(a.shift)), g(static_cast<const T*>(a.g)), h(static_cast<const T*>(a.h)), w(static_cast<const T*>(a.w)) {
    const T *from_b = static_cast<const T*>(a.query_key), *from_c = static_cast<const T*>(a.out);
    query_key.zeros(size_t(d) * heads * D), query_key_t.zeros(size_t(heads) * D * D);
    for_query_key([&](size_t from, int row, int column) {
      query_key[size_t(row) * heads * D + column] = query_key_t[size_t(column) * D + row] = from_b[from];
    });
    out.zeros(size_t(heads) * V * O), out_t.zeros(size_t(n_out) * heads * V);
    for_out([&](size_t from, int row, int column) {
      out[size_t(row) * O + column] = out_t[size_t(column) * heads * V + row] = from_c[from];
    });
  }

  // visit(place in memory, row, column of the packed matrix) for all numbers of B, and of C.
  template <typename F>
  void for_query_key(F visit) const {
    for (int r = 0; r < d; ++r)
      for (int c = 0; c < heads * d; ++c) visit(size_t(r) * heads * d + c, r, c / d * D + c % d);
  }
  template <typename F>
  void for_out(F visit) const {
    for (int r = 0; r < heads * n_values; ++r)
      for (int c = 0; c < n_out; ++c) visit(size_t(r) * n_out + c, r / n_values * V + r % n_values, c);
  }

 private:
  static constexpr int kRows = 48;  // about as many rows (j, head) in a block
};

// ---- one atom -----------------------------------------------------------------------------------------------------
// Its p neighbours, as rows and as columns (_t), which have P numbers: whole vectors. Rows beyond p are zero.
template <typename T>
struct Center {
  int p = 0, P = 0;
  Buffer<T> g, g_t, v, v_t;
  Buffer<T> u_t;  // (4, P): w h and w
  const PairAttention<T>& s;
  explicit Center(const PairAttention<T>& problem) : s(problem) {}

  // g and h (NULL: zero) of the edges first .. first + n.
  void pack(int64_t first, int n, const T* from_g, const T* from_h) {
    p = n, P = padded(n, Simd<T>::lanes);
    const size_t rows = p + s.block;
    g.zeros(rows * s.D), g_t.zeros(size_t(s.D) * P), u_t.zeros(4 * size_t(P));
    if (from_g) put(from_g + first * s.d, s.d, 0, g, s.D, g_t);
    if (!s.of_h) return;
    v.zeros(rows * s.V), v_t.zeros(size_t(s.V) * P);
    if (from_g && s.of_g) put(from_g + first * s.d, s.d, 0, v, s.V, v_t);
    if (from_h) put(from_h + first * 3, 3, s.of_g ? s.d : 0, v, s.V, v_t);
  }
  // u += w h for w and h of the same edges.
  void add_directions(const T* w, const T* h) {
    for (int k = 0; k < p; ++k)
      for (int e = 0; e < 3; ++e) u_t[e * P + k] += w[k] * h[3 * k + e];
  }
  void set_switch(const T* w) { std::memcpy(u_t.data() + 3 * P, w, p * sizeof(T)); }

  const T* values() const { return s.of_h ? v.data() : g.data(); }
  const T* values_t() const { return s.of_h ? v_t.data() : g_t.data(); }

 private:
  void put(const T* from, int width, int column, Buffer<T>& rows, int ld, Buffer<T>& columns) {
    for (int k = 0; k < p; ++k)
      for (int c = 0; c < width; ++c)
        rows[size_t(k) * ld + column + c] = columns[size_t(column + c) * P + k] = from[k * width + c];
  }
};

// n_slots of the softmax that no neighbour fills.
template <typename T>
inline T empty_slots(const PairAttention<T>& s, const Center<T>& x) {
  return s.n_slots ? T(s.n_slots - x.p) : T(0);
}

constexpr auto kPlus = [](auto a, auto b) { return a + b; };
constexpr auto kLarger = [](auto a, auto b) { return a > b ? a : b; };
constexpr double kScale = 0.57735026918962576451;  // 1 / sqrt(3)

// For neighbour j: ww_k = w_j w_k and uu_k = u_j.u_k; with tangents (t not null) their derivatives along t.
template <typename T>
inline void directions(const Center<T>& x, const Center<T>* t, int j, T* ww, T* uu) {
  constexpr int L = Simd<T>::lanes;
  const int P = x.P;
  const auto product = [&](int e, int c, vec_t<T> sum) {
    const T* u = x.u_t.data() + e * P;
    if (!t) return sum + u[j] * load(u + c);
    const T* ut = t->u_t.data() + e * P;
    return sum + u[j] * load(ut + c) + ut[j] * load(u + c);
  };
  for (int c = 0; c < P; c += L) {
    store(ww + c, product(3, c, vec_t<T>{}));
    store(uu + c, product(2, c, product(1, c, product(0, c, vec_t<T>{}))));
  }
}

// The other way: from the gradients in uu and ww of neighbour j those in u and w, (4, P), added to u_bar.
template <typename T>
inline void pull_back_directions(const Center<T>& x, int j, const T* ww_bar, const T* uu_bar, T* u_bar) {
  constexpr int L = Simd<T>::lanes;
  const int P = x.P;
  for (int e = 0; e < 4; ++e) {
    const T *u = x.u_t.data() + e * P, *bar = e < 3 ? uu_bar : ww_bar;
    T* to = u_bar + e * P;
    vec_t<T> sum{};
    for (int c = 0; c < P; c += L) {
      const vec_t<T> b = load(bar + c);
      store(to + c, load(to + c) + u[j] * b);
      sum += b * load(u + c);
    }
    to[j] += reduced<T>(sum, kPlus);
  }
}

// 2. and 3. for a row of logits l: y, without the second factor. Returns 1 - sum_k y, the share of empty slots.
template <typename T>
inline T softmax_row(const T* l, const T* m, const T* ww, T shift, T n_empty, int p, int P, T* y) {
  constexpr int L = Simd<T>::lanes;
  constexpr T never = T(-1e30);  // beyond p
  vec_t<T> top = vec_t<T>{} + (n_empty > 0 ? T(0) : never), sum{};
  for (int c = 0; c < P; c += L) store(y + c, shift * load(ww + c) + load(l + c) * load(m + c));
  for (int c = p; c < P; ++c) y[c] = never;
  for (int c = 0; c < P; c += L) top = kLarger(load(y + c), top);
  const T highest = reduced<T>(top, kLarger);
  for (int c = 0; c < P; c += L) {
    const vec_t<T> x = load(y + c), e = x > T(0.5) * never ? exp_vec<T>(x - highest) : vec_t<T>{};
    store(y + c, e);
    sum += e;
  }
  const T empty = n_empty != 0 ? n_empty * std::exp(-highest) : T(0), scale = T(1) / (reduced<T>(sum, kPlus) + empty);
  for (int c = 0; c < P; c += L) store(y + c, load(y + c) * scale);
  return empty * scale;
}

// <a, b>. What is centred by a mean afterwards lies in memory, rounded once: so nothing is left where y is 1.
template <typename T>
inline T product_row(const T* a, const T* b, int P) {
  vec_t<T> sum{};
  for (int c = 0; c < P; c += Simd<T>::lanes) sum += load(a + c) * load(b + c);
  return reduced<T>(sum, kPlus);
}

// ---- sums over atoms ----------------------------------------------------------------------------------------------
// Sums of a^T b, for the gradient of a weight: in T over some atoms, then in double.
template <typename T>
class ProductSums {
 public:
  ProductSums(int m, int n, bool wanted) : m_(m), n_(n), size_(wanted ? size_t(m) * n : 0) {
    sum_.zeros(size_), total_.zeros(size_);
  }
  void add(int k, const T* a, int lda, const T* b, int ldb) {
    if (size_) gemm_transposed(m_, n_, k, a, lda, b, ldb, sum_.data());
  }
  void end_of_atom(bool last) {
    constexpr int kFlush = 4;
    if (++atoms_ % kFlush && !last) return;
    for (size_t i = 0; i < size_; ++i) total_[i] += sum_[i], sum_[i] = T(0);
  }
  double operator()(int row, int column) const { return total_[size_t(row) * n_ + column]; }
  bool wanted() const { return size_; }

 private:
  int m_, n_, atoms_ = 0;
  size_t size_;
  Buffer<T> sum_;
  Buffer<double> total_;
};

template <typename T>
struct WeightSums {
  ProductSums<T> query_key, out;
  WeightSums(const PairAttention<T>& s, bool of_query_key, bool of_out)
      : query_key(s.d, s.heads * s.D, of_query_key), out(s.heads * s.V, s.O, of_out) {}
  void end_of_atom(bool last) { query_key.end_of_atom(last), out.end_of_atom(last); }
};

// ---- blocks of rows -----------------------------------------------------------------------------------------------
// Buffers of one thread, and the steps that the passes have in common. Rows are (j, head), j of j0 .. j0 + n.
template <typename T>
struct AttentionTile {
  const PairAttention<T>& s;
  Center<T> x, t;            // the atom, and tangents
  Buffer<T> q, qt, l, lt;    // queries and logits, and their tangents
  Buffer<T> y, a, ab, abt;   // 3., and gradients in a and its tangent
  Buffer<T> o, ob, r, rb;    // of 4.: sum_k a v, its gradient; r, its gradient
  Buffer<T> qb, qbt;         // gradients in queries
  Buffer<T> k_bar, v_bar, u_bar, ut_bar;  // of the atom: gradients in g, in values where they hold h, in u and w
  Buffer<T> rows;            // ww, uu, their tangents, gradients in all four; three more

  explicit AttentionTile(const PairAttention<T>& problem) : s(problem), x(problem), t(problem) {
    const size_t n = size_t(s.block) * s.heads;
    for (Buffer<T>* b : {&q, &qt, &qb, &qbt}) b->zeros(n * s.D);
    for (Buffer<T>* b : {&o, &ob}) b->zeros(n * s.V);
    for (Buffer<T>* b : {&r, &rb}) b->zeros(size_t(s.block) * s.O);
  }

  void begin(int64_t i) {
    const int64_t first = s.offsets[i];
    x.pack(first, int(s.offsets[i + 1] - first), s.g, s.h);
    x.add_directions(s.w + first, s.h + first * 3), x.set_switch(s.w + first);
    const size_t matrix = size_t(s.block) * s.heads * x.P;
    for (Buffer<T>* b : {&l, &lt, &y, &a, &ab, &abt}) b->reserve(matrix);
    rows.reserve(11 * size_t(x.P));
  }
  void begin_gradients() {
    k_bar.zeros(size_t(x.p + s.block) * s.D), u_bar.zeros(4 * size_t(x.P)), ut_bar.zeros(4 * size_t(x.P));
    if (s.of_h) v_bar.zeros(size_t(x.p) * s.V);
  }
  template <typename F>
  void for_blocks(F visit) {
    for (int j0 = 0; j0 < x.p; j0 += s.block) visit(j0, std::min(s.block, x.p - j0));
  }
  T* row(int k) { return rows.data() + size_t(k) * x.P; }

  int tiles(int n) const { return padded(n, kTileRows); }
  int rows_of(int n) const { return n * s.heads; }

  // 1. from g or tangents of g
  void queries(const Center<T>& c, int j0, int n, Buffer<T>& to) {
    const int width = s.heads * s.D;
    gemm(tiles(n), width, s.d, c.g.data() + size_t(j0) * s.D, s.D, s.query_key.data(), to.data(), width);
  }
  template <bool Add = false>
  void times_keys(const Buffer<T>& from, const Center<T>& c, int n, Buffer<T>& to) {
    gemm<Add>(tiles(rows_of(n)), x.P, s.d, from.data(), s.D, c.g_t.data(), to.data(), x.P);
  }
  // 4. sum_k a v
  template <bool Add = false>
  void times_values(const Buffer<T>& from, const Center<T>& c, int n) {
    gemm<Add>(tiles(rows_of(n)), s.V, x.p, from.data(), x.P, c.values(), o.data(), s.V);
  }
  // 4. r, and the rows of it to memory
  void project(int64_t first, int n, T* to) {
    gemm(tiles(n), s.O, s.heads * s.V, o.data(), s.heads * s.V, s.out.data(), r.data(), s.O);
    for (int j = 0; j < n; ++j)
      std::memcpy(to + (first + j) * s.n_out, r.data() + size_t(j) * s.O, s.n_out * sizeof(T));
  }
  // From r_bar the gradients in sum_k a v, and in a.
  void pull_back_project(const T* r_bar, int64_t first, int n) {
    rb.zeros(size_t(s.block) * s.O);
    for (int j = 0; j < n; ++j)
      std::memcpy(rb.data() + size_t(j) * s.O, r_bar + (first + j) * s.n_out, s.n_out * sizeof(T));
    gemm(tiles(n), s.heads * s.V, s.n_out, rb.data(), s.O, s.out_t.data(), ob.data(), s.heads * s.V);
  }
  void times_values_transposed(const Center<T>& c, int n, Buffer<T>& to) {
    gemm(tiles(rows_of(n)), x.P, s.n_values, ob.data(), s.V, c.values_t(), to.data(), x.P);
  }
  // To the gradients of the atom: those that come through values (of a), keys (of l and q) and queries.
  void add_of_values(const Buffer<T>& of_a, int n) {
    gemm_transposed(x.p, s.V, rows_of(n), of_a.data(), x.P, ob.data(), s.V, s.of_h ? v_bar.data() : k_bar.data());
  }
  void add_of_keys(const Buffer<T>& l_bar, const Buffer<T>& queries, int n) {
    gemm_transposed(x.p, s.D, rows_of(n), l_bar.data(), x.P, queries.data(), s.D, k_bar.data());
  }
  template <bool Add = false>
  void times_keys_transposed(const Buffer<T>& l_bar, const Center<T>& c, int n, Buffer<T>& to) {
    gemm<Add>(tiles(rows_of(n)), s.D, x.p, l_bar.data(), x.P, c.g.data(), to.data(), s.D);
  }
  void add_of_queries(int j0, int n) {
    gemm<true>(tiles(n), s.D, s.heads * s.D, qb.data(), s.heads * s.D, s.query_key_t.data(),
               k_bar.data() + size_t(j0) * s.D, s.D);
  }
  void add_of_query_key(ProductSums<T>& sums, const Center<T>& c, int j0, int n, const Buffer<T>& q_bar) {
    sums.add(n, c.g.data() + size_t(j0) * s.D, s.D, q_bar.data(), s.heads * s.D);
  }
  void add_of_out(ProductSums<T>& sums, int n) { sums.add(n, o.data(), s.heads * s.V, rb.data(), s.O); }

  // What has come together for the atom, to memory.
  void write_gradients(int64_t first, T* g_bar, T* h_bar, T* w_bar, const T* tangent_w, const T* tangent_h) {
    const int P = x.P, at_h = s.of_g ? s.d : 0;
    for (int k = 0; k < x.p; ++k) {
      const T *kb = k_bar.data() + size_t(k) * s.D, *vb = s.of_h ? v_bar.data() + size_t(k) * s.V : nullptr;
      if (g_bar)
        for (int c = 0; c < s.d; ++c) g_bar[(first + k) * s.d + c] = vb && s.of_g ? kb[c] + vb[c] : kb[c];
      T of_w = u_bar[3 * P + k];
      for (int e = 0; e < 3; ++e) {
        const T u = u_bar[e * P + k], ut = ut_bar[e * P + k];
        of_w += s.h[(first + k) * 3 + e] * u;
        T of_h = s.w[first + k] * u + (vb ? vb[at_h + e] : T(0));
        if (tangent_w) of_h += tangent_w[first + k] * ut;
        if (tangent_h) of_w += tangent_h[(first + k) * 3 + e] * ut;
        if (h_bar) h_bar[(first + k) * 3 + e] = of_h;
      }
      if (w_bar) w_bar[first + k] = of_w;
    }
  }
};

}  // namespace DPSIM_ISA
}  // namespace dpsim
