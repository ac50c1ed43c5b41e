// Answers of the CUDA runtime where there is no card, as the test sets them: one pretended device by default.
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace {

// A launch as adabm_host_captured hands it out.
struct Captured {
  uint64_t kernel;  // address of its function in this library
  uint32_t grid[3], threads, shared_bytes, parameter_bytes;
  uint8_t parameters[4096];  // the most that CUDA passed until 12.1
};
std::vector<Captured> captured;
bool capturing = false;

struct Answers {
  int devices = 1, major = 8, minor = 0;
  int count_error = 0, image_error = 0, launch_error = 0;
  int shared_limit = 163 << 10, multiprocessors = 1;
  int current = 0;
  int last_error = 0;
  void* last_stream = nullptr;
  unsigned last_blocks = 0;  // along x
  std::map<uintptr_t, int> owner;  // pointers on another device (-1: of the host)
} answers;

cudaError_t answer(int error) {
  if (error) answers.last_error = error;
  return error;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// name: a field of Answers; see tests/helpers/cuda_library.py.
EXPORT int adabm_host_answer(const char* name, int value) {
  const std::map<std::string, int*> fields = {
      {"devices", &answers.devices},         {"major", &answers.major},
      {"minor", &answers.minor},             {"count_error", &answers.count_error},
      {"image_error", &answers.image_error}, {"launch_error", &answers.launch_error},
      {"shared_limit", &answers.shared_limit}, {"current", &answers.current},
      {"multiprocessors", &answers.multiprocessors},
  };
  const auto found = fields.find(name);
  if (found == fields.end()) return 1;
  *found->second = value;
  return 0;
}
EXPORT int adabm_host_current_device() { return answers.current; }
EXPORT int adabm_host_sticky_error() { return answers.last_error; }
EXPORT void* adabm_host_last_stream() { return answers.last_stream; }
EXPORT unsigned adabm_host_last_blocks() { return answers.last_blocks; }
EXPORT void adabm_host_reset() { answers = Answers(); }
// Whether launches are kept from here on in place of being run; those that were kept so far are forgotten.
EXPORT void adabm_host_capture(int on) { capturing = on, captured.clear(); }
// The launch of this number, and how many there are.
EXPORT uint64_t adabm_host_captured(uint64_t number, Captured* launch) {
  if (number < captured.size()) *launch = captured[number];
  return captured.size();
}
EXPORT void adabm_host_owner(const void* pointer, int device) { answers.owner[reinterpret_cast<uintptr_t>(pointer)] = device; }

namespace cuda_host {
cudaError_t begin_launch(void* stream, dim3 grid) {
  answers.last_stream = stream, answers.last_blocks = grid.x;
  return answer(answers.launch_error);
}

bool capture(const void* kernel, dim3 grid, dim3 block, uint32_t shared_bytes, const void* parameters, size_t bytes) {
  if (!capturing) return false;
  Captured launch = {reinterpret_cast<uint64_t>(kernel), {grid.x, grid.y, grid.z}, block.x * block.y * block.z, shared_bytes, static_cast<uint32_t>(bytes), {}};
  if (bytes > sizeof launch.parameters) fail("a launch with %zu bytes of parameters, of which at most %zu are kept", bytes, sizeof launch.parameters);
  std::memcpy(launch.parameters, parameters, bytes);
  captured.push_back(launch);
  return true;
}
}  // namespace cuda_host

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = answers.count_error ? 0 : answers.devices;
  return answer(answers.count_error);
}
cudaError_t cudaGetDevice(int* device) {
  *device = answers.current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  answers.current = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  std::snprintf(properties->name, sizeof properties->name, "host runtime");
  properties->major = answers.major, properties->minor = answers.minor, properties->multiProcessorCount = answers.multiprocessors;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = answers.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = answers.minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = answers.shared_limit; break;
    case cudaDevAttrMultiProcessorCount: *value = answers.multiprocessors; break;
  }
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const auto found = answers.owner.find(reinterpret_cast<uintptr_t>(pointer));
  const int device = found == answers.owner.end() ? answers.current : found->second;
  attributes->type = device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice;
  attributes->device = device;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return answer(answers.image_error); }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return answer(value <= answers.shared_limit ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaGetLastError() {
  const int error = answers.last_error;
  answers.last_error = 0;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return adabm_host_error();
    default: return "invalid argument";
  }
}

}  // extern "C"
