// What the kernels of a student are built from: aligned buffers, shuffles of whole vectors, activation functions.
// CPU, any instruction set: included once per translation unit (see isa.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#include "../student/model.h"
#include "radial_kernel.h"

namespace dpsim {
namespace DPSIM_ISA {

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

// ---- activation functions ----------------------------------------------------------------------------------------
template <typename T>
struct Activated {
  vec_t<T> y, slope;
};

template <typename T>
inline Activated<T> activate_tanh(vec_t<T> x) {
  const vec_t<T> y = tanh_vec<T>(x);
  return {y, T(1) - y * y};
}

template <typename T>
inline vec_t<T> sigmoid_vec(vec_t<T> x) {
  return T(0.5) + T(0.5) * tanh_vec<T>(T(0.5) * x);
}

// Mirrors dpsim/kernels/activation.py.
template <typename T>
inline Activated<T> activate(Activation f, vec_t<T> x) {
  const vec_t<T> zero{}, one = zero + T(1);
  switch (f) {
    case Activation::tanh:
      return activate_tanh<T>(x);
    case Activation::gelu:
    case Activation::gelu_tf: {
      constexpr T c = T(0.79788456080286535588), cubic = T(0.044715);
      const vec_t<T> t = tanh_vec<T>(c * (x + cubic * x * x * x));
      return {T(0.5) * x * (T(1) + t),
              T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * (c * (T(1) + T(3) * cubic * x * x))};
    }
    case Activation::relu:
      return {x > zero ? x : zero, x > zero ? one : zero};
    case Activation::relu6: {
      const vec_t<T> six = zero + T(6), y = x > zero ? x : zero;
      return {y < six ? y : six, x > zero ? (x < six ? one : zero) : zero};
    }
    case Activation::softplus: {
      vec_t<T> y;
      for (int i = 0; i < Simd<T>::lanes; ++i) y[i] = x[i] > T(20) ? x[i] : std::log1p(std::exp(x[i]));
      return {y, sigmoid_vec<T>(x)};
    }
    case Activation::sigmoid: {
      const vec_t<T> y = sigmoid_vec<T>(x);
      return {y, y * (T(1) - y)};
    }
    case Activation::silu: {
      const vec_t<T> y = sigmoid_vec<T>(x);
      return {x * y, y * (T(1) + x * (T(1) - y))};
    }
    case Activation::linear:
      break;
  }
  return {x, one};
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
