// Reads a student from its file: the safetensors layout, the header, every shape and number checked before it is used.
//
// The file is an 8-byte little-endian length, an index of that length (JSON: name -> dtype, shape, data_offsets), and
// the tensors. Under "__metadata__", the key "dpsim" holds the header: a JSON document in a string.
#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <unordered_map>

#include <sys/stat.h>

#include "json.h"
#include "sha256.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are read as they lie in the file");

namespace dpsim {
namespace {

constexpr size_t kMaxIndex = size_t(16) << 20;  // bytes; names, shapes and header have some tens of kilobytes
constexpr size_t kMaxTensors = 65536;
constexpr int64_t kMaxCount = 1000000;  // of any dimension: products of three stay within 64 bits

[[noreturn]] void refuse(const std::string& what) { throw JsonError(what); }

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "(" + text + ")";
}

// ---- tensors --------------------------------------------------------------------------------------------------------
class Tensors {
 public:
  Tensors(const JsonValue& index, const unsigned char* data, size_t size) : data_(data) {
    std::vector<std::pair<size_t, size_t>> ranges;
    for (const auto& [name, spec] : index.members(kMaxTensors)) {
      if (name == "__metadata__") continue;
      const std::vector<JsonValue> offsets = spec.at("data_offsets").items(2, 2);
      const size_t begin = size_t(offsets[0].integer(0, int64_t(size)));
      const size_t end = size_t(offsets[1].integer(int64_t(begin), int64_t(size)));
      std::vector<int64_t> shape;
      for (const JsonValue& n : spec.at("shape").items(0, 8)) shape.push_back(n.integer(0, int64_t(size)));
      if (!tensors_.emplace(name, Tensor{spec.at("dtype").string(), shape, begin, end}).second)
        refuse("tensor `" + name + "` is there twice");
      ranges.emplace_back(begin, end);
    }
    std::sort(ranges.begin(), ranges.end());
    size_t at = 0;
    for (const auto& [begin, end] : ranges) {
      if (begin != at) refuse("the tensors overlap or leave gaps");
      at = end;
    }
    if (at != size) refuse("the file is truncated or damaged: its tensors do not fill it");
  }

  // The numbers of a tensor of this shape: finite, float64. Each may be taken once.
  std::vector<double> take(const std::string& name, const std::vector<int64_t>& shape) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) refuse("tensor `" + name + "` is missing");
    const Tensor tensor = found->second;
    tensors_.erase(found);
    size_t count = 1;  // shape is that of the config: its product fits 64 bits
    for (const int64_t n : shape) count *= size_t(n);
    if (tensor.dtype != "F64" || tensor.shape != shape)
      refuse("tensor `" + name + "` is " + tensor.dtype.substr(0, 20) + " of shape " + text_of(tensor.shape) +
             "; expected F64 of shape " + text_of(shape));
    if (tensor.end - tensor.begin != 8 * count) refuse("tensor `" + name + "` has a wrong number of bytes");
    std::vector<double> values(count);
    std::memcpy(values.data(), data_ + tensor.begin, 8 * count);
    for (const double value : values)
      if (!std::isfinite(value)) refuse("tensor `" + name + "` holds NaN or infinity; expected numbers");
    return values;
  }

  void expect_all_taken() const {
    if (!tensors_.empty()) refuse("tensor `" + tensors_.begin()->first.substr(0, 60) + "` belongs to nothing");
  }

 private:
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    size_t begin, end;
  };
  const unsigned char* data_;
  std::unordered_map<std::string, Tensor> tensors_;
};

// ---- config ---------------------------------------------------------------------------------------------------------
template <typename Enum>
Enum choice(const JsonValue& value, std::initializer_list<std::pair<const char*, Enum>> choices) {
  const std::string name = value.string();
  std::string expected;
  for (const auto& [known, result] : choices) {
    if (name == known) return result;
    expected += (expected.empty() ? "" : ", ") + std::string(known);
  }
  value.refuse("one of " + expected);
}

Activation activation(const JsonValue& value) {
  return choice<Activation>(value, {{"tanh", Activation::tanh},
                                    {"gelu", Activation::gelu},
                                    {"gelu_tf", Activation::gelu_tf},
                                    {"relu", Activation::relu},
                                    {"relu6", Activation::relu6},
                                    {"softplus", Activation::softplus},
                                    {"sigmoid", Activation::sigmoid},
                                    {"silu", Activation::silu},
                                    {"linear", Activation::linear},
                                    {"none", Activation::linear}});
}

