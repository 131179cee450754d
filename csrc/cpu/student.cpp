// The C interface of students: checks every argument, keeps the neighbour list, calls a kernel, checks its result and
// puts it into the caller's order. The work itself is in cpu/student_kernel.h or cuda/student.cu.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>

#include "../cuda/student_cuda.h"
#include "../student/model.h"
#include "../student/neighbors.h"
#include "isa.h"
#include "status.h"

struct dpsim_student {
  dpsim::Student model;
  uint64_t id;  // never used twice: what caches are kept by
};

namespace dpsim {
namespace {

constexpr int kMaxThreads = 1024;
constexpr double kMaxSkin = 1e3;     // A
constexpr double kOverlap = 1e-6;    // A; atoms nearer than this have no direction left

// ---- kernels --------------------------------------------------------------------------------------------------------
// A student packed for one instruction set and precision, with what its kernel needs beside it.
class Evaluator {
 public:
  virtual ~Evaluator() = default;
  virtual void evaluate(const AtomsView& atoms, StudentOutput& out, int threads) = 0;
  virtual int64_t bytes() const = 0;
};

int64_t numbers_in(const Student& student) {
  size_t sum = 0;
  for (const StudentPart& part : student.parts) sum += part.coefficients.size();
  for (const StudentNet& net : student.nets)
    for (const StudentLayer& layer : net.layers) sum += 2 * layer.weight.size();  // also transposed
  return int64_t(sum);
}

template <typename T>
class EvaluatorOf : public Evaluator {
 public:
  EvaluatorOf(const Kernels& kernels, const Student& student, int threads)
      : kernels_(of<T>(kernels)),
        packed_(kernels_.student_pack(student), kernels_.student_unpack),
        scratch_(kernels_.student_scratch(packed_.get(), threads), kernels_.student_scratch_free),
        packed_bytes_(numbers_in(student) * int64_t(sizeof(T))) {}
  void evaluate(const AtomsView& atoms, StudentOutput& out, int threads) override {
    kernels_.student_evaluate(packed_.get(), scratch_.get(), atoms, out, threads);
  }
  int64_t bytes() const override { return packed_bytes_ + kernels_.student_scratch_bytes(scratch_.get()); }

 private:
  const KernelsOf<T>& kernels_;
  std::unique_ptr<void, void (*)(void*)> packed_, scratch_;
  int64_t packed_bytes_;
};

}  // namespace
}  // namespace dpsim

struct dpsim_workspace {
  ~dpsim_workspace() {
    if (cuda) dpsim::cuda_workspace_free(cuda);
  }

  const dpsim::Kernels* kernels = nullptr;
  int threads = 1;
  dpsim::CudaWorkspace* cuda = nullptr;  // where it works if not null; of the rest only `engine` is used then

  std::unique_ptr<dpsim::Evaluator> evaluator;  // of the student used last
  uint64_t evaluator_id = 0;
  dpsim::NeighborList list;
  dpsim::EngineList engine_list;
  dpsim::Buffer<double> forces, atom_energy, atom_virial;  // in the kernels' order

  struct {  // whose list dpsim_student_compute_neighbors was given last
    uint64_t id = 0;
    int64_t n_local = 0, n_all = 0;
  } engine;
};

