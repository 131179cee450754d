// The student's C interface under AddressSanitizer and UndefinedBehaviorSanitizer: hostile files, awkward atoms.
//
// Usage: student_sanitized FILE [FILE]. Exits 0 unless a result is wrong; the sanitizers end it on their own. Of the
// second file energies are not compared: if neighbours are truncated, periodic images at equal distances have no order.
// Built by tests/parity/test_student_abi.py from the library's sources, with the student's kernels for this machine.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#if defined(__AVX512F__)
#define DPSIM_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define DPSIM_VECTOR_BYTES 32
#else
#define DPSIM_VECTOR_BYTES 16
#endif
#define DPSIM_ISA scalar
#include "../../csrc/cpu/isa.h"
#include "../../csrc/cpu/student_kernel.h"
#include "../../csrc/student/json.h"
#include "../../csrc/student/sha256.h"

namespace {

template <typename T>
dpsim::KernelsOf<T> table() {
  dpsim::KernelsOf<T> kernels{};
  kernels.student_pack = dpsim::scalar::student_pack<T>;
  kernels.student_unpack = dpsim::scalar::student_unpack<T>;
  kernels.student_scratch = dpsim::scalar::student_scratch<T>;
  kernels.student_scratch_free = dpsim::scalar::student_scratch_free<T>;
  kernels.student_scratch_bytes = dpsim::scalar::student_scratch_bytes<T>;
  kernels.student_evaluate = dpsim::scalar::student_evaluate<T>;
  return kernels;
}

}  // namespace

const dpsim::Kernels dpsim::kernels_scalar = {table<float>(), table<double>()};

namespace {

std::mt19937 generator(7);
double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(generator); }
int below(size_t n) { return int(std::uniform_int_distribution<size_t>(0, n - 1)(generator)); }

int failures = 0;
void expect(bool right, const char* what) {
  if (right) return;
  ++failures;
  std::printf("wrong: %s (last error: %s)\n", what, dpsim_last_error());
}

struct Atoms {
  std::vector<int32_t> types;
  std::vector<double> positions;
  double cell[9];
  int32_t pbc[3];
};

Atoms random_atoms(int n, int n_types) {
  Atoms atoms;
  const double size = std::pow(10.0, uniform(0.2, 1.1));
  for (double& h : atoms.cell) h = uniform(-0.3, 0.3) * size;
  for (int k = 0; k < 3; ++k) {
    atoms.cell[4 * k] += size;
    atoms.pbc[k] = below(2);
  }
  for (int i = 0; i < n; ++i) {
    atoms.types.push_back(below(n_types));
    for (int d = 0; d < 3; ++d) atoms.positions.push_back(uniform(-1, 2) * size + (below(50) == 0 ? 1e6 : 0));
  }
  return atoms;
}

struct Results {
  std::vector<double> atom_energy, forces, atom_virial;
  double energy = 0, virial[9];
  dpsim_results pointers;
  Results(size_t n, size_t n_all) : atom_energy(n), forces(3 * n_all), atom_virial(9 * n) {
    pointers = {&energy, atom_energy.data(), forces.data(), virial, atom_virial.data(), 0, 0};
  }
};

int compute(const dpsim_student* student, dpsim_workspace* workspace, const Atoms& atoms, double skin,
            Results& results) {
  return dpsim_student_compute(student, workspace, int64_t(atoms.types.size()), atoms.types.data(),
                               atoms.positions.data(), atoms.cell, atoms.pbc, skin, &results.pointers);
}

