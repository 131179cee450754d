// Students on a GPU: the host's side. Buffers, the neighbour list, the step as a CUDA graph, results.
//
// A step is queued without a word from the device: positions go up, the graph runs, one buffer with flags and results
// comes back, and the host waits once. If the list was too old for the new positions (found on the device, which then
// computes nothing more), or did not fit, the host builds it anew with more room and runs the step again.
// Centres are worked on in chunks, so that only positions, results and the list grow with the number of atoms.
#include <cmath>
#include <cstring>

#include "student_cuda.h"
#include "student_step.h"

namespace dpsim {
namespace cuda {
namespace {

// ---- calls ----------------------------------------------------------------------------------------------------------

template <typename T>
const DeviceStudent<T>& use_student(Workspace& w, const Student& student, uint64_t student_id) {
  if (w.student_id != student_id) {
    w.student_id = ~uint64_t(0);
    w.forget();
    w.student32.reset();
    w.student64.reset();
    student_of<T>(w) = std::make_unique<DeviceStudent<T>>(student, w.ledger, w.stream);
    w.student_id = student_id;
  }
  return *student_of<T>(w);
}

// Sizes that follow from how many centres of each type there are, n_targets atoms in all.
template <typename T>
void set_atoms(Workspace& w, const DeviceStudent<T>& s, int64_t n, int64_t n_targets, const int32_t* types) {
  w.drop_graph();
  w.list = List::none;
  w.n = n;
  w.n_targets = n_targets;
  w.image_capacity = 0;
  w.types.assign(types, types + n_targets);
  w.type_start.assign(s.n_types + 1, 0);
  for (int64_t i = 0; i < n; ++i) ++w.type_start[types[i] + 1];
  for (int t = 0; t < s.n_types; ++t) w.type_start[t + 1] += w.type_start[t];
  w.upload.reserve(int64_t(kFrameBytes) + 3 * n_targets * int64_t(sizeof(double)));
  w.results.reserve(int64_t(kFrameBytes) + (10 * n + 3 * n_targets) * int64_t(sizeof(double)));
  w.reference.reserve(3 * n_targets);
  w.fixed.reserve(3 * n_targets);
  w.partial.reserve(int64_t(blocks(n_targets, kSumTile)) * kSums);
  w.caller_types.reserve(n);
  copy(w, w.caller_types.data(), types, size_t(n) * sizeof(int), cudaMemcpyHostToDevice);
  w.chunk = 0;  // made with the list
}

// Runs the step and brings back the header and, where they are small, all arrays (`bytes` of results) with it.
template <typename T>
Header step(Workspace& w, const DeviceStudent<T>& s, size_t bytes) {
  run_step(w, s);
  Header header;
  copy(w, w.from_device.data(), w.results.data(), bytes <= size_t(kPinned) ? bytes : sizeof header,
       cudaMemcpyDeviceToHost);
  check(cudaStreamSynchronize(w.stream));
  std::memcpy(&header, w.from_device.data(), sizeof header);
  if (header.overflow || header.stale) return header;
  if (header.lost) {
    if (w.list == List::own) w.list = List::none;
    throw Failure{fail(DPSIM_INVALID_ARGUMENT, "`positions` are not finite, or 1e9 cells away; expected real numbers")};
  }
  if (header.full)
    throw Failure{fail(DPSIM_UNSUPPORTED, "an atom has more neighbours than the `sel` of this imported model; the GPU "
                       "does not choose among them. Use the CPU.")};
  if (header.overlap)
    throw Failure{fail(DPSIM_INVALID_ARGUMENT, "overlapping atoms: two (or a periodic image) are less than %g A apart; "
                       "expected atoms at places of their own. Correct `positions` or `cell`.", kOverlap)};
  if (header.unbounded || !std::isfinite(header.energy))
    throw Failure{fail(DPSIM_INVALID_ARGUMENT, "the energy is not finite, or a force between two atoms is beyond %g "
                       "eV/A: they are far outside of what the student knows. Check `positions`; during dynamics, the "
                       "time step.", kForceBound)};
  return header;
}

// Up to where results are wanted.
size_t wanted_bytes(const Workspace& w, const dpsim_results& results) {
  int64_t numbers = 0;
  if (results.atom_energy) numbers = w.n;
  if (results.forces) numbers = w.n + 3 * w.n_targets;
  if (results.atom_virial) numbers = w.n + 3 * w.n_targets + 9 * w.n;
  return kFrameBytes + size_t(numbers) * sizeof(double);
}

void deliver(Workspace& w, const Header& header, size_t bytes, dpsim_results* results) {
  const bool here = bytes <= size_t(kPinned);
  const auto take = [&](double* to, const double* from, int64_t n) {
    if (!to) return;
    if (here)
      std::memcpy(to, w.from_device.data() + (reinterpret_cast<const char*>(from) - w.results.data()),
                  size_t(n) * sizeof(double));
    else
      copy(w, to, from, size_t(n) * sizeof(double), cudaMemcpyDeviceToHost);
  };
  take(results->atom_energy, w.atom_energy(), w.n);
  take(results->forces, w.forces(), 3 * w.n_targets);
  take(results->atom_virial, w.atom_virial(), 9 * w.n);
  if (!here) check(cudaStreamSynchronize(w.stream));
  if (results->energy) *results->energy = header.energy;
  if (results->virial) std::copy(header.virial, header.virial + 9, results->virial);
  results->below_range = int64_t(header.below_range);
  results->n_rebuilds = w.n_rebuilds;
}

// Nothing to compute: every result is zero.
void deliver_nothing(const Workspace& w, int64_t n_targets, dpsim_results* results) {
  if (results->energy) *results->energy = 0;
  if (results->forces) std::fill_n(results->forces, 3 * n_targets, 0.0);
  if (results->virial) std::fill_n(results->virial, 9, 0.0);
  results->below_range = 0;
  results->n_rebuilds = w.n_rebuilds;
}

void check_count(int64_t n) {
  if (n >= kMostAtoms)
    throw Failure{fail(DPSIM_UNSUPPORTED, "%lld atoms; expected below %lld on one GPU", static_cast<long long>(n),
                       static_cast<long long>(kMostAtoms))};
}

template <typename T>
void compute(Workspace& w, const Student& student, uint64_t student_id, int64_t n, const int32_t* types,
             const double* positions, const double* cell, const int32_t* pbc, double skin, dpsim_results* results) {
  const DeviceStudent<T>& s = use_student<T>(w, student, student_id);
  if (n == 0) return deliver_nothing(w, 0, results);
  check_count(n);
  if (w.n != n || w.n_targets != n || w.list == List::engine || !std::equal(types, types + n, w.types.begin()))
    set_atoms(w, s, n, n, types);
  const int32_t open[3] = {0, 0, 0}, *periodic = pbc && cell ? pbc : open;
  if (skin != w.skin || !std::equal(periodic, periodic + 3, w.pbc)) w.list = List::none;
  w.skin = skin;
  std::copy(periodic, periodic + 3, w.pbc);

  // 1. how far atoms may have moved
  complete_cell(cell, periodic, w.frame.cell);
  w.frame.first_type = types[0];
  double way = -1;
  if (w.list == List::own) {
    change_of(w.reference_cell, w.frame.cell, w.frame.map);
    way = allowed_way(w.frame.map, s.rcut, skin);
    w.frame.threshold2 = way * way;
    if (way < 0)
      w.list = List::none;
    else
      send(w, positions, n);
  }
  // 2. the step, after the list where there is none that fits
  const size_t bytes = wanted_bytes(w, *results);
  for (bool built = false;; built = true) {
    if (w.list != List::own) {
      const double cutoff = s.rcut + skin;
      const Grid grid = make_grid(w.frame.cell, periodic, n, positions, cutoff, s.n_types);
      std::copy(w.frame.cell, w.frame.cell + 9, w.reference_cell);
      change_of(w.reference_cell, w.frame.cell, w.frame.map);
      w.frame.threshold2 = 0.25 * skin * skin;
      send(w, positions, n);
      if (w.capacity == 0) w.capacity = kFirstCapacity;
      reserve_list(w, s.n_types, n + w.image_capacity);
      if (w.chunk == 0) set_chunks(w, s);
      queue_build(w, s.n_types, grid, cutoff);
      w.list = List::own;
    }
    const Header header = step(w, s, bytes);
    if (header.overflow) {  // more room, a little to spare
      w.list = List::none;
      w.drop_graph();
      if (header.n_images > w.image_capacity) w.image_capacity = header.n_images + header.n_images / 8 + 64;
      if (header.longest_row > w.capacity) {
        w.capacity = (header.longest_row + header.longest_row / 16 + 15) / 16 * 16;
        w.chunk = 0;
      }
    } else if (header.stale) {
      if (built) throw Failure{fail(DPSIM_INTERNAL_ERROR, "a neighbour list was too old when it was new")};
      w.list = List::none;
    } else {
      w.n_rebuilds += built || way < 0;
      return deliver(w, header, bytes, results);
    }
  }
}

template <typename T>
void compute_neighbors(Workspace& w, const Student& student, uint64_t student_id, int64_t n_local, int64_t n_all,
                       const int32_t* types, const double* positions, const int64_t* offsets, const int32_t* neighbors,
                       bool list_changed, int32_t first_type, dpsim_results* results) {
  const bool same = w.student_id == student_id && w.list == List::engine && w.n == n_local && w.n_targets == n_all;
  const DeviceStudent<T>& s = use_student<T>(w, student, student_id);
  if (n_local == 0) return deliver_nothing(w, n_all, results);
  check_count(n_all);
  if (!list_changed && !same)
    throw Failure{fail(DPSIM_INVALID_ARGUMENT, "`list_changed` is 0, but the GPU has no list of these atoms; pass 1")};
  w.frame = {};
  w.frame.threshold2 = INFINITY;
  w.frame.first_type = first_type;
  if (list_changed) {
    if (!same || !std::equal(types, types + n_all, w.types.begin())) set_atoms(w, s, n_local, n_all, types);
    const int before = w.capacity;
    queue_take(w, s.n_types, types, offsets, neighbors);
    if (w.chunk == 0 || w.capacity != before) set_chunks(w, s);
    w.list = List::engine;
    ++w.n_rebuilds;
  }
  send(w, positions, n_all);
  const size_t bytes = wanted_bytes(w, *results);
  const Header header = step(w, s, bytes);
  deliver(w, header, bytes, results);
}

// Runs the body on the workspace's device; turns failures into their status. Where the device failed half-way, nothing
// made before is relied on again; a step that the caller's atoms are to blame for leaves it as it was.
template <typename Body>
int on_device(Workspace& w, Body body) {
  return guarded([&]() -> int {
    try {
      const CurrentDevice current(w.device);
      body();
      return DPSIM_OK;
    } catch (const Failure& failure) {
      if (failure.status != DPSIM_INVALID_ARGUMENT && failure.status != DPSIM_UNSUPPORTED) w.forget();
      return failure.status;
    } catch (...) {
      w.forget();
      throw;
    }
  });
}

}  // namespace
}  // namespace cuda

// ---- what the C interface calls -------------------------------------------------------------------------------------

struct CudaWorkspace : cuda::Workspace {
  using cuda::Workspace::Workspace;
};

int cuda_workspace_create(int device, CudaWorkspace** workspace) {
  return guarded([&]() -> int {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    if (count == 0) return fail(DPSIM_UNSUPPORTED, "no CUDA device is usable here; use the CPU, or check the driver");
    if (device < 0 || device >= count)
      return fail(DPSIM_INVALID_ARGUMENT, "`device` is %d; expected 0 to %d", device, count - 1);
    try {
      const cuda::CurrentDevice current(device);
      *workspace = new CudaWorkspace(device);
      return DPSIM_OK;
    } catch (const cuda::Failure& failure) {
      return failure.status;
    }
  });
}

void cuda_workspace_free(CudaWorkspace* workspace) {
  if (!workspace) return;
  int before = 0;
  const bool known = cudaGetDevice(&before) == cudaSuccess;
  cudaSetDevice(workspace->device);
  delete workspace;
  if (known) cudaSetDevice(before);
}

int64_t cuda_workspace_bytes(const CudaWorkspace* workspace) { return workspace->ledger.bytes; }

int cuda_student_compute(const Student& student, uint64_t student_id, CudaWorkspace& workspace, int64_t n,
                         const int32_t* types, const double* positions, const double* cell, const int32_t* pbc,
                         double skin, dpsim_results* results) {
  const auto run = student.float64 ? cuda::compute<double> : cuda::compute<float>;
  return cuda::on_device(workspace, [&] {
    run(workspace, student, student_id, n, types, positions, cell, pbc, skin, results);
  });
}

int cuda_student_compute_neighbors(const Student& student, uint64_t student_id, CudaWorkspace& workspace,
                                   int64_t n_local, int64_t n_all, const int32_t* types, const double* positions,
                                   const int64_t* offsets, const int32_t* neighbors, int list_changed,
                                   int32_t first_type, dpsim_results* results) {
  const auto run = student.float64 ? cuda::compute_neighbors<double> : cuda::compute_neighbors<float>;
  return cuda::on_device(workspace, [&] {
    run(workspace, student, student_id, n_local, n_all, types, positions, offsets, neighbors, list_changed != 0,
        first_type, results);
  });
}

}  // namespace dpsim
