// Stands in for CUDA's header where g++ compiles the kernels: the language's words, the few functions of the CUDA runtime that
// csrc/cuda calls (answers set by the test, see runtime.cpp), and the fiber runtime that the twins in ptx.cuh rest on.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "cuda_host.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#define threadIdx (::cuda_host::current->thread_index)
#define blockIdx (::cuda_host::current->block_index)

typedef struct CUstream_st* cudaStream_t;
typedef int cudaError_t;
enum : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemoryType { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
struct cudaFuncAttributes {
  int numRegs;
};
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major, minor, multiProcessorCount;
};
extern "C" {
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function);
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
}

namespace cuda_host {

// What the pretended driver says to a launch on a stream (driver.cpp).
cudaError_t begin_launch(void* stream, dim3 grid);
// Keeps what a launch was started with, for an interpreter of its machine code, in place of running it; false where nobody wants it.
bool capture(const void* kernel, dim3 grid, dim3 block, uint32_t shared_bytes, const void* parameters, size_t bytes);

// Runs the kernel to its end. What the detectors find is a cudaErrorLaunchFailure; adabm_host_error() has the sentence.
template <class Parameters>
cudaError_t launch(void (*kernel)(Parameters), dim3 grid, dim3 block, uint32_t shared_bytes, void* stream, const Parameters& parameters) {
  if (const cudaError_t error = begin_launch(stream, grid)) return error;
  if (capture(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, &parameters, sizeof parameters)) return cudaSuccess;
  struct Call {
    void (*kernel)(Parameters);
    const Parameters& parameters;
  } call = {kernel, parameters};
  const Index3 g = {grid.x, grid.y, grid.z}, b = {block.x, block.y, block.z};
  return run_grid(g, b, shared_bytes, &call, [](void* at) {
    const Call& c = *static_cast<Call*>(at);
    c.kernel(c.parameters);
  });
}

}  // namespace cuda_host
