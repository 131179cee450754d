// A student in the precision, alignment and order in which the kernels of one instruction set read it. Immutable.
#pragma once

#include <vector>

#include "../common/environment_row.h"
#include "student_math.h"

namespace dpsim {
namespace DPSIM_ISA {

constexpr bool kManyRegisters = DPSIM_VECTOR_BYTES == 64;  // 32 vector registers, not 16
constexpr int kPowers = 6;                                 // of the interval coordinate t in the tables

// ---- tables ------------------------------------------------------------------------------------------------------
// A row of a table is one interval: for each vector of channels the six coefficients of t, padded with zeros. After
// the rows of the grid come one that continues it below r_min (t counted from r_min), and one of zeros.
template <typename T>
struct PackedPart {
  bool angular;
  Switch radial;
  double rcut2, r_min, step;
  int n_types, n_intervals, width, channels, axis;
  int vectors;    // of channels in a row of the table
  int stride;     // between components c of a[c, m], for one centre
  int first_row;  // of a[0, 0] among the rows a[c, m] of all parts
  int ring;       // neighbours of this part are in rings 0 .. ring
  std::vector<int> channel_offset;
  Slots slots;
  std::vector<int> sel;
  int n_listed;
  std::vector<char> excluded;
  bool excluded_counted;
  std::vector<T> davg, inv_dstd;
  Buffer<T> table, pad;

  PackedPart(const StudentPart& part, int n, double r_min_, int first_row_);

  int components() const { return angular ? 4 : 1; }
  int below_row() const { return n_intervals; }
  int zero_row() const { return n_intervals + 1; }
  int64_t row_size() const { return int64_t(vectors) * kPowers * Simd<T>::lanes; }
  const T* table_of(int ti, int tj) const {
    return table.data() + int64_t(ti * n_types + tj) * (n_intervals + 2) * row_size();
  }
  const T* pad_of(int ti, int tj) const { return pad.data() + size_t(ti * n_types + tj) * vectors * Simd<T>::lanes; }
};

template <typename T>
PackedPart<T>::PackedPart(const StudentPart& part, int n, double r_min_, int first_row_)
    : angular(part.kind == PartKind::angular),
      radial(part.rcut, part.rcut_smth, part.protection),
      rcut2(part.rcut * part.rcut),
      r_min(r_min_),
      step(part.step),
      n_types(n),
      n_intervals(part.n_intervals),
      width(part.width),
      channels(part.channels),
      axis(part.axis),
      vectors((part.width + Simd<T>::lanes - 1) / Simd<T>::lanes),
      first_row(first_row_),
      ring(0),
      channel_offset(part.channel_offset),
      slots(part.slots),
      sel(part.sel),
      n_listed(part.n_listed),
      excluded(part.excluded),
      excluded_counted(part.excluded_counted),
      davg(part.davg.begin(), part.davg.end()),
      inv_dstd(part.inv_dstd.begin(), part.inv_dstd.end()) {
  constexpr int L = Simd<T>::lanes;
  stride = channels;
  for (int offset : channel_offset) stride = std::max(stride, offset + vectors * L);
  stride = padded(stride, L);
  table.zeros(size_t(n) * n * (n_intervals + 2) * row_size());
  pad.zeros(size_t(n) * n * vectors * L);
  for (int pair = 0; pair < n * n; ++pair) {
    T* rows = table.data() + int64_t(pair) * (n_intervals + 2) * row_size();
    auto put = [&](int k, int power, int m, double c) {
      rows[k * row_size() + (m / L * kPowers + power) * L + m % L] = T(c);
    };
    for (int m = 0; m < width; ++m) {
      for (int k = 0; k < n_intervals; ++k)
        for (int power = 0; power < kPowers; ++power)
          put(k, power, m, part.coefficients[((size_t(pair) * n_intervals + k) * kPowers + power) * width + m]);
      for (int power = 0; power < 3; ++power)
        put(below_row(), power, m, part.taylor[(size_t(pair) * 3 + power) * width + m] * std::pow(step, power));
      pad[size_t(pair) * vectors * L + m] = T(part.pad[size_t(pair) * width + m]);
    }
  }
}

// ---- fitting nets ------------------------------------------------------------------------------------------------
constexpr int kFitRows = kManyRegisters ? 8 : 4;  // outputs of the net in one register tile
constexpr int kFitVectors = 3;                    // vectors of atoms in one register tile
constexpr int kChunk = 128;                         // features made at a time: they stay in the first-level cache

// A matrix (n_out, n_in) in tiles of kFitRows rows, each with the inputs [0, chunk), then with [chunk, 2 chunk) ..
template <typename T>
struct PackedMatrix {
  int n_in, n_out, chunk, tiles;
  Buffer<T> values;

