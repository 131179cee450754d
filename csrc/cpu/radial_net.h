// A dense tanh net of one input with its derivative, block of edges by block: forward, and the gradients of its
// parameters. CPU, any instruction set: included once per translation unit (see isa.h).
//
// Mirrors dpsim/kernels/radial.py::embedding_reference, step by step:
//   1. z = x W + b, dz = dx W          value and derivative share one matrix product, rows [x; dx]
//   2. y = tanh z,  dy = (1 - y^2) dz
//   3. x' = y idt + [x, ..], dx' = dy idt + [dx, ..]
// Lanes are channels; in narrow nets, which would leave most of them empty, lanes are edges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "dpsim.h"
#include "gemm.h"

namespace dpsim {
namespace DPSIM_ISA {

constexpr int kRows = 48;  // edges per block: a multiple of the register tile's rows

// ---- the net ---------------------------------------------------------------------------------------------------
template <typename T>
struct PackedLayer {
  int n_in, n_out, ld_in, ld_out, residual;
  bool has_bias, has_idt;
  std::vector<T> weight, weight_t, bias, idt;  // rows padded with zeros to a multiple of the lanes

  explicit PackedLayer(const dpsim_layer& layer)
      : n_in(layer.n_in),
        n_out(layer.n_out),
        ld_in(padded(layer.n_in, Simd<T>::lanes)),
        ld_out(padded(layer.n_out, Simd<T>::lanes)),
        residual(layer.residual),
        has_bias(layer.bias != nullptr),
        has_idt(layer.idt != nullptr),
        weight(size_t(n_in) * ld_out),
        weight_t(size_t(n_out) * ld_in),
        bias(ld_out),
        idt(ld_out) {
    const T* w = static_cast<const T*>(layer.weight);
    for (int i = 0; i < n_in; ++i)
      for (int o = 0; o < n_out; ++o) {
        weight[size_t(i) * ld_out + o] = w[size_t(i) * n_out + o];
        weight_t[size_t(o) * ld_in + i] = w[size_t(i) * n_out + o];
      }
    const T *b = static_cast<const T*>(layer.bias), *t = static_cast<const T*>(layer.idt);
    for (int o = 0; o < n_out; ++o) bias[o] = b ? b[o] : T(0), idt[o] = t ? t[o] : T(1);
  }
};

constexpr int kNarrow = 16;  // the widest layer of a narrow net

template <typename T>
bool is_narrow(const std::vector<PackedLayer<T>>& net) {
  return std::all_of(net.begin(), net.end(), [](const auto& layer) { return layer.n_out <= kNarrow; });
}

// What one thread needs to push a block through the net: for each layer the stacked inputs [x; dx], y and dz.
template <typename T>
struct Workspace {
  struct PerLayer {
    std::vector<T> x, y, dz;
  };
  std::vector<PerLayer> layers;
  std::vector<T> out, z, grad, grad_in;
  bool narrow;

