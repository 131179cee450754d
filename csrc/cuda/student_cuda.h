// What the C interface of students asks of the CUDA part. Arguments arrive checked (sizes, NULL, types in range, finite
// positions, a cell that spans space; neighbour indices where the list changed); arrays are the caller's, on the host.
// Every function but the last two returns a dpsim_status with dpsim_last_error set. A library without CUDA has none.
#pragma once

#include <cstdint>

#include "../student/model.h"
#include "dpsim.h"

namespace dpsim {

struct CudaWorkspace;  // buffers on one device, the neighbour list, and a copy of the student used last

int cuda_workspace_create(int device, CudaWorkspace** workspace);
// Arguments as for dpsim_student_compute and dpsim_student_compute_neighbors. `student_id` is never used twice in a
// process: cache by it, not by the address.
int cuda_student_compute(const Student& student, uint64_t student_id, CudaWorkspace& workspace, int64_t n,
                         const int32_t* types, const double* positions, const double* cell, const int32_t* pbc,
                         double skin, dpsim_results* results);
int cuda_student_compute_neighbors(const Student& student, uint64_t student_id, CudaWorkspace& workspace,
                                   int64_t n_local, int64_t n_all, const int32_t* types, const double* positions,
                                   const int64_t* offsets, const int32_t* neighbors, int list_changed,
                                   int32_t first_type, dpsim_results* results);
void cuda_workspace_free(CudaWorkspace* workspace);  // NULL is allowed
int64_t cuda_workspace_bytes(const CudaWorkspace* workspace);

}  // namespace dpsim
