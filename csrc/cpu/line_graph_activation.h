// Activation functions with two derivatives, at the price of one exponential and one division. CPU, any instruction
// set (see isa.h). Mirrors silut_constants and `activation` of dpsim/kernels/activation.py.
#pragma once

#include <cmath>

#include "simd.h"

namespace dpsim {
namespace DPSIM_ISA {

template <typename T>
struct Jet {
  vec_t<T> y, slope, curvature;
};

// exp x = 2^n (1 + u + u^2 c(u)), |u| <= log(2) / 2, to about one unit in the last place; x is kept in range.
template <typename T>
struct ExpCoefficients;
template <>
struct ExpCoefficients<float> {
  static constexpr float limit = 87.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float c[] = {0.49999993252759576f, 0.16666517753345132f, 0.041668422004225522f,
                                0.0083690642932981132f, 0.0013813871783709636f};
};
template <>
struct ExpCoefficients<double> {
  static constexpr double limit = 708.0, ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double c[] = {0.5000000000000011151,   0.1666666666666639981,   0.04166666666652477762,
                                 0.008333333333500878324, 0.001388888894524502872, 0.0001984126949663303497,
                                 2.480149125187700428e-5, 2.755759163844369015e-6, 2.76309609344174891e-7,
                                 2.499955247711201631e-8};
};

template <typename T>
inline vec_t<T> exp_vec(vec_t<T> x) {
  using E = Exp2<T>;
  using K = ExpCoefficients<T>;
  typedef typename E::integer ivec __attribute__((vector_size(DPSIM_VECTOR_BYTES)));
  constexpr T log2e = T(1.4426950408889634074);
  constexpr T magic = T(1.5) * T(typename E::integer(1) << E::mantissa);  // see tanh_vec
  constexpr int terms = sizeof(K::c) / sizeof(T);
  x = x > K::limit ? (vec_t<T>{} + K::limit) : x;
  x = x < -K::limit ? (vec_t<T>{} - K::limit) : x;
  const vec_t<T> shifted = x * log2e + magic, n = shifted - magic;
  const vec_t<T> u = (x - n * K::ln2_high) - n * K::ln2_low;
  vec_t<T> c = vec_t<T>{} + K::c[terms - 1];
#pragma GCC unroll 16
  for (int k = terms - 2; k >= 0; --k) c = c * u + K::c[k];
  c = (c * u + T(1)) * u + T(1);
  const ivec exponent = ((ivec)shifted - (ivec)(vec_t<T>{} + magic) + typename E::integer(E::bias)) << E::mantissa;
  return c * (vec_t<T>)exponent;
}

template <typename T>
struct Tanh {
  Jet<T> operator()(vec_t<T> x) const {
    const vec_t<T> y = tanh_vec<T>(x), slope = T(1) - y * y;
    return {y, slope, T(-2) * y * slope};
  }
};

// silu(x) = x s(x) below the threshold t, tanh(a (x - t)) + b above, a = silu'(t), b = silu(t), s(x) = 1 / (1 + e^-x).
// tanh k = s(2k) - s(-2k): both branches need one s, of another argument, and s(-k) = e^-k s(k). t infinite: silu.
template <typename T>
struct Silut {
  T t, a, b;

  explicit Silut(double threshold) : t(T(threshold)), a(0), b(0) {
    if (std::isinf(threshold)) return;
    const double y = 1 / (1 + std::exp(-threshold));
    a = T(y * (1 + threshold * (1 - y))), b = T(threshold * y);
  }

  Jet<T> operator()(vec_t<T> x) const {
    const vec_t<T> zero{};
    const auto below = x < t;
    const vec_t<T> e = exp_vec<T>(below ? -x : (T(-2) * a) * (x - t));
    const vec_t<T> s = T(1) / (T(1) + e), minus = e * s, product = s * minus, difference = minus - s;
    return {below ? x * s : b - difference,
            (below ? s : zero) + product * (below ? x : zero + T(4) * a),
            product * ((below ? x : zero + T(8) * a * a) * difference + (below ? zero + T(2) : zero))};
  }
};

}  // namespace DPSIM_ISA
}  // namespace dpsim
