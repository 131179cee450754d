// A student as read from its file: plain numbers in float64, checked. Each backend makes its own copy from this
// (packed, in its precision). The equations are in docs/students.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace dpsim {

enum class PartKind { angular, radial };     // contraction with the environment matrix, or of the embedding alone
enum class Slots { none, per_type, shared };  // how empty neighbour slots of an imported model count
enum class Activation { tanh, gelu, gelu_tf, relu, relu6, softplus, sigmoid, silu, linear };

// One descriptor: tables of its embedding and what standardises its environment matrix. n = number of types.
struct StudentPart {
  PartKind kind;
  double rcut, rcut_smth, protection;
  double step;  // of the grid; node k is at r_min + k step
  int n_intervals, width, channels, axis;
  std::vector<int> channel_offset;  // (n,) first channel of each neighbour type
  Slots slots;
  std::vector<int> sel;                // per_type: (n,); shared: (1,); none: empty
  int n_listed;                        // sel is taken from this many nearest neighbours: at least sum(sel)
  std::vector<char> excluded;          // (n, n) pairs that contribute nothing
  bool excluded_counted;               // whether those pairs occupy slots
  std::vector<double> davg, inv_dstd;  // (n,), (n, 2)
  std::vector<double> coefficients;    // (n, n, n_intervals, 6, width): powers of t, from the nodes of the file
  std::vector<double> taylor;          // (n, n, 3, width): G, G', G''/2 at r_min
  std::vector<double> pad;             // (n, n, width)

  int n_features() const {
    return kind == PartKind::radial ? channels : axis * channels - axis * (axis - 1) / 2;
  }
};

struct StudentLayer {
  int n_in, n_out, residual;  // residual: copies of the input added, 0, 1 or 2
  Activation activation;
  std::vector<double> weight, bias, idt;  // (n_in, n_out), (n_out,), (n_out,); zeros and ones where the file has none
};

struct StudentNet {  // of one centre type
  std::vector<StudentLayer> layers;
  std::vector<double> out_weight;
  double out_bias;  // energy_bias included
};

struct Student {
  std::vector<std::string> type_map;
  bool float64;  // precision to compute in
  double r_min, rcut;
  std::vector<StudentPart> parts;
  std::vector<StudentNet> nets;            // (n,)
  std::vector<double> core_distances;      // (n, n), zeros where there is none
  std::vector<char> atom_excluded;         // (n,)
  std::vector<char> pair_excluded;         // (n, n)
  int n_types() const { return int(type_map.size()); }
  int n_features() const {
    int sum = 0;
    for (const StudentPart& part : parts) sum += part.n_features();
    return sum;
  }
};

// A file that is not a right student; what() says what is wrong with it and what to do.
struct StudentError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The student in the `size` bytes of a .dpsim file, checked to the last byte; throws StudentError. `name` is how
// messages call the file. precision: 32, 64, or 0 for that of the file. Memory stays below four times
// the tensors' and 40 times the index's bytes.
Student parse_student(const std::string& name, const void* file, size_t size, int precision);
// The same of a file by its path.
Student read_student(const std::string& path, int precision);

// What the kernels see of a configuration: atoms sorted by type, then in space, ghosts after them.
struct AtomsView {
  int64_t n_local, n_all;
  const int64_t* type_start;  // (n_types + 1,): centres of type t are type_start[t] .. type_start[t + 1]
  const int32_t* types;       // (n_all,)
  const double* xyz;          // (n_all, 4): x y z 0
  const int64_t* offsets;     // (n_local n_types + 1,): neighbours of type t of centre i begin at [i n_types + t]
  const int32_t* neighbors;   // indices of atoms, within rcut + skin; readable 64 entries past the end
  int32_t first_type;         // type of the configuration's first atom, before sorting
};

// Where a kernel writes. forces is added to nothing: it is overwritten; atom_* may be null.
struct StudentOutput {
  double* atom_energy;  // (n_local,)
  double* forces;       // (n_all, 4)
  double* virial;       // (9,)
  double* atom_virial;  // (n_local, 9)
  int64_t below_range;
};

}  // namespace dpsim