namespace dpsim {
namespace {

// As `guarded`; errors about files and atoms are the caller's.
template <typename Body>
int guarded_student(Body body) noexcept {
  return guarded([&]() -> int {
    try {
      return body();
    } catch (const StudentError& error) {
      return fail(DPSIM_INVALID_ARGUMENT, "%s", error.what());
    } catch (const AtomsError& error) {
      return fail(DPSIM_INVALID_ARGUMENT, "%s", error.what());
    }
  });
}

int fail_null(const char* name) {
  return fail(DPSIM_INVALID_ARGUMENT, "`%s` is NULL; expected a pointer. Pass it.", name);
}

template <typename Read>
int open_student(int precision, dpsim_student** student, Read read) {
  if (!student) return fail_null("student");
  *student = nullptr;
  if (precision != DPSIM_PRECISION_FILE && precision != DPSIM_FLOAT32 && precision != DPSIM_FLOAT64)
    return fail(DPSIM_INVALID_ARGUMENT, "`precision` is %d; expected 0 (the file's), 32 or 64", precision);
  return guarded_student([&] {
    static std::atomic<uint64_t> last_id{0};
    *student = new dpsim_student{read(), ++last_id};
    return DPSIM_OK;
  });
}

// ---- arguments ------------------------------------------------------------------------------------------------------
int check_types(const Student& student, int64_t n, const int32_t* types) {
  for (int64_t i = 0; i < n; ++i)
    if (types[i] < 0 || types[i] >= student.n_types())
      return fail(DPSIM_INVALID_ARGUMENT, "`types[%lld]` is %d; expected 0 to %d, an index into the student's elements",
                  (long long)i, types[i], student.n_types() - 1);
  return DPSIM_OK;
}

int check_positions(int64_t n, const double* positions) {
  for (int64_t k = 0; k < 3 * n; ++k)
    if (!(std::abs(positions[k]) < NeighborList::max_coordinate))
      return fail(DPSIM_INVALID_ARGUMENT,
                  "`positions[%lld]` holds %g A; expected finite numbers below %g A. If this happened during dynamics, "
                  "the forces or the time step are wrong.",
                  (long long)(k / 3), positions[k], NeighborList::max_coordinate);
  return DPSIM_OK;
}

// ---- results --------------------------------------------------------------------------------------------------------
// The sum with its rounding errors summed beside it: the order of the atoms shows in the last digit at most.
double compensated_sum(const double* values, int64_t n) {
  double sum = 0, lost = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double next = sum + values[i];
    lost += std::abs(sum) >= std::abs(values[i]) ? (sum - next) + values[i] : (values[i] - next) + sum;
    sum = next;
  }
  return sum + lost;
}

void write_zeros(int64_t n, int64_t n_forces, dpsim_results& results) {
  if (results.energy) *results.energy = 0;
  if (results.atom_energy) std::fill_n(results.atom_energy, n, 0.0);
  if (results.forces) std::fill_n(results.forces, 3 * n_forces, 0.0);
  if (results.virial) std::fill_n(results.virial, 9, 0.0);
  if (results.atom_virial) std::fill_n(results.atom_virial, 9 * n, 0.0);
  results.below_range = 0;
}

// Runs the kernel on sorted atoms. owner: the centre of each ghost, or null where ghosts keep their forces.
int evaluate(const dpsim_student& student, dpsim_workspace& workspace, const SortedAtoms& atoms, const int32_t* owner,
             dpsim_results& results) {
  const Student& model = student.model;
  const int64_t n = atoms.n_local, n_all = atoms.n_all;
  if (workspace.evaluator_id != student.id) {
    workspace.evaluator.reset();
    if (model.float64)
      workspace.evaluator = std::make_unique<EvaluatorOf<double>>(*workspace.kernels, model, workspace.threads);
    else
      workspace.evaluator = std::make_unique<EvaluatorOf<float>>(*workspace.kernels, model, workspace.threads);
    workspace.evaluator_id = student.id;
  }
  double virial[9];
  double* forces = workspace.forces.resize(4 * size_t(n_all));
  double* energies = workspace.atom_energy.resize(size_t(n));
  double* virials = results.atom_virial ? workspace.atom_virial.resize(9 * size_t(n)) : nullptr;
  StudentOutput out{energies, forces, virial, virials, 0};
  workspace.evaluator->evaluate(atoms.view(), out, workspace.threads);
  if (owner)
    for (int64_t g = 0; g < n_all - n; ++g)
      for (int d = 0; d < 3; ++d) forces[4 * size_t(owner[g]) + d] += forces[4 * size_t(n + g) + d];
  const int64_t n_forces = owner ? n : n_all;

  int64_t wrong = -1;  // an atom whose result is not a number
  for (int64_t k = 0; k < n && wrong < 0; ++k)
    if (!std::isfinite(energies[k])) wrong = k;
  for (int64_t k = 0; k < n_forces && wrong < 0; ++k)
    if (!std::isfinite(forces[4 * k] + forces[4 * k + 1] + forces[4 * k + 2])) wrong = k;
  if (wrong >= 0 || out.below_range > 0) {
    const auto [a, b] = find_overlap(atoms, owner, model.n_types(), kOverlap);
    if (a >= 0)
      return fail(DPSIM_INVALID_ARGUMENT,
                  "overlapping atoms: %lld and %lld (or a periodic image) are less than %g A apart; expected atoms at "
                  "places of their own. Correct `positions` or `cell`.",
                  (long long)a, (long long)b, kOverlap);
  }
  if (wrong >= 0)
    return fail(DPSIM_INVALID_ARGUMENT,
                "the energy or force of atom %lld is not finite: its surroundings are far outside of what the student "
                "knows. Check `positions` around it; during dynamics, the time step.",
                (long long)(wrong < n ? atoms.order[wrong] : wrong));

  if (results.energy) *results.energy = compensated_sum(energies, n);
  if (results.virial) std::copy_n(virial, 9, results.virial);
  for (int64_t k = 0; k < n_forces && results.forces; ++k)
    std::copy_n(forces + 4 * k, 3, results.forces + 3 * (k < n ? int64_t(atoms.order[k]) : k));
  for (int64_t k = 0; k < n && results.atom_energy; ++k) results.atom_energy[atoms.order[k]] = energies[k];
  for (int64_t k = 0; k < n && virials; ++k)
    std::copy_n(virials + 9 * k, 9, results.atom_virial + 9 * size_t(atoms.order[k]));
  results.below_range = out.below_range;
  return DPSIM_OK;
}

}  // namespace

