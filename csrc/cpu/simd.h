// What kernels are built from: vectors, aligned buffers, shuffles of whole vectors, tanh. CPU, any instruction set:
// included once per translation unit (see isa.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

namespace dpsim {
namespace DPSIM_ISA {

template <typename T>
struct Simd {
  typedef T vec __attribute__((vector_size(DPSIM_VECTOR_BYTES), may_alias));
  static constexpr int lanes = DPSIM_VECTOR_BYTES / sizeof(T);
};
template <typename T>
using vec_t = typename Simd<T>::vec;

template <typename T>
inline vec_t<T> load(const T* p) {
  vec_t<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename T>
inline void store(T* p, vec_t<T> v) {
  std::memcpy(p, &v, sizeof v);
}

inline int padded(int n, int lanes) { return (n + lanes - 1) / lanes * lanes; }

// ---- rows of any length ------------------------------------------------------------------------------------------
template <typename T>
struct WholeVector {
  static vec_t<T> load(const T* p) { return DPSIM_ISA::load(p); }
  static void store(T* p, vec_t<T> v) { DPSIM_ISA::store(p, v); }
};
template <typename T>
struct PartOfVector {
  size_t bytes;
  vec_t<T> load(const T* p) const {
    vec_t<T> v{};
    std::memcpy(&v, p, bytes);
    return v;
  }
  void store(T* p, vec_t<T> v) const { std::memcpy(p, &v, bytes); }
};

// visit(c, lanes) for columns c, c + L, .. of n; lanes.load and lanes.store touch no column beyond n.
template <typename T, typename F>
inline void for_vectors(int n, F visit) {
  constexpr int L = Simd<T>::lanes;
  int c = 0;
  for (; c + L <= n; c += L) visit(c, WholeVector<T>());
  if (c < n) visit(c, PartOfVector<T>{(n - c) * sizeof(T)});
}

// ---- memory ------------------------------------------------------------------------------------------------------
// Memory on cache lines, for plain numbers. Grows, never shrinks; what it held is lost when it grows.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  void reserve(size_t n) {
    if (n <= size_) return;
    release();
    data_ = static_cast<T*>(::operator new(n * sizeof(T), kAlignment));
    size_ = n;
  }
  void zeros(size_t n) {
    reserve(n);
    if (n) std::memset(data_, 0, n * sizeof(T));
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  int64_t bytes() const { return int64_t(size_ * sizeof(T)); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void release() {
    if (data_) ::operator delete(data_, kAlignment);
    data_ = nullptr, size_ = 0;
  }
  T* data_ = nullptr;
  size_t size_ = 0;
};

// ---- shuffles ----------------------------------------------------------------------------------------------------
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DPSIM_SHUFFLE
#endif
#endif

// Lane i of the result is lane From()(i) of a and b, counted on from a to b.
template <typename T, typename From, int... I>
inline vec_t<T> shuffle(vec_t<T> a, vec_t<T> b, std::integer_sequence<int, I...>) {
#if defined(DPSIM_SHUFFLE)
  return __builtin_shufflevector(a, b, From()(I)...);
#else
  constexpr int L = Simd<T>::lanes;
  vec_t<T> r{};
  for (int i : {I...}) r[i] = From()(i) < L ? a[From()(i)] : b[From()(i) - L];
  return r;
#endif
}
template <typename T, template <int, int, bool> class From, int S, bool odd>
inline vec_t<T> shuffle(vec_t<T> a, vec_t<T> b) {
  constexpr int L = Simd<T>::lanes;
  return shuffle<T, From<L, S, odd>>(a, b, std::make_integer_sequence<int, L>());
}

// Of vectors cut into pieces of S lanes, the even or odd ones: a0 b0 a2 b2 .. and a1 b1 a3 b3 ..
template <int L, int S, bool odd>
struct Alternating {
  constexpr int operator()(int i) const { return ((i & S) ? L - S : 0) + i + (odd ? S : 0); }
};
// The same pieces as a0 a2 .. b0 b2 .. and a1 a3 .. b1 b3 ..
template <int L, int S, bool odd>
struct Successive {
  constexpr int operator()(int i) const { return i / S * 2 * S + i % S + (odd ? S : 0); }
};
// In each group of S lanes, the lower or upper half of a and b: a0 b0 a1 b1 and a2 b2 a3 b3
template <int L, int S, bool odd>
struct Zipped {
  constexpr int operator()(int i) const { return (i & 1) * L + i / S * S + i % S / 2 + (odd ? S / 2 : 0); }
};

// Lane i of x[j] becomes lane j of x[i].
template <typename T, int S = 1>
inline void transpose(vec_t<T>* x) {
  constexpr int L = Simd<T>::lanes;
  if constexpr (S < L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (i & S) continue;
      const vec_t<T> a = x[i], b = x[i + S];
      x[i] = shuffle<T, Alternating, S, false>(a, b), x[i + S] = shuffle<T, Alternating, S, true>(a, b);
    }
    transpose<T, 2 * S>(x);
  }
}

// One step of sums: N vectors become half as many.
template <typename T, template <int, int, bool> class From, int S, int N>
inline void fold(vec_t<T>* x) {
#pragma GCC unroll 8
  for (int i = 0; i < N / 2; ++i)
    x[i] = shuffle<T, From, S, false>(x[2 * i], x[2 * i + 1]) + shuffle<T, From, S, true>(x[2 * i], x[2 * i + 1]);
}

// Lane i is the sum of the lanes of x[i]; x is overwritten. Within 16 bytes first, where shuffles are cheapest.
template <typename T>
inline vec_t<T> sums(vec_t<T>* x) {
  constexpr int L = Simd<T>::lanes, E = 16 / sizeof(T);
  if constexpr (E == 4) {
    fold<T, Zipped, 4, L>(x);
    fold<T, Alternating, 2, L / 2>(x);
  } else {
    fold<T, Alternating, 1, L>(x);
  }
  if constexpr (L > E) fold<T, Successive, E, L / E>(x);
  if constexpr (L > 2 * E) fold<T, Successive, E, L / E / 2>(x);
  return x[0];
}

// to[r] = the sum of the lanes of x[r], for n rows; x is overwritten, and read up to whole vectors of rows.
template <typename T>
inline void sums_of_lanes(vec_t<T>* x, int n, T* to) {
  constexpr int L = Simd<T>::lanes;
  for (int first = 0; first < n; first += L) {
    const vec_t<T> sum = DPSIM_ISA::sums<T>(x + first);
    std::memcpy(to + first, &sum, std::min(L, n - first) * sizeof(T));
  }
}

// The lanes of x in double, added up until as many are left as a vector of double has.
inline vec_t<double> widen(vec_t<double> x) { return x; }
inline vec_t<double> widen(vec_t<float> x) {
  typedef float half __attribute__((vector_size(DPSIM_VECTOR_BYTES / 2)));
  half low, high;
  std::memcpy(&low, &x, sizeof low);
  std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
  return __builtin_convertvector(low, vec_t<double>) + __builtin_convertvector(high, vec_t<double>);
}

// to[i] += the sum of the lanes of x[i], in double.
template <typename T>
inline void add_sums(const vec_t<T>* x, int n, double* to) {
  constexpr int D = Simd<double>::lanes;
  for (int first = 0; first < n; first += D) {
    vec_t<double> wide[D];
    for (int i = 0; i < D; ++i) wide[i] = first + i < n ? widen(x[first + i]) : vec_t<double>{};
    const vec_t<double> sum = sums<double>(wide);
    for (int i = 0; i < std::min(D, n - first); ++i) to[first + i] += sum[i];
  }
}

// All lanes of x as one number by op(a, b), which takes vectors and numbers.
template <typename T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes), may_alias));
};
template <typename T, int Bytes = DPSIM_VECTOR_BYTES, typename Op>
inline T reduced(const typename VectorOf<T, Bytes>::type& x, Op op) {
  if constexpr (Bytes == 2 * sizeof(T)) {
    return op(x[0], x[1]);
  } else {
    typename VectorOf<T, Bytes / 2>::type low, high;
    std::memcpy(&low, &x, Bytes / 2);
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + Bytes / 2, Bytes / 2);
    return reduced<T, Bytes / 2>(op(low, high), op);
  }
}

