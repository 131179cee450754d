// Atoms as the kernels want them (AtomsView): sorted by type, then in space, with explicit images of periodic atoms as
// ghosts and the neighbours of each centre grouped by type. Two sources: our own search, or an engine's list.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "model.h"

namespace dpsim {

// Atoms, a cell or a list that nothing can be computed for; what() is the message for the caller.
struct AtomsError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An array that keeps its memory and leaves new numbers unset.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // The contents are lost when it has to grow; an eighth is added so that a slow drift does not copy each time.
  T* resize(size_t n) {
    if (n > capacity_) {
      std::free(data_);
      data_ = nullptr;
      capacity_ = 0;
      const size_t wanted = n + n / 8;
      if (wanted > SIZE_MAX / sizeof(T) || !(data_ = static_cast<T*>(std::malloc(wanted * sizeof(T)))))
        throw std::bad_alloc();
      capacity_ = wanted;
    }
    size_ = n;
    return data_;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  size_t size() const { return size_; }
  size_t bytes() const { return capacity_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
};

// One configuration as the caller has it; see dpsim_student_compute.
struct Configuration {
  int64_t n;
  const int32_t* types;
  const double* positions;
  const double* cell;
  bool periodic[3];
};

struct SortedAtoms {
  int64_t n_local = 0, n_all = 0;
  Buffer<int32_t> order;  // (n_local,): the caller's index of each centre
  Buffer<int32_t> types;  // (n_all,)
  Buffer<double> xyz;     // (n_all, 4)
  std::vector<int64_t> type_start;
  Buffer<int64_t> offsets;
  Buffer<int32_t> neighbors;
  int32_t first_type = 0;

  AtomsView view() const {
    return {n_local,         n_all,        type_start.data(), types.data(), xyz.data(), offsets.data(),
            neighbors.data(), first_type};
  }
  int64_t bytes() const;
};

// Lattice vectors h, with unit vectors orthogonal to the others in open directions, and their inverse.
struct Lattice {
  double h[3][3], inverse[3][3];
  // Throws AtomsError where periodic vectors are not finite, too long, or do not span space.
  Lattice(const double* cell, const bool* periodic);
  Lattice() = default;
};

// The Verlet list: pairs within cutoff + skin, kept until one could have come within the cutoff unseen.
//
// With x0, h0 the positions and cell when it was built and x, h now, let A = h0^-1 h carry the old cell into the new
// one. Every pair now within the cutoff is listed if (cutoff + 2 u) / sigma_min(A) <= cutoff + skin, where
// u = max_i |x_i - n_i h - x0_i A - t| for any translation t and any lattice vectors n_i h, by which an engine may
// have wrapped atoms: |d0| <= |d0 A| / sigma_min(A), and lattice vectors are carried into lattice vectors.
//
// The result does not depend on the number of threads. Memory: 4 bytes per pair and about 150 per atom and ghost.
class NeighborList {
 public:
  // Brings `atoms` up to date with the configuration. `student_id` stands for n_types, pair_excluded and cutoff.
  // Positions have to be finite and below max_coordinate, atoms at most max_atoms. Throws AtomsError, std::bad_alloc.
  void update(const Configuration& configuration, const Student& student, uint64_t student_id, double skin,
              int threads);

  SortedAtoms atoms;
  Buffer<int32_t> owner;  // (n_all - n_local,): the centre that each ghost is an image of
  int64_t n_rebuilds = 0;
  int64_t bytes() const;

  static constexpr double max_coordinate = 1e8;         // A; beyond it float64 keeps less than 1e-8 A
  static constexpr int64_t max_atoms = INT32_MAX - 64;  // with ghosts: indices are 32-bit

 private:
  bool still_valid(const Configuration& configuration, double reach, int threads);
  void build(const Configuration& configuration, const Student& student, double reach, int threads);
  void place_ghosts(int threads);

  uint64_t student_id_ = 0;  // 0: no list
  double cutoff_ = 0, skin_ = 0;
  bool periodic_[3];
  Lattice built_, now_;    // of the cell when the list was built, and of the present one
  Buffer<double> x0_;      // (n_local, 3) positions when the list was built
  Buffer<int32_t> shift_;  // (n_all - n_local, 3): ghost = centre + shift . h
};

// Throws AtomsError unless every index in an engine's list is that of another atom.
void check_engine_list(int64_t n_local, int64_t n_all, const int64_t* offsets, const int32_t* neighbors);

// An engine's own ghosts and list, put into our order. Its pairs are taken as they are, but for pair_exclude_types.
class EngineList {
 public:
  // Takes over a new list, which has to be right.
  void set(int64_t n_local, int64_t n_all, const int32_t* types, const int64_t* offsets, const int32_t* neighbors,
           int32_t first_type, const Student& student);
  void place(const double* positions);  // of the atoms of that list

  SortedAtoms atoms;
};

// The caller's indices of two neighbours nearer than `distance` A, or {-1, -1}. owner: the
// centre of each ghost; null where ghosts are the caller's own.
std::pair<int64_t, int64_t> find_overlap(const SortedAtoms& atoms, const int32_t* owner, int n_types, double distance);

}  // namespace dpsim