// (n, n): true for the pairs of types in the list, in either order.
std::vector<char> pair_table(const JsonValue& list, int n) {
  std::vector<char> table(size_t(n) * n, 0);
  for (const JsonValue& pair : list.items(0, size_t(4) * n * n)) {
    const std::vector<JsonValue> types = pair.items(2, 2);
    const auto a = types[0].integer(0, n - 1), b = types[1].integer(0, n - 1);
    table[a * n + b] = table[b * n + a] = 1;
  }
  return table;
}

// Quintics on each interval, sum_k c_k t^k with t = (r - r_k) / step, that take the nodes' G, G', G'' at both ends:
//   p = step G', q = step^2 G'', H = y1 - y0
//   c0 = y0, c1 = p0, c2 = q0/2, and c3 + c4 + c5 = H - p0 - q0/2, 3 c3 + 4 c4 + 5 c5 = p1 - p0 - q0,
//   6 c3 + 12 c4 + 20 c5 = q1 - q0.
void form_polynomials(StudentPart& part, int n_types, const std::vector<double>& table) {
  const size_t pairs = size_t(n_types) * n_types, width = part.width, nodes = size_t(part.n_intervals) + 1;
  const double step = part.step;
  part.coefficients.resize(pairs * part.n_intervals * 6 * width);
  part.taylor.resize(pairs * 3 * width);
  for (size_t pair = 0; pair < pairs; ++pair) {
    const double* first = &table[pair * nodes * 3 * width];
    for (size_t m = 0; m < width; ++m) {
      double* taylor = &part.taylor[pair * 3 * width + m];
      taylor[0] = first[m];
      taylor[width] = first[width + m];
      taylor[2 * width] = 0.5 * first[2 * width + m];
    }
    for (int k = 0; k < part.n_intervals; ++k) {
      const double *node = first + size_t(k) * 3 * width, *next = node + 3 * width;
      double* c = &part.coefficients[(pair * part.n_intervals + k) * 6 * width];
      for (size_t m = 0; m < width; ++m) {
        const double y0 = node[m], p0 = step * node[width + m], q0 = step * step * node[2 * width + m];
        const double y1 = next[m], p1 = step * next[width + m], q1 = step * step * next[2 * width + m];
        const double h = y1 - y0;
        c[m] = y0;
        c[width + m] = p0;
        c[2 * width + m] = 0.5 * q0;
        c[3 * width + m] = 10 * h - 4 * p1 - 6 * p0 + 0.5 * (q1 - 3 * q0);
        c[4 * width + m] = -15 * h + 7 * p1 + 8 * p0 - q1 + 1.5 * q0;
        c[5 * width + m] = 6 * h - 3 * (p0 + p1) + 0.5 * (q1 - q0);
      }
    }
  }
  for (const double c : part.coefficients)
    if (!std::isfinite(c)) refuse("the tables hold numbers too large to interpolate");
}