// ---- tanh ------------------------------------------------------------------------------------------------------
// tanh x = (e - 1) / (e + 1), e = 2^(n + f) = exp 2x; e - 1 = 2^n (2^f - 1) + (2^n - 1) keeps small x exact.
template <typename T>
struct Exp2 {};
template <>
struct Exp2<float> {
  typedef int32_t integer;
  static constexpr int degree = 7, mantissa = 23, bias = 127;
  static constexpr float limit = 40.0f;
};
template <>
struct Exp2<double> {
  typedef int64_t integer;
  static constexpr int degree = 13, mantissa = 52, bias = 1023;
  static constexpr double limit = 80.0;
};

template <typename T>
inline vec_t<T> tanh_vec(vec_t<T> x) {
  using E = Exp2<T>;
  typedef typename E::integer ivec __attribute__((vector_size(DPSIM_VECTOR_BYTES)));
  constexpr double log2e = 1.4426950408889634074, ln2 = 0.69314718055994530942;
  // Adding and subtracting 1.5 * 2^mantissa rounds to the nearest integer, and leaves it in the low bits.
  constexpr T magic = T(1.5) * T(typename E::integer(1) << E::mantissa);
  vec_t<T> t = x * T(2 * log2e);
  t = t > E::limit ? (vec_t<T>{} + E::limit) : t;
  t = t < -E::limit ? (vec_t<T>{} - E::limit) : t;
  vec_t<T> shifted = t + magic;
  vec_t<T> n = shifted - magic;
  vec_t<T> u = (t - n) * T(ln2);
  vec_t<T> q = vec_t<T>{} + T(1);  // Horner: 2^f - 1 = u (1 + u/2 (1 + u/3 (...)))
#pragma GCC unroll 16
  for (int k = E::degree; k >= 2; --k) q = T(1) + u * q * T(1.0 / k);
  q *= u;
  ivec exponent = ((ivec)shifted - (ivec)(vec_t<T>{} + magic) + typename E::integer(E::bias)) << E::mantissa;
  vec_t<T> scale = (vec_t<T>)exponent;
  vec_t<T> e_minus_1 = scale * q + (scale - T(1));
  return e_minus_1 / (e_minus_1 + T(2));
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
