// A student on the device, in the precision it computes in: everything constant, in one block of memory.
#pragma once

#include <cstring>
#include <vector>

#include "device_memory.h"
#include "student_kernels.cuh"

namespace dpsim::cuda {

// Arrays put one after the other on the host, to be copied to the device at once.
class Image {
 public:
  template <typename T>
  size_t put(const std::vector<T>& items) {
    const size_t at = (bytes_.size() + 255) / 256 * 256;
    bytes_.resize(at + items.size() * sizeof(T));
    if (!items.empty()) std::memcpy(bytes_.data() + at, items.data(), items.size() * sizeof(T));
    return at;
  }
  const std::vector<char>& bytes() const { return bytes_; }

 private:
  std::vector<char> bytes_;
};

// The layer forward, and what backward needs besides.
template <typename T>
struct DeviceLayer {
  int n_in, n_out, residual;
  Activation activation;
  const T *weight, *transposed, *bias, *idt;
};

template <typename T>
struct DevicePart {
  PartOf<T> view;  // constants; the buffers of a chunk are filled in for each
  bool angular;
  int lanes, axis, n_features, first_feature;
  const unsigned* gram_order;
};

template <typename T>
class DeviceStudent {
 public:
  DeviceStudent(const Student& student, Ledger& ledger, cudaStream_t stream);

  int n_types, n_features = 0, max_width = 0;
  double rcut;
  std::vector<DevicePart<T>> parts;
  std::vector<DeviceLayer<T>> layers;
  const T* out_weight;
  const double *out_bias, *core;  // core: null where no pair has one
  const unsigned char* atom_excluded;

 private:
  // Puts an array and remembers to point `pointer` at it.
  template <typename U, typename V>
  void put(const U*& pointer, const std::vector<V>& items) {
    const std::vector<U> cast(items.begin(), items.end());
    fixes_.push_back({&pointer, image_.put(cast)});
  }
  void put_part(const Student& student, const StudentPart& part, DevicePart<T>& to);