  explicit Workspace(const std::vector<PackedLayer<T>>& net) : layers(net.size()), narrow(is_narrow(net)) {
    size_t widest = Simd<T>::lanes;
    for (size_t l = 0; l < net.size(); ++l) {
      layers[l].x.assign(size_t(2 * kRows) * net[l].ld_in, T(0));
      layers[l].y.assign(size_t(kRows) * net[l].ld_out, T(0));
      layers[l].dz.assign(size_t(kRows) * net[l].ld_out, T(0));
      widest = std::max({widest, size_t(net[l].ld_in), size_t(net[l].ld_out)});
    }
    for (std::vector<T>* buffer : {&out, &z, &grad, &grad_in}) buffer->assign(2 * kRows * widest, T(0));
  }
};

// As forward_block, of wide nets.
template <typename T>
void forward_wide(const std::vector<PackedLayer<T>>& net, const T* s, int rows, Workspace<T>& ws) {
  constexpr int L = Simd<T>::lanes;
  const int ld0 = net[0].ld_in;
  for (int r = 0; r < kRows; ++r) {
    ws.layers[0].x[size_t(r) * ld0] = r < rows ? s[r] : T(0);
    ws.layers[0].x[size_t(r + kRows) * ld0] = T(1);
  }
  for (size_t l = 0; l < net.size(); ++l) {
    const PackedLayer<T>& layer = net[l];
    const int ld = layer.ld_out, ld_in = layer.ld_in;
    T* x = ws.layers[l].x.data();
    T* out = l + 1 < net.size() ? ws.layers[l + 1].x.data() : ws.out.data();
    gemm(2 * kRows, ld, layer.n_in, x, ld_in, layer.weight.data(), ws.z.data(), ld);  // 1.
    for (int r = 0; r < kRows; ++r) {
      const T *z = ws.z.data() + size_t(r) * ld, *dz = z + size_t(kRows) * ld;
      T *y = ws.layers[l].y.data() + size_t(r) * ld, *kept = ws.layers[l].dz.data() + size_t(r) * ld;
      T *o = out + size_t(r) * ld, *d_o = o + size_t(kRows) * ld;
      for (int c = 0; c < ld; c += L) {
        const vec_t<T> yv = tanh_vec<T>(load(z + c) + load(layer.bias.data() + c)), dzv = load(dz + c);
        const vec_t<T> idt = load(layer.idt.data() + c);
        store(y + c, yv), store(kept + c, dzv);
        store(o + c, yv * idt), store(d_o + c, (T(1) - yv * yv) * dzv * idt);  // 2.
      }
      const T *xr = x + size_t(r) * ld_in, *dxr = xr + size_t(kRows) * ld_in;
      for (int part = 0; part < layer.residual; ++part)  // 3.
        for (int c = 0; c < layer.n_in; ++c) {
          o[part * layer.n_in + c] += xr[c];
          d_o[part * layer.n_in + c] += dxr[c];
        }
    }
  }
}

// Sums of parameter gradients, in the packed layout.
template <typename T>
struct ParameterGradients {
  struct PerLayer {
    std::vector<T> weight, bias, idt;
  };
  std::vector<PerLayer> layers;

  template <typename U>
  explicit ParameterGradients(const std::vector<PackedLayer<U>>& net) {
    for (const PackedLayer<U>& l : net)
      layers.push_back({std::vector<T>(l.weight.size()), std::vector<T>(l.ld_out), std::vector<T>(l.ld_out)});
  }