// Ordinary use: many shapes and sizes, a list kept and renewed, an engine's list; force sums and reuse are checked.
void run_configurations(const std::string& file, int precision, int rounds, bool compare) {
  dpsim_student* student = nullptr;
  expect(dpsim_student_from_memory(file.data(), int64_t(file.size()), precision, &student) == DPSIM_OK, "file opens");
  if (!student) return;
  dpsim_student_info_t info;
  dpsim_student_info(student, &info);
  const dpsim_execution two = {2, DPSIM_ISA_BEST};
  dpsim_workspace *kept = nullptr, *fresh = nullptr;
  dpsim_workspace_create(&two, &kept);
  for (int round = 0; round < rounds; ++round) {
    Atoms atoms = random_atoms(round % 5 == 0 ? below(3) : 1 + below(80), info.n_types);
    const size_t n = atoms.types.size();
    for (int step = 0; step < 3; ++step) {
      Results a(n, n), b(n, n);
      dpsim_workspace_create(nullptr, &fresh);
      const int status = compute(student, kept, atoms, 0.3, a);
      expect(status == compute(student, fresh, atoms, 0.0, b), "same status");
      if (status == DPSIM_OK) {
        const double tolerance = (precision == 64 ? 1e-9 : 1e-3) * (1 + std::abs(a.energy));
        expect(!compare || std::abs(a.energy - b.energy) < tolerance, "same energy");
        double sum = 0, scale = 1;
        for (size_t k = 0; k < 3 * n; ++k) sum += a.forces[k], scale += std::abs(a.forces[k]);
        expect(std::abs(sum) < 1e-5 * scale, "forces add up to zero");
      }
      dpsim_workspace_free(fresh);
      for (double& x : atoms.positions) x += uniform(-0.07, 0.07);
      for (size_t i = 0; i < n; ++i)
        for (int k = 0; k < 3; ++k)
          if (atoms.pbc[k] && below(4) == 0)
            for (int d = 0; d < 3; ++d) atoms.positions[3 * i + d] -= atoms.cell[3 * k + d];
    }
    // an engine's list: all pairs, the last third of the atoms being ghosts
    std::vector<int64_t> offsets{0};
    std::vector<int32_t> neighbors;
    const size_t n_local = n - n / 3;
    for (size_t i = 0; i < n_local; ++i) {
      for (size_t j = 0; j < n; ++j)
        if (j != i) neighbors.push_back(int32_t(j));
      offsets.push_back(int64_t(neighbors.size()));
    }
    Results results(n_local, n);
    const auto with_list = [&](int changed) {
      return dpsim_student_compute_neighbors(student, kept, int64_t(n_local), int64_t(n), atoms.types.data(),
                                             atoms.positions.data(), offsets.data(), neighbors.data(), changed, 0,
                                             &results.pointers);
    };
    if (with_list(1) == DPSIM_OK) expect(with_list(0) == DPSIM_OK, "list kept");
    if (!neighbors.empty()) {
      neighbors[below(neighbors.size())] = below(2) ? int32_t(n) : -1;
      expect(with_list(1) == DPSIM_INVALID_ARGUMENT, "index out of range refused");
    }
  }
  dpsim_workspace_free(kept);
  dpsim_student_close(student);
}

// The digest of a changed file put right, so that the checks behind it are reached.
void sign(std::string& file) {
  uint64_t length = 0;
  if (file.size() < 8) return;
  std::memcpy(&length, file.data(), 8);
  if (length > file.size() - 8) return;
  try {
    const dpsim::JsonDocument index("index", file.substr(8, length));
    const dpsim::JsonDocument header("header", index.root().at("__metadata__").at("dpsim").string());
    const std::string canonical = header.canonical("sha256");
    dpsim::Sha256 digest;
    digest.update(canonical.data(), canonical.size());
    digest.update(file.data() + 8 + length, file.size() - 8 - length);
    const std::string key = "\\\"sha256\\\": \\\"";
    const size_t at = file.find(key);
    if (at != std::string::npos && at + key.size() + 64 <= file.size()) file.replace(at + key.size(), 64, digest.hex());
  } catch (const dpsim::JsonError&) {
  }
}

// Damage of all kinds. Whatever opens must compute without harm.
int run_damaged_files(const std::string& file, int rounds) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  int opened = 0;
  for (int round = 0; round < rounds; ++round) {
    std::string damaged = file;
    const size_t head = 8 + size_t(length), where = below(3) ? below(head) : below(file.size());
    switch (below(6)) {
      case 0: damaged[where] = char(damaged[where] ^ 1 << below(8)); break;
      case 1: damaged[where] = char('0' + below(10)); break;
      case 2: damaged.resize(where); break;
      case 3: damaged.erase(where, 1 + below(20)); break;
      case 4: damaged.insert(where, damaged.substr(below(head), 1 + below(40))); break;
      default: {  // a number elsewhere in the header
        const size_t digit = damaged.find_first_of("0123456789", where);
        if (digit < head) damaged.replace(digit, 1, below(2) ? "9" : below(2) ? "1e300" : "-1");
      }
    }
    if (below(2) && damaged.size() > 8) {  // the length of the index, too
      const uint64_t grown = length + (damaged.size() - file.size());
      std::memcpy(&damaged[0], &grown, 8);
    }
    sign(damaged);
    std::vector<char> exact(damaged.begin(), damaged.end());  // no spare byte behind it
    dpsim_student* student = nullptr;
    const int status = dpsim_student_from_memory(exact.data(), int64_t(exact.size()), 0, &student);
    expect((status == DPSIM_OK) == (student != nullptr), "a student or an error");
    if (!student) {
      expect(std::strlen(dpsim_last_error()) > 0, "errors say why");
      continue;
    }
    ++opened;
    dpsim_student_info_t info;
    dpsim_student_info(student, &info);
    dpsim_workspace* workspace = nullptr;
    dpsim_workspace_create(nullptr, &workspace);
    const Atoms atoms = random_atoms(12, info.n_types);
    Results results(12, 12);
    if (info.rcut < 10) compute(student, workspace, atoms, 0.1, results);
    dpsim_workspace_free(workspace);
    dpsim_student_close(student);
  }
  return opened;
}

}  // namespace

int main(int argc, char** argv) {
  for (int k = 1; k < argc; ++k) {
    std::ifstream stream(argv[k], std::ios::binary);
    const std::string file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    for (const int precision : {32, 64}) run_configurations(file, precision, 12, k == 1);
    const int opened = run_damaged_files(file, 300);
    std::printf("%s: %d of 300 damaged files opened\n", argv[k], opened);
  }
  return argc < 2 || failures > 0;
}
