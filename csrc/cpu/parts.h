// Edges sorted by centre, those of centre i being offsets[i] .. offsets[i + 1], divided among threads: a thread owns
// whole centres, with about the same number of edges each. CPU, any instruction set (see isa.h).
#pragma once

#include <algorithm>
#include <cstdint>

namespace dpsim {
namespace DPSIM_ISA {

inline int64_t first_atom(int64_t n_atoms, const int64_t* offsets, int part, int parts) {
  const int64_t edges = offsets[n_atoms] - offsets[0];
  const int64_t* p = std::lower_bound(offsets, offsets + n_atoms, offsets[0] + edges * part / parts);
  return part == parts ? n_atoms : p - offsets;
}

// Calls visit(r, edge, atom) for the rows of one block; `atom` is carried from block to block.
template <typename F>
inline void for_rows(int64_t first, int64_t rows, const int64_t* offsets, int64_t& atom, F visit) {
  for (int64_t r = 0; r < rows; ++r) {
    while (first + r >= offsets[atom + 1]) ++atom;
    visit(int(r), first + r, atom);
  }
}

// Runs body(part, first_atom, last_atom) for every part, in parallel.
template <typename F>
inline void for_parts(int64_t n_atoms, const int64_t* offsets, int threads, F body) {
  const int parts = std::max(1, threads);
#ifdef _OPENMP
#pragma omp parallel for num_threads(parts) if (parts > 1) schedule(static, 1)
#endif
  for (int part = 0; part < parts; ++part)
    body(part, first_atom(n_atoms, offsets, part, parts), first_atom(n_atoms, offsets, part + 1, parts));
}

}  // namespace DPSIM_ISA
}  // namespace dpsim