  struct Fix {
    void* pointer;  // of any type: written byte by byte
    size_t at;
  };
  Image image_;
  std::vector<Fix> fixes_;
  DeviceArray<char> memory_;
};

template <typename T>
DeviceStudent<T>::DeviceStudent(const Student& student, Ledger& ledger, cudaStream_t stream)
    : n_types(student.n_types()), rcut(student.rcut), memory_(ledger) {
  const int n = n_types;
  parts.resize(student.parts.size());
  layers.resize(student.nets[0].layers.size());
  for (size_t p = 0; p < parts.size(); ++p) {
    parts[p].first_feature = n_features;
    put_part(student, student.parts[p], parts[p]);
    parts[p].view.counts_below = p == 0;  // r_min is below the cutoff of every part
    n_features += parts[p].n_features;
  }
  for (size_t l = 0; l < layers.size(); ++l) {
    const StudentLayer& like = student.nets[0].layers[l];
    layers[l] = {like.n_in, like.n_out, like.residual, like.activation, nullptr, nullptr, nullptr, nullptr};
    max_width = std::max(max_width, like.n_out);
    if (int64_t(like.n_in) * like.n_out > INT32_MAX)
      throw Failure{fail(DPSIM_UNSUPPORTED, "a layer has %d x %d weights; expected below 2^31 on the GPU. Use the CPU.",
                         like.n_in, like.n_out)};
    std::vector<double> weight, transposed, bias, idt;
    for (const StudentNet& net : student.nets) {
      const StudentLayer& layer = net.layers[l];
      if (layer.n_in != like.n_in || layer.n_out != like.n_out || layer.residual != like.residual ||
          layer.activation != like.activation)
        throw Failure{fail(DPSIM_UNSUPPORTED, "fitting nets of different shapes cannot run on the GPU; use the CPU")};
      weight.insert(weight.end(), layer.weight.begin(), layer.weight.end());
      bias.insert(bias.end(), layer.bias.begin(), layer.bias.end());
      idt.insert(idt.end(), layer.idt.begin(), layer.idt.end());
      for (int m = 0; m < layer.n_out; ++m)
        for (int k = 0; k < layer.n_in; ++k) transposed.push_back(layer.weight[size_t(k) * layer.n_out + m]);
    }
    put(layers[l].weight, weight);
    put(layers[l].transposed, transposed);
    put(layers[l].bias, bias);
    put(layers[l].idt, idt);
  }
  std::vector<double> weight, bias, distances(student.core_distances);
  for (const StudentNet& net : student.nets) {
    weight.insert(weight.end(), net.out_weight.begin(), net.out_weight.end());
    bias.push_back(net.out_bias);
  }
  bool any_core = false;
  for (int pair = 0; pair < n * n; ++pair) {
    if (student.pair_excluded[pair]) distances[pair] = 0;
    any_core |= distances[pair] > 0;
  }
  put(out_weight, weight);
  put(out_bias, bias);
  put(core, distances);
  put(atom_excluded, student.atom_excluded);

  memory_.reserve(int64_t(image_.bytes().size()));
  check(cudaMemcpyAsync(memory_.data(), image_.bytes().data(), image_.bytes().size(), cudaMemcpyHostToDevice, stream));
  check(cudaStreamSynchronize(stream));
  for (const Fix& fix : fixes_) {
    const char* at = memory_.data() + fix.at;
    std::memcpy(fix.pointer, &at, sizeof at);
  }
  if (!any_core) core = nullptr;
  image_ = {};
}

template <typename T>
void DeviceStudent<T>::put_part(const Student& student, const StudentPart& part, DevicePart<T>& to) {
  const int n = n_types, groups = (part.width + 3) / 4;  // of four channels, the load of a lane
  to.angular = part.kind == PartKind::angular;
  to.axis = part.axis;
  to.n_features = part.n_features();
  to.lanes = groups <= 4 ? 4 : 8;
  const int n_slices = (groups + to.lanes - 1) / to.lanes, slice_width = 4 * ((groups + n_slices - 1) / n_slices);
  if (part.channels > 0xffff || 4 * part.channels * sizeof(T) > 48 * 1024)
    throw Failure{fail(DPSIM_UNSUPPORTED, "a part has %d channels; expected at most %d on the GPU. Use the CPU.",
                       part.channels, int(48 * 1024 / 4 / sizeof(T)))};
  to.view.of_r = Switch(part.rcut, part.rcut_smth, part.protection);
  to.view.rcut = part.rcut;
  to.view.r_min = student.r_min;
  to.view.inv_step = 1 / part.step;
  to.view.n_intervals = part.n_intervals;
  to.view.width = part.width;
  to.view.channels = part.channels;
  to.view.n_slices = n_slices;
  to.view.slice_width = slice_width;
  to.view.slots = part.slots;

  // 1. the table in slices, interval 0 being the Taylor continuation, in powers of t = (r - r_min) / step
  const size_t nodes = part.n_intervals + 1, block = size_t(6) * slice_width;
  std::vector<T> table(size_t(n) * n * n_slices * nodes * block, T(0));
  for (int pair = 0; pair < n * n; ++pair)
    for (int m = 0; m < part.width; ++m) {
      T* column = table.data() + (size_t(pair) * n_slices + m / slice_width) * nodes * block + m % slice_width;
      const double* taylor = part.taylor.data() + size_t(pair) * 3 * part.width + m;
      double unit = 1;
      for (int power = 0; power < 3; ++power, unit *= part.step)
        column[power * slice_width] = T(taylor[power * part.width] * unit);
      const double* from = part.coefficients.data() + size_t(pair) * part.n_intervals * 6 * part.width + m;
      for (size_t k = 1; k < nodes; ++k)
        for (int power = 0; power < 6; ++power, from += part.width)
          column[k * block + power * slice_width] = T(*from);
    }
  put(to.view.table, table);

  // 2. constants of types and of pairs
  std::vector<double> standard;
  for (int t = 0; t < n; ++t)
    standard.insert(standard.end(), {part.davg[t], part.inv_dstd[2 * t], part.inv_dstd[2 * t + 1]});
  put(to.view.standard, standard);
  put(to.view.pad, part.pad);
  put(to.view.sel, part.sel);
  std::vector<unsigned char> use(n * n);
  for (int pair = 0; pair < n * n; ++pair) {
    if (student.pair_excluded[pair]) continue;
    use[pair] = kNeighbor;
    if (!part.excluded[pair] || part.excluded_counted) use[pair] |= kOccupies;
    if (!part.excluded[pair]) use[pair] |= kContracted;
  }
  put(to.view.use, use);

  // 3. which types share channels: their neighbours are summed in one go
  std::vector<int> next_alike(n, -1);
  std::vector<unsigned char> leads(n, 1);
  const std::vector<int>& offset = part.channel_offset;
  int covered = 0;
  for (int t = 0; t < n; ++t) {
    for (int s = 0; s < t; ++s) {
      if (offset[s] != offset[t] && std::abs(offset[s] - offset[t]) < part.width)
        throw Failure{fail(DPSIM_UNSUPPORTED,
                           "channels of two neighbour types overlap in part; expected all or none. Use the CPU.")};
      if (offset[s] != offset[t]) continue;
      leads[t] = 0;
      next_alike[s] = next_alike[s] < 0 ? t : next_alike[s];
    }
    covered += leads[t] * part.width;
  }
  if (covered != part.channels)
    throw Failure{fail(DPSIM_UNSUPPORTED, "%d of %d channels belong to no neighbour type. Use the CPU.",
                       part.channels - covered, part.channels)};
  put(to.view.channel_offset, offset);
  put(to.view.next_alike, next_alike);
  put(to.view.leads, leads);

  // 4. the order of the features
  std::vector<unsigned> order;
  for (int p = 0; p < part.axis; ++p)
    for (int m = p; m < part.channels; ++m) order.push_back(unsigned(p) | unsigned(m) << 16);
  put(to.gram_order, order);
}

}  // namespace dpsim::cuda
