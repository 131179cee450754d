// The activation functions of a student, with their slopes. CPU, any instruction set (see isa.h).
#pragma once

#include <cmath>

#include "../student/model.h"
#include "simd.h"

namespace dpsim {
namespace DPSIM_ISA {

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
