// Steps between a C entry and a kernel: the named device is checked, and a launch that fails is reported by the status of the same call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/status.h"

namespace adabm {

// Throws where a CUDA call failed; the message names the call.
void check_cuda(cudaError_t error, const char* what);

// Makes a device current for one call and restores the device of the caller afterwards. Throws where there is no such device, or no kernel
// for it.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;

  int compute_major() const { return compute_major_; }
  // Throws unless the pointer is null or points into memory that the device can reach.
  void check_pointer(const void* pointer, const char* name) const;

 private:
  int device_, before_, compute_major_ = 0;
};

// Launches a kernel without waiting for it. Parameters are passed by value.
template <class Parameters>
void launch(void (*kernel)(Parameters), const char* name, dim3 grid, dim3 block, uint32_t shared_bytes, void* stream, const Parameters& parameters) {
  constexpr uint32_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking)
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)), name);
#if defined(__CUDACC__)
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, shared_bytes, static_cast<cudaStream_t>(stream)), name);
#else
  check_cuda(cuda_host::launch(kernel, grid, block, shared_bytes, stream, parameters), name);
#endif
}

}  // namespace adabm