  template <typename Element>
  PackedMatrix(int n_in_, int n_out_, int chunk_, Element element)
      : n_in(n_in_), n_out(n_out_), chunk(chunk_), tiles((n_out_ + kFitRows - 1) / kFitRows) {
    values.zeros(size_t(tiles) * kFitRows * n_in);
    for (int o = 0; o < n_out; ++o)
      for (int i = 0; i < n_in; ++i)
        values[offset(i / chunk * chunk, o / kFitRows) + i % chunk * kFitRows + o % kFitRows] = T(element(o, i));
  }
  size_t offset(int first, int tile) const {
    return (size_t(first) * tiles + size_t(tile) * std::min(chunk, n_in - first)) * kFitRows;
  }
  // Inputs first .. first + chunk of a tile: (inputs, kFitRows).
  const T* tile(int first, int index) const { return values.data() + offset(first, index); }
};

template <typename T>
struct PackedStudentLayer {
  int n_in, n_out, residual;
  Activation activation;
  PackedMatrix<T> forward, backward;
  std::vector<T> bias, idt;

  PackedStudentLayer(const StudentLayer& layer, int chunk)
      : n_in(layer.n_in),
        n_out(layer.n_out),
        residual(layer.residual),
        activation(layer.activation),
        forward(n_in, n_out, chunk, [&](int o, int i) { return layer.weight[size_t(i) * layer.n_out + o]; }),
        backward(n_out, n_in, n_out, [&](int o, int i) { return layer.weight[size_t(o) * layer.n_out + i]; }),
        bias(layer.bias.begin(), layer.bias.end()),
        idt(layer.idt.begin(), layer.idt.end()) {}
};

template <typename T>
struct PackedNet {
  std::vector<PackedStudentLayer<T>> layers;
  std::vector<T> out_weight;
  double out_bias;
};

// ---- features ----------------------------------------------------------------------------------------------------
// Consecutive features D[p, m .. m + count) of one part; of a radial part (p < 0) a[0, m .. m + count).
struct FeatureRun {
  int part, p, m, count;
};

template <typename T>
struct PackedStudent {
  int n_types, n_features, n_rows;   // rows a[c, m] of all parts
  int center_size;                   // numbers of a for one centre, padded
  int chunk;                         // features made at a time, a multiple of kFitRows
  int widest;                        // layer of any net
  std::vector<double> rings;         // distinct cutoffs, increasing
  std::vector<PackedPart<T>> parts;
  std::vector<PackedNet<T>> nets;
  std::vector<std::vector<FeatureRun>> chunks;
  double r_min;
  std::vector<double> core_distances;
  std::vector<char> atom_excluded, pair_excluded;

  explicit PackedStudent(const Student& student);

 private:
  void pack_features();
};

template <typename T>
PackedStudent<T>::PackedStudent(const Student& student)
    : n_types(student.n_types()),
      n_features(student.n_features()),
      n_rows(0),
      center_size(0),
      chunk(kChunk),
      widest(1),
      r_min(student.r_min),
      core_distances(student.core_distances),
      atom_excluded(student.atom_excluded),
      pair_excluded(student.pair_excluded) {
  if (std::all_of(core_distances.begin(), core_distances.end(), [](double r0) { return r0 <= 0; }))
    core_distances.clear();
  for (const StudentPart& part : student.parts) {
    parts.emplace_back(part, n_types, student.r_min, n_rows);
    n_rows += parts.back().components() * part.channels;
    center_size += parts.back().components() * parts.back().stride;
    rings.push_back(part.rcut);
  }
  std::sort(rings.begin(), rings.end());
  rings.erase(std::unique(rings.begin(), rings.end()), rings.end());
  for (size_t p = 0; p < parts.size(); ++p)
    parts[p].ring = int(std::lower_bound(rings.begin(), rings.end(), student.parts[p].rcut) - rings.begin());
  // A residual connection around the first layer reads all features at once.
  for (const StudentNet& net : student.nets)
    if (!net.layers.empty() && net.layers[0].residual) chunk = std::max(chunk, padded(n_features, kFitRows));
  for (const StudentNet& net : student.nets) {
    PackedNet<T> packed{{}, std::vector<T>(net.out_weight.begin(), net.out_weight.end()), net.out_bias};
    std::vector<StudentLayer> layers = net.layers;
    if (layers.empty()) {  // linear in the features: the output is the only layer
      layers.push_back({n_features, 1, 0, Activation::linear, net.out_weight, {0.0}, {1.0}});
      packed.out_weight = {T(1)};
    }
    for (size_t l = 0; l < layers.size(); ++l) {
      packed.layers.emplace_back(layers[l], l ? layers[l].n_in : chunk);
      widest = std::max(widest, layers[l].n_out);
    }
    nets.push_back(std::move(packed));
  }
  pack_features();
}

template <typename T>
void PackedStudent<T>::pack_features() {
  chunks.resize(size_t(n_features + chunk - 1) / chunk);
  int feature = 0;
  auto add = [&](int part, int p, int m, int end) {
    while (m < end) {
      const int count = std::min(end - m, chunk - feature % chunk);
      chunks[feature / chunk].push_back({part, p, m, count});
      m += count, feature += count;
    }
  };
  for (size_t k = 0; k < parts.size(); ++k) {
    if (!parts[k].angular) add(int(k), -1, 0, parts[k].channels);
    for (int p = 0; parts[k].angular && p < parts[k].axis; ++p) add(int(k), p, p, parts[k].channels);
  }
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
