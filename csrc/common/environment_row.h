// One row of the environment matrix, for one edge: shared by every CPU instruction set and by CUDA.
//
// Mirrors dpsim/kernels/environment.py::environment_reference, with its derivatives written out.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define DPSIM_HOST_DEVICE __host__ __device__
#else
#define DPSIM_HOST_DEVICE
#endif

namespace dpsim {

// The constants of a call.
struct Switch {
  double rcut, inv_width, protection;
  Switch(double rcut_, double rcut_smth, double protection_)
      : rcut(rcut_), inv_width(1.0 / (rcut_ - rcut_smth)), protection(protection_) {}
};

#if defined(DPSIM_ISA)  // a copy per instruction set: the linker must never merge code compiled for different ones
namespace DPSIM_ISA {
#endif

// env = (s, q x, q y, q z) with s = w / r', q = w / r'^2; ds, dq, dw are derivatives in r.
template <typename T>
struct Radial {
  T w, s, q, dw, ds, dq;
  T inv_r;  // 1 / r, or 0 for r = 0: the unit vector is edge_vec * inv_r
};

// Of an edge whose length is known in double.
template <typename T>
DPSIM_HOST_DEVICE inline Radial<T> environment_radial(double distance, Switch p) {
  Radial<T> a;
  const T r = T(distance);
  a.inv_r = r > T(0) ? T(1) / r : T(0);
  // 2. switch: v = 1 - u runs from 1 at rcut_smth to 0 at rcut, so that w keeps its relative accuracy towards rcut
  T v = T((p.rcut - distance) * p.inv_width);
  v = v < T(1) ? v : T(1);
  v = v > T(0) ? v : T(0);
  a.w = v * v * v * (T(10) + v * (T(6) * v - T(15)));
  const T u = T(1) - v;
  a.dw = T(-30 * p.inv_width) * (v * u) * (v * u);
  // 3. s = w / r', q = w / r'^2
  const T inv = T(1) / T(distance + p.protection);
  a.s = a.w * inv;
  a.q = a.s * inv;
  a.ds = (a.dw - a.s) * inv;
  a.dq = (a.ds - a.q) * inv;
  return a;
}

template <typename T>
DPSIM_HOST_DEVICE inline Radial<T> environment_radial(T x_, T y_, T z_, Switch p) {
  // 1. distance: in double, because rcut - r cancels near the cutoff, where single precision would leave w 1e-4 off
  const double x = x_, y = y_, z = z_;
  return environment_radial<T>(std::sqrt(x * x + y * y + z * z), p);
}

#if defined(DPSIM_ISA)
}  // namespace DPSIM_ISA
#endif
}  // namespace dpsim