  // Adds other to this and sets other to zero.
  template <typename U>
  void absorb(ParameterGradients<U>& other) {
    auto move = [](std::vector<T>& to, std::vector<U>& from) {
      for (size_t k = 0; k < to.size(); ++k) to[k] += from[k], from[k] = U(0);
    };
    for (size_t l = 0; l < layers.size(); ++l) {
      move(layers[l].weight, other.layers[l].weight);
      move(layers[l].bias, other.layers[l].bias);
      move(layers[l].idt, other.layers[l].idt);
    }
  }
};

// As backward_block, of wide nets.
template <typename T>
void backward_wide(const std::vector<PackedLayer<T>>& net, Workspace<T>& ws, ParameterGradients<T>& sums) {
  constexpr int L = Simd<T>::lanes;
  for (int l = int(net.size()) - 1; l >= 0; --l) {
    const PackedLayer<T>& layer = net[l];
    const int ld = layer.ld_out, ld_in = layer.ld_in;
    auto& sum = sums.layers[l];
    for (int r = 0; r < kRows; ++r) {
      T *g = ws.grad.data() + size_t(r) * ld, *dg = g + size_t(kRows) * ld;
      T *gz = ws.z.data() + size_t(r) * ld, *gdz = gz + size_t(kRows) * ld;
      const T *y = ws.layers[l].y.data() + size_t(r) * ld, *dz = ws.layers[l].dz.data() + size_t(r) * ld;
      for (int c = 0; c < ld; c += L) {
        const vec_t<T> yv = load(y + c), dzv = load(dz + c), h = T(1) - yv * yv;
        vec_t<T> gv = load(g + c), dgv = load(dg + c);
        if (layer.has_idt) {
          store(sum.idt.data() + c, load(sum.idt.data() + c) + gv * yv + dgv * h * dzv);
          const vec_t<T> idt = load(layer.idt.data() + c);
          gv *= idt, dgv *= idt;
        }
        const vec_t<T> gzv = h * (gv - T(2) * yv * dzv * dgv);
        store(gz + c, gzv), store(gdz + c, h * dgv);
        store(sum.bias.data() + c, load(sum.bias.data() + c) + gzv);
      }
    }
    gemm_transposed(layer.n_in, ld, 2 * kRows, ws.layers[l].x.data(), ld_in, ws.z.data(), ld, sum.weight.data());
    if (l == 0) break;
    gemm(2 * kRows, ld_in, layer.n_out, ws.z.data(), ld, layer.weight_t.data(), ws.grad_in.data(), ld_in);
    for (int r = 0; r < 2 * kRows; ++r)
      for (int part = 0; part < layer.residual; ++part)
        for (int c = 0; c < layer.n_in; ++c)
          ws.grad_in[size_t(r) * ld_in + c] += ws.grad[size_t(r) * ld + part * layer.n_in + c];
    std::swap(ws.grad, ws.grad_in);
  }
}

// ---- narrow nets: lanes are edges --------------------------------------------------------------------------------
// rows[e * ld + c] = lane e of columns[c], 0 for c >= n. ld is a multiple of the lanes.
template <typename T>
inline void to_rows(int n, const vec_t<T>* columns, T* rows, int ld) {
  constexpr int L = Simd<T>::lanes;
  for (int c = 0; c < ld; c += L) {
    vec_t<T> x[L];
    for (int k = 0; k < L; ++k) x[k] = c + k < n ? columns[c + k] : vec_t<T>{};
    transpose<T>(x);
    for (int e = 0; e < L; ++e) store(rows + int64_t(e) * ld + c, x[e]);
  }
}

template <typename T>
inline void to_columns(int n, const T* rows, int ld, vec_t<T>* columns) {
  constexpr int L = Simd<T>::lanes;
  for (int c = 0; c < ld; c += L) {
    vec_t<T> x[L];
    for (int e = 0; e < L; ++e) x[e] = load(rows + int64_t(e) * ld + c);
    transpose<T>(x);
    for (int k = 0; k < L && c + k < n; ++k) columns[c + k] = x[k];
  }
}

// As forward_block. In a layer's x, y and dz, channel i of all edges of the block is a row.
template <typename T>
void forward_narrow(const std::vector<PackedLayer<T>>& net, const T* s, int rows, Workspace<T>& ws) {
  constexpr int L = Simd<T>::lanes;
  for (int r = 0; r < rows; r += L) {
    vec_t<T> x[kNarrow] = {}, dx[kNarrow] = {}, next[kNarrow], d_next[kNarrow];
    std::memcpy(x, s + r, std::min(L, rows - r) * sizeof(T));
    dx[0] += T(1);
    for (size_t l = 0; l < net.size(); ++l) {
      const PackedLayer<T>& layer = net[l];
      auto& kept = ws.layers[l];
      for (int i = 0; i < layer.n_in; ++i) {
        store(kept.x.data() + i * kRows + r, x[i]);
        store(kept.x.data() + (layer.ld_in + i) * kRows + r, dx[i]);
      }
      for (int o = 0; o < layer.n_out; ++o) {
        vec_t<T> z = vec_t<T>{} + layer.bias[o], dz{};
        for (int i = 0; i < layer.n_in; ++i) {  // 1.
          const T w = layer.weight[i * layer.ld_out + o];
          z += w * x[i], dz += w * dx[i];
        }
        const vec_t<T> y = tanh_vec<T>(z);  // 2.
        store(kept.y.data() + o * kRows + r, y), store(kept.dz.data() + o * kRows + r, dz);
        next[o] = y * layer.idt[o], d_next[o] = (T(1) - y * y) * dz * layer.idt[o];
        if (layer.residual) next[o] += x[o % layer.n_in], d_next[o] += dx[o % layer.n_in];  // 3.
      }
      std::copy(next, next + layer.n_out, x), std::copy(d_next, d_next + layer.n_out, dx);
    }
    const int n = net.back().n_out, ld = net.back().ld_out;
    to_rows<T>(n, x, ws.out.data() + size_t(r) * ld, ld);
    to_rows<T>(n, dx, ws.out.data() + size_t(r + kRows) * ld, ld);
  }
}

// to[o] += the sum of the lanes of x[o]; x is overwritten.
template <typename T>
inline void add_lanes(vec_t<T>* x, int n, T* to) {
  T sum[kNarrow];
  sums_of_lanes<T>(x, n, sum);
  for (int o = 0; o < n; ++o) to[o] += sum[o];
}

// As backward_block.
template <typename T>
void backward_narrow(const std::vector<PackedLayer<T>>& net, int rows, Workspace<T>& ws, ParameterGradients<T>& sums) {
  constexpr int L = Simd<T>::lanes;
  for (int r = 0; r < rows; r += L) {
    vec_t<T> g[kNarrow], dg[kNarrow], gz[kNarrow], gdz[kNarrow], product[kNarrow] = {}, of_idt[kNarrow] = {};
    const int ld = net.back().ld_out;
    to_columns<T>(net.back().n_out, ws.grad.data() + size_t(r) * ld, ld, g);
    to_columns<T>(net.back().n_out, ws.grad.data() + size_t(r + kRows) * ld, ld, dg);
    for (int l = int(net.size()) - 1; l >= 0; --l) {
      const PackedLayer<T>& layer = net[l];
      const auto& kept = ws.layers[l];
      auto& sum = sums.layers[l];
      for (int o = 0; o < layer.n_out; ++o) {
        const vec_t<T> y = load(kept.y.data() + o * kRows + r), dz = load(kept.dz.data() + o * kRows + r);
        const vec_t<T> h = T(1) - y * y, gv = g[o] * layer.idt[o], dgv = dg[o] * layer.idt[o];
        of_idt[o] = g[o] * y + dg[o] * h * dz;
        product[o] = gz[o] = h * (gv - T(2) * y * dz * dgv);
        gdz[o] = h * dgv;
      }
      if (layer.has_idt) add_lanes<T>(of_idt, layer.n_out, sum.idt.data());
      add_lanes<T>(product, layer.n_out, sum.bias.data());
      vec_t<T> g_in[kNarrow] = {}, dg_in[kNarrow] = {};
      for (int i = 0; i < layer.n_in; ++i) {
        const vec_t<T> x = load(kept.x.data() + i * kRows + r);
        const vec_t<T> dx = load(kept.x.data() + (layer.ld_in + i) * kRows + r);
        for (int o = 0; o < layer.n_out; ++o) {
          const T w = layer.weight[i * layer.ld_out + o];
          g_in[i] += w * gz[o], dg_in[i] += w * gdz[o];
          product[o] = x * gz[o] + dx * gdz[o];
        }
        add_lanes<T>(product, layer.n_out, sum.weight.data() + i * layer.ld_out);
      }
      for (int o = 0; layer.residual && o < layer.n_out; ++o)
        g_in[o % layer.n_in] += g[o], dg_in[o % layer.n_in] += dg[o];
      std::copy(g_in, g_in + layer.n_in, g), std::copy(dg_in, dg_in + layer.n_in, dg);
    }
  }
}

// ---- any net -----------------------------------------------------------------------------------------------------
// Forward through one block. Leaves the stacked result [G; G'] in ws.out with leading dimension ld_out of the last.
template <typename T>
void forward_block(const std::vector<PackedLayer<T>>& net, const T* s, int rows, Workspace<T>& ws) {
  ws.narrow ? forward_narrow(net, s, rows, ws) : forward_wide(net, s, rows, ws);
}

// Backward through one block, after forward_block; ws.grad holds the stacked gradients [g_bar; dg_bar], padded with 0.
template <typename T>
void backward_block(const std::vector<PackedLayer<T>>& net, int rows, Workspace<T>& ws, ParameterGradients<T>& sums) {
  ws.narrow ? backward_narrow(net, rows, ws, sums) : backward_wide(net, ws, sums);
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
