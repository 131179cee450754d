// The little that the CPU part of the library asks of the CUDA part.
#pragma once

namespace dpsim {

int cuda_device_count();  // 0 without a driver or a device

}  // namespace dpsim