StudentPart read_part(const JsonValue& config, size_t index, double r_min, int n, Tensors& tensors) {
  config.expect_keys({"kind", "rcut", "rcut_smth", "protection", "step", "n_intervals", "width", "channels", "axis",
                      "channel_offset", "slots", "sel", "n_listed", "excluded", "excluded_counted"});
  StudentPart part;
  part.kind = choice<PartKind>(config.at("kind"), {{"angular", PartKind::angular}, {"radial", PartKind::radial}});
  part.rcut = config.at("rcut").number(1e-3, 1e3);
  part.rcut_smth = config.at("rcut_smth").number(0, 1e3);
  part.protection = config.at("protection").number(0, 1e3);
  if (part.rcut_smth >= part.rcut) config.at("rcut_smth").refuse("a number below `rcut`");
  part.step = config.at("step").number(1e-9, 1e3);
  part.n_intervals = int(config.at("n_intervals").integer(1, kMaxCount));
  if (!(std::abs(r_min + part.n_intervals * part.step - part.rcut) <= 1e-9))
    config.at("step").refuse("a table from `r_min` in `n_intervals` steps to `rcut`");
  part.width = int(config.at("width").integer(1, kMaxCount));
  part.channels = int(config.at("channels").integer(part.width, kMaxCount));
  part.axis = part.kind == PartKind::radial ? int(config.at("axis").integer(0, 0))
                                            : int(config.at("axis").integer(1, part.channels));
  for (const JsonValue& offset : config.at("channel_offset").items(n, n))
    part.channel_offset.push_back(int(offset.integer(0, part.channels - part.width)));
  part.slots = choice<Slots>(config.at("slots"),
                             {{"none", Slots::none}, {"per_type", Slots::per_type}, {"shared", Slots::shared}});
  const size_t n_sel = part.slots == Slots::none ? 0 : part.slots == Slots::shared ? 1 : n;
  for (const JsonValue& sel : config.at("sel").items(n_sel, n_sel)) part.sel.push_back(int(sel.integer(0, kMaxCount)));
  part.n_listed = std::accumulate(part.sel.begin(), part.sel.end(), 0);
  if (config.has("n_listed")) part.n_listed = int(config.at("n_listed").integer(part.n_listed, kMaxCount));
  part.excluded = pair_table(config.at("excluded"), n);
  part.excluded_counted = config.at("excluded_counted").boolean();

  const std::string prefix = "parts." + std::to_string(index) + ".";
  form_polynomials(part, n, tensors.take(prefix + "table", {n, n, part.n_intervals + 1, 3, part.width}));
  part.davg = tensors.take(prefix + "davg", {n});
  part.inv_dstd = tensors.take(prefix + "inv_dstd", {n, 2});
  part.pad = tensors.take(prefix + "pad", {n, n, part.width});
  return part;
}

StudentLayer read_layer(const JsonValue& config, const std::string& prefix, int64_t n_in, Tensors& tensors) {
  config.expect_keys({"n_in", "n_out", "activation", "residual", "idt", "bias"});
  StudentLayer layer;
  layer.n_in = int(config.at("n_in").integer(n_in, n_in));
  layer.n_out = int(config.at("n_out").integer(1, kMaxCount));
  layer.activation = activation(config.at("activation"));
  layer.residual = int(config.at("residual").integer(0, 2));
  if (layer.residual && layer.n_out != layer.residual * n_in) config.at("residual").refuse("0, or n_out / n_in");
  const bool bias = config.at("bias").boolean(), idt = config.at("idt").boolean();
  layer.weight = tensors.take(prefix + "weight", {n_in, layer.n_out});
  layer.bias = bias ? tensors.take(prefix + "bias", {layer.n_out}) : std::vector<double>(layer.n_out, 0.0);
  layer.idt = idt ? tensors.take(prefix + "idt", {layer.n_out}) : std::vector<double>(layer.n_out, 1.0);
  return layer;
}

StudentNet read_net(const std::vector<JsonValue>& config, int type, int64_t n_features, Tensors& tensors) {
  StudentNet net;
  const std::string prefix = "fitting." + std::to_string(type) + ".";
  int64_t n_in = n_features;
  for (size_t l = 0; l < config.size(); ++l) {
    net.layers.push_back(read_layer(config[l], prefix + std::to_string(l) + ".", n_in, tensors));
    n_in = net.layers.back().n_out;
  }
  net.out_weight = tensors.take(prefix + "out.weight", {n_in});
  net.out_bias = tensors.take(prefix + "out.bias", {1})[0];
  return net;
}

std::vector<std::string> read_type_map(const JsonValue& config) {
  std::vector<std::string> names;
  for (const JsonValue& value : config.items(1, 128)) {
    const std::string name = value.string();
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~'; });
    if (name.empty() || name.size() > 32 || !plain) value.refuse("the name of an element");
    if (std::find(names.begin(), names.end(), name) != names.end()) value.refuse("every element once");
    names.push_back(name);
  }
  return names;
}

