// Energy, forces and virial of a student. CPU, any instruction set: included once per translation unit (see isa.h).
//
// The steps are those of docs/students.md:
//   1. environment, 2. table, 3. contraction, 6. core repulsion, and the way back to 8. forces: student_pair.h
//   4. features, 5. fitting net, and the way back: student_fit.h
// Centres of one type are taken in blocks of at most kBlockVectors vectors. A thread owns a contiguous range of blocks,
// chosen by the work in them, reads positions, list and the packed student, writes the energies (and virials) of its
// centres, and adds forces to an array of its own: those are summed at the end, thread by thread. The result is the
// same from run to run for one number of threads.
#pragma once

#include <vector>

#include "student_fit.h"
#include "student_pair.h"

namespace dpsim {
namespace DPSIM_ISA {

struct StudentBlock {
  int64_t first;
  int count, type;
};

template <typename T>
struct StudentThread {
  Pairs<T> pairs;
  FitBuffers<T> fit;
  Buffer<T> centers;  // a[c, m] of as many centres as there are lanes, centre by centre
  std::vector<double> energies;
  Buffer<double> forces;  // unless the thread writes those of the caller
  Totals totals;

  int64_t bytes() const { return pairs.bytes() + fit.bytes() + centers.bytes() + forces.bytes(); }
};

template <typename T>
struct StudentScratch {
  std::vector<StudentThread<T>> threads;
};

// ---- the plan: which thread does what ------------------------------------------------------------------------------
// Blocks of about equal size, small enough that every thread gets some.
template <typename T>
std::vector<StudentBlock> student_blocks(const PackedStudent<T>& student, const AtomsView& atoms, int threads) {
  constexpr int L = Simd<T>::lanes;
  int64_t vectors = 0;
  for (int t = 0; t < student.n_types; ++t)
    if (!student.atom_excluded[t]) vectors += (atoms.type_start[t + 1] - atoms.type_start[t] + L - 1) / L;
  const int64_t most = threads == 1 ? kBlockVectors : std::clamp<int64_t>(vectors / (3 * threads), 1, kBlockVectors);
  std::vector<StudentBlock> blocks;
  for (int t = 0; t < student.n_types; ++t) {
    if (student.atom_excluded[t]) continue;
    const int64_t start = atoms.type_start[t], n = atoms.type_start[t + 1] - start, n_vectors = (n + L - 1) / L;
    const int64_t count = (n_vectors + most - 1) / most;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t first = n_vectors * k / count * L, last = std::min(n, n_vectors * (k + 1) / count * L);
      blocks.push_back({start + first, int(last - first), t});
    }
  }
  return blocks;
}

// ---- one block -----------------------------------------------------------------------------------------------------
// Rows of channels of each centre of a group <-> rows of centres of the tile they are in.
template <typename T, bool forth>
void turn(const PackedStudent<T>& student, int first_atom, int tile_first, int tile_vectors, T* centers, T* rows) {
  constexpr int L = Simd<T>::lanes;
  const int W = tile_vectors * L;
  rows += student.n_rows * tile_first + (first_atom - tile_first);
  for (const PackedPart<T>& part : student.parts)
    for (int c = 0; c < part.components(); ++c, centers += part.stride)
      for (int m = 0; m < part.channels; m += L) {
        const int valid = std::min(L, part.channels - m);
        T* row = rows + int64_t(part.first_row + c * part.channels + m) * W;
        vec_t<T> x[L];
        if constexpr (forth) {
          for (int k = 0; k < L; ++k) x[k] = load(centers + k * student.center_size + m);
          transpose<T>(x);
          for (int k = 0; k < valid; ++k) store(row + k * W, x[k]);
        } else {
          for (int k = 0; k < L; ++k) x[k] = k < valid ? load(row + k * W) : vec_t<T>{};
          transpose<T>(x);
          for (int k = 0; k < L; ++k) store(centers + k * student.center_size + m, x[k]);
        }
      }
}

template <typename T>
void student_block(const PackedStudent<T>& student, const AtomsView& atoms, const StudentBlock& block,
                   StudentThread<T>& thread, StudentOutput& out) {
  constexpr int L = Simd<T>::lanes;
  const std::vector<Tile> tiles = tiles_of<T>(block.count);
  auto atom_virial = [&](int64_t i) { return out.atom_virial ? out.atom_virial + 9 * i : nullptr; };
  T* centers = thread.centers.data();
  thread.pairs.end = 0;
  double core[kBlockVectors * L] = {};
  for (const Tile& tile : tiles)
    for (int group = tile.first; group < tile.first + tile.vectors * L; group += L) {
      for (int k = 0; k < L; ++k) {
        T* a = centers + k * student.center_size;
        const int64_t i = block.first + group + k;
        if (group + k < block.count)
          core[group + k] = forward_center(student, atoms, i, block.type, group + k, thread.pairs, a, thread.totals,
                                           atom_virial(i));
        else std::memset(a, 0, student.center_size * sizeof(T));
      }
      turn<T, true>(student, group, tile.first, tile.vectors, centers, thread.fit.a.data());
    }
  fit_block(student, block.type, tiles, thread.fit, thread.energies.data());
  for (const Tile& tile : tiles)
    for (int group = tile.first; group < tile.first + tile.vectors * L; group += L) {
      turn<T, false>(student, group, tile.first, tile.vectors, centers, thread.fit.b.data());
      for (int k = 0; k < L && group + k < block.count; ++k) {
        const int64_t i = block.first + group + k;
        backward_center(student, i, block.type, group + k, thread.pairs, centers + k * student.center_size,
                        thread.totals, atom_virial(i));
      }
    }
  for (int k = 0; out.atom_energy && k < block.count; ++k)
    out.atom_energy[block.first + k] = thread.energies[k] + core[k];
}

// ---- the interface -------------------------------------------------------------------------------------------------
template <typename T>
void* student_pack(const Student& student) {
  return new PackedStudent<T>(student);
}
template <typename T>
void student_unpack(void* packed) {
  delete static_cast<PackedStudent<T>*>(packed);
}

template <typename T>
void* student_scratch(const void*, int threads) {
  auto* scratch = new StudentScratch<T>;
  scratch->threads.resize(std::max(1, threads));
  return scratch;
}
template <typename T>
void student_scratch_free(void* scratch) {
  delete static_cast<StudentScratch<T>*>(scratch);
}
template <typename T>
int64_t student_scratch_bytes(const void* scratch) {
  int64_t sum = 0;
  for (const auto& thread : static_cast<const StudentScratch<T>*>(scratch)->threads) sum += thread.bytes();
  return sum;
}

template <typename T>
void student_evaluate(const void* packed, void* scratch_, const AtomsView& atoms, StudentOutput& out, int threads) {
  constexpr int L = Simd<T>::lanes;
  const auto& student = *static_cast<const PackedStudent<T>*>(packed);
  auto& scratch = *static_cast<StudentScratch<T>*>(scratch_);
#ifndef _OPENMP
  threads = 1;
#endif
  // Who does what: ranges of blocks of about equal numbers of listed neighbours plus those that the net is worth
  threads = int(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, atoms.n_local / L)));
  const std::vector<StudentBlock> blocks = student_blocks(student, atoms, threads);
  auto listed = [&](const StudentBlock& b) {
    return atoms.offsets[(b.first + b.count) * student.n_types] - atoms.offsets[b.first * student.n_types];
  };
  constexpr int kNetWorth = 500;  // neighbours
  std::vector<int64_t> work(blocks.size() + 1);
  int64_t most_pairs = 0, most_of_center = 0;
  for (size_t b = 0; b < blocks.size(); ++b) {
    work[b + 1] = work[b] + listed(blocks[b]) + int64_t(kNetWorth) * padded(blocks[b].count, L);
    most_pairs = std::max(most_pairs, listed(blocks[b]) + int64_t(blocks[b].count + 2) * L);
  }
  for (int64_t i = 0; i < atoms.n_local; ++i) {
    const int64_t* offsets = atoms.offsets + i * student.n_types;
    most_of_center = std::max(most_of_center, offsets[student.n_types] - offsets[0]);
  }
  // Memory
  if (scratch.threads.size() < size_t(threads)) scratch.threads.resize(threads);
  for (int k = 0; k < threads; ++k) {
    StudentThread<T>& thread = scratch.threads[k];
    thread.pairs.reserve(student, most_pairs, most_of_center, kBlockVectors * L);
    thread.fit.reserve(student);
    thread.centers.reserve(size_t(student.center_size) * L);
    thread.energies.resize(kBlockVectors * L);
    if (k > 0) thread.forces.reserve(4 * atoms.n_all);
    thread.totals = {k > 0 ? thread.forces.data() : out.forces, {}, 0};
  }
  if (out.atom_energy) std::fill(out.atom_energy, out.atom_energy + atoms.n_local, 0.0);
  if (out.atom_virial) std::fill(out.atom_virial, out.atom_virial + 9 * atoms.n_local, 0.0);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
#ifdef _OPENMP
#pragma omp for schedule(static, 1)
#endif
    for (int k = 0; k < threads; ++k) {
      StudentThread<T>& thread = scratch.threads[k];
      std::memset(thread.totals.forces, 0, 4 * atoms.n_all * sizeof(double));
      auto block_at = [&](int part) {
        return std::lower_bound(work.begin(), work.end(), work.back() * part / threads) - work.begin();
      };
      for (auto b = block_at(k); b < block_at(k + 1); ++b) student_block(student, atoms, blocks[b], thread, out);
    }
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
    for (int64_t i = 0; i < atoms.n_all; ++i)
      for (int k = 1; k < threads; ++k)
        for (int c = 0; c < 3; ++c) out.forces[4 * i + c] += scratch.threads[k].forces[4 * i + c];
  }
  out.below_range = 0;
  for (int c = 0; out.virial && c < 9; ++c) out.virial[c] = 0;
  for (int k = 0; k < threads; ++k) {
    out.below_range += scratch.threads[k].totals.below_range;
    for (int c = 0; out.virial && c < 9; ++c) out.virial[c] += scratch.threads[k].totals.virial[c];
  }
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