#ifndef DPSIM_WITH_CUDA
int cuda_workspace_create(int, CudaWorkspace**) {
  return fail(DPSIM_UNSUPPORTED, "this library was built without CUDA kernels (cmake -DDPSIM_CUDA=ON)");
}
// Never called: there is no workspace to call them with.
int cuda_student_compute(const Student&, uint64_t, CudaWorkspace&, int64_t, const int32_t*, const double*,
                         const double*, const int32_t*, double, dpsim_results*) {
  return DPSIM_UNSUPPORTED;
}
int cuda_student_compute_neighbors(const Student&, uint64_t, CudaWorkspace&, int64_t, int64_t, const int32_t*,
                                   const double*, const int64_t*, const int32_t*, int, int32_t, dpsim_results*) {
  return DPSIM_UNSUPPORTED;
}
void cuda_workspace_free(CudaWorkspace*) {}
int64_t cuda_workspace_bytes(const CudaWorkspace*) { return 0; }
#endif

}  // namespace dpsim

using namespace dpsim;

// ---- students -------------------------------------------------------------------------------------------------------
int dpsim_student_open(const char* path, int precision, dpsim_student** student) {
  return open_student(precision, student, [&] {
    if (!path) throw StudentError("`path` is NULL; expected the path of a student. Pass it.");
    return read_student(path, precision);
  });
}

int dpsim_student_from_memory(const void* file, int64_t size, int precision, dpsim_student** student) {
  return open_student(precision, student, [&] {
    if (!file || size < 0) throw StudentError("`file, size` are NULL or negative; expected the bytes of a student.");
    return parse_student("file", file, size_t(size), precision);
  });
}

void dpsim_student_close(dpsim_student* student) { delete student; }

int dpsim_student_info(const dpsim_student* student, dpsim_student_info_t* info) {
  if (!student || !info) return fail_null(student ? "info" : "student");
  const Student& model = student->model;
  *info = {model.n_types(), model.float64 ? 64 : 32, model.rcut, model.r_min};
  return DPSIM_OK;
}

const char* dpsim_student_type_name(const dpsim_student* student, int type) {
  return student && type >= 0 && type < student->model.n_types() ? student->model.type_map[type].c_str() : nullptr;
}

// ---- workspaces -----------------------------------------------------------------------------------------------------
int dpsim_workspace_create(const dpsim_execution* execution, dpsim_workspace** workspace) {
  if (!workspace) return fail_null("workspace");
  *workspace = nullptr;
  return guarded([&]() -> int {
    const Kernels* kernels = select_kernels(execution);
    if (!kernels) return DPSIM_UNSUPPORTED;
    auto made = std::make_unique<dpsim_workspace>();
    made->kernels = kernels;
    made->threads = execution ? std::clamp(int(execution->threads), 1, kMaxThreads) : 1;
    *workspace = made.release();
    return DPSIM_OK;
  });
}

int dpsim_workspace_create_cuda(int device, dpsim_workspace** workspace) {
  if (!workspace) return fail_null("workspace");
  *workspace = nullptr;
  return guarded([&]() -> int {
    auto made = std::make_unique<dpsim_workspace>();
    if (const int status = cuda_workspace_create(device, &made->cuda)) return status;
    *workspace = made.release();
    return DPSIM_OK;
  });
}

void dpsim_workspace_free(dpsim_workspace* workspace) { delete workspace; }

int64_t dpsim_workspace_bytes(const dpsim_workspace* workspace) {
  if (!workspace) return 0;
  const dpsim_workspace& w = *workspace;
  if (w.cuda) return cuda_workspace_bytes(w.cuda);
  return w.list.bytes() + w.engine_list.atoms.bytes() + (w.evaluator ? w.evaluator->bytes() : 0) +
         int64_t(w.forces.bytes() + w.atom_energy.bytes() + w.atom_virial.bytes());
}