Student read_config(const JsonValue& config, Tensors& tensors) {
  config.expect_keys({"type_map", "precision", "r_min", "parts", "fitting", "core_distances", "atom_exclude_types",
                      "pair_exclude_types"});
  Student student;
  student.type_map = read_type_map(config.at("type_map"));
  const int n = student.n_types();
  student.float64 = choice<bool>(config.at("precision"), {{"float32", false}, {"float64", true}});
  student.r_min = config.at("r_min").number(1e-3, 1e3);
  student.rcut = 0;
  int64_t n_features = 0;
  for (const JsonValue& part : config.at("parts").items(1, 16)) {
    student.parts.push_back(read_part(part, student.parts.size(), student.r_min, n, tensors));
    const StudentPart& added = student.parts.back();
    student.rcut = std::max(student.rcut, added.rcut);
    const int64_t axis = added.axis, channels = added.channels;
    n_features += added.kind == PartKind::radial ? channels : axis * channels - axis * (axis - 1) / 2;
    if (n_features > kMaxCount) part.at("channels").refuse("at most " + std::to_string(kMaxCount) + " features in all");
  }
  const std::vector<JsonValue> layers = config.at("fitting").items(1, 64);
  for (int t = 0; t < n; ++t) student.nets.push_back(read_net(layers, t, n_features, tensors));
  const std::vector<double> energy_bias = tensors.take("energy_bias", {n});
  for (int t = 0; t < n; ++t) student.nets[t].out_bias += energy_bias[t];
  tensors.expect_all_taken();

  student.core_distances.assign(size_t(n) * n, 0.0);
  if (const JsonValue core = config.at("core_distances"); !core.is_null()) {
    double* out = student.core_distances.data();
    for (const JsonValue& row : core.items(n, n))
      for (const JsonValue& distance : row.items(n, n)) *out++ = distance.number(0, 1e3);
    for (int a = 0; a < n; ++a)
      for (int b = 0; b < a; ++b)
        if (student.core_distances[a * n + b] != student.core_distances[b * n + a]) core.refuse("a symmetric table");
  }
  student.atom_excluded.assign(n, 0);
  for (const JsonValue& type : config.at("atom_exclude_types").items(0, size_t(4) * n))
    student.atom_excluded[type.integer(0, n - 1)] = 1;
  student.pair_excluded = pair_table(config.at("pair_exclude_types"), n);
  return student;
}

// ---- file -----------------------------------------------------------------------------------------------------------
Student parse(const std::string& name, const unsigned char* file, size_t size) {
  uint64_t length = 0;
  if (size >= 8) std::memcpy(&length, file, 8);
  if (size < 8 || length < 2 || length > std::min(size - 8, kMaxIndex))
    refuse("it is no model file, or truncated: " + std::to_string(size) + " bytes, with an index of " +
           std::to_string(length));
  const JsonDocument index("index", std::string(reinterpret_cast<const char*>(file) + 8, length));
  const JsonDocument document("header", index.root().at("__metadata__").at("dpsim").string());
  const JsonValue header = document.root();
  const std::string kind = header.has("kind") ? header.at("kind").string() : "model";
  if (kind == "model") throw StudentError("`" + name + "` is an ordinary model; compress it first: dpsim compress");
  if (kind != "student") header.at("kind").refuse("\"student\"");
  header.at("format_version").integer(1, 1);

  const unsigned char* data = file + 8 + length;
  const size_t data_size = size - 8 - size_t(length);
  const std::string canonical = document.canonical("sha256");
  Sha256 digest;
  digest.update(canonical.data(), canonical.size());
  digest.update(data, data_size);
  if (digest.hex() != header.at("sha256").string())
    refuse("it is damaged: its SHA-256 is not the one written in it");
  Tensors tensors(index.root(), data, data_size);
  return read_config(header.at("config"), tensors);
}

}  // namespace

Student parse_student(const std::string& name, const void* file, size_t size, int precision) {
  try {
    Student student = parse(name, static_cast<const unsigned char*>(file), size);
    if (precision != 0) student.float64 = precision == 64;
    return student;
  } catch (const JsonError& error) {
    throw StudentError("`" + name + "`: " + error.what() + ". Get the file again, or compress the model anew.");
  }
}

Student read_student(const std::string& path, int precision) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode))
    throw StudentError("`" + path + "` is not a file that can be read; expected a student. Check the path.");
  std::vector<char> content(size_t(info.st_size));
  std::ifstream file(path, std::ios::binary);
  if (!file.read(content.data(), std::streamsize(content.size())))
    throw StudentError("`" + path + "` cannot be read; expected a student. Check its permissions.");
  return parse_student(path, content.data(), content.size(), precision);
}

}  // namespace dpsim
