// Sums of rows that many threads add to, in a fixed order. CPU, any instruction set (see isa.h).
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

namespace dpsim {
namespace DPSIM_ISA {

// result (n_rows, width)[index[m]] += row m. Each thread adds to rows of its own, those in the range of index that it
// meets; they are added up in the order of the threads. One thread alone adds to the result.
template <typename T>
class ScatterSums {
 public:
  ScatterSums(const int64_t* index, int64_t n_rows, int width, T* result, int parts)
      : index_(index), n_rows_(n_rows), width_(width), result_(result), parts_(std::max(1, parts)) {}

  // Where a thread adds the rows of its edges first .. last, as if row 0 were there; NULL if no sums are wanted.
  T* rows(int part, int64_t first, int64_t last) {
    if (!result_) return nullptr;
    if (parts_.size() == 1) {
      std::fill(result_, result_ + n_rows_ * width_, T(0));
      return result_;
    }
    if (first == last) return nullptr;
    Part& own = parts_[part];
    const auto range = std::minmax_element(index_ + first, index_ + last);
    own.begin = *range.first, own.end = *range.second + 1;
    own.sum.zeros(size_t(own.end - own.begin) * width_);
    return own.sum.data() - own.begin * width_;
  }

  void add_up() {
    const int threads = int(parts_.size());
    if (!result_ || threads == 1) return;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (int64_t row = 0; row < n_rows_; ++row) {
      T* to = result_ + row * width_;
      std::fill(to, to + width_, T(0));
      for (const Part& part : parts_) {
        if (row < part.begin || row >= part.end) continue;
        const T* from = part.sum.data() + (row - part.begin) * width_;
        for (int64_t c = 0; c < width_; ++c) to[c] += from[c];
      }
    }
  }

 private:
  struct Part {
    Buffer<T> sum;
    int64_t begin = 0, end = 0;
  };
  const int64_t* index_;
  int64_t n_rows_, width_;
  T* result_;
  std::vector<Part> parts_;
};

}  // namespace DPSIM_ISA
}  // namespace dpsim