// ---- computing ------------------------------------------------------------------------------------------------------
int dpsim_student_compute(const dpsim_student* student, dpsim_workspace* workspace, int64_t n, const int32_t* types,
                          const double* positions, const double* cell, const int32_t* pbc, double skin,
                          dpsim_results* results) {
  if (!student || !workspace || !results)
    return fail_null(!student ? "student" : !workspace ? "workspace" : "results");
  if (n < 0 || n > NeighborList::max_atoms)
    return fail(DPSIM_INVALID_ARGUMENT, "`n` is %lld; expected 0 to %lld atoms", (long long)n,
                (long long)NeighborList::max_atoms);
  if (!pbc || (n > 0 && (!types || !positions))) return fail_null(!pbc ? "pbc" : !types ? "types" : "positions");
  if (!(skin >= 0 && skin <= kMaxSkin))
    return fail(DPSIM_INVALID_ARGUMENT, "`skin` is %g; expected 0 to %g A", skin, kMaxSkin);
  Configuration configuration{n, types, positions, cell, {}};
  for (int k = 0; k < 3; ++k) {
    if (pbc[k] != 0 && pbc[k] != 1)
      return fail(DPSIM_INVALID_ARGUMENT, "`pbc[%d]` is %d; expected 0 or 1", k, pbc[k]);
    configuration.periodic[k] = pbc[k];
    if (pbc[k] && !cell) return fail_null("cell");
  }
  return guarded_student([&]() -> int {
    if (const int status = check_types(student->model, n, types)) return status;
    if (const int status = check_positions(n, positions)) return status;
    workspace->engine.id = 0;  // an engine's list does not outlive a call with our own
    if (workspace->cuda) {
      Lattice(cell, configuration.periodic);
      return cuda_student_compute(student->model, student->id, *workspace->cuda, n, types, positions, cell, pbc, skin,
                                  results);
    }
    NeighborList& list = workspace->list;
    list.update(configuration, student->model, student->id, skin, workspace->threads);
    results->n_rebuilds = list.n_rebuilds;
    if (n == 0) {
      write_zeros(0, 0, *results);
      return DPSIM_OK;
    }
    return evaluate(*student, *workspace, list.atoms, list.owner.data(), *results);
  });
}

int dpsim_student_compute_neighbors(const dpsim_student* student, dpsim_workspace* workspace, int64_t n_local,
                                    int64_t n_all, const int32_t* types, const double* positions,
                                    const int64_t* offsets, const int32_t* neighbors, int list_changed,
                                    int32_t first_type, dpsim_results* results) {
  if (!student || !workspace || !results)
    return fail_null(!student ? "student" : !workspace ? "workspace" : "results");
  if (n_local < 0 || n_all < n_local || n_all > NeighborList::max_atoms)
    return fail(DPSIM_INVALID_ARGUMENT, "`n_local, n_all` are %lld, %lld; expected 0 <= n_local <= n_all <= %lld",
                (long long)n_local, (long long)n_all, (long long)NeighborList::max_atoms);
  if (n_all > 0 && (!types || !positions)) return fail_null(!types ? "types" : "positions");
  if (n_local > 0 && list_changed && !offsets) return fail_null("offsets");
  return guarded_student([&]() -> int {
    auto& engine = workspace->engine;
    if (list_changed) {
      engine.id = 0;
      if (const int status = check_types(student->model, n_all, types)) return status;
      if (const int status = check_types(student->model, 1, &first_type)) return status;
      check_engine_list(n_local, n_all, offsets, neighbors);
    } else if (engine.id != student->id || engine.n_local != n_local || engine.n_all != n_all) {
      return fail(DPSIM_INVALID_ARGUMENT,
                  "`list_changed` is 0, but the previous call with this workspace was not for this student and these "
                  "%lld of %lld atoms; expected 1. Pass the list.",
                  (long long)n_local, (long long)n_all);
    }
    if (const int status = check_positions(n_all, positions)) return status;
    if (workspace->cuda) {
      if (const int status =
              cuda_student_compute_neighbors(student->model, student->id, *workspace->cuda, n_local, n_all, types,
                                             positions, offsets, neighbors, list_changed, first_type, results))
        return status;
      engine = {student->id, n_local, n_all};
      return DPSIM_OK;
    }
    EngineList& list = workspace->engine_list;
    if (list_changed) {
      list.set(n_local, n_all, types, offsets, neighbors, first_type, student->model);
      engine = {student->id, n_local, n_all};
    }
    results->n_rebuilds = workspace->list.n_rebuilds;
    if (n_local == 0) {
      write_zeros(0, n_all, *results);
      return DPSIM_OK;
    }
    list.place(positions);
    return evaluate(*student, *workspace, list.atoms, nullptr, *results);
  });
}
