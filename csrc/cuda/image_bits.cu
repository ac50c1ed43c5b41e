// Finds the measure of each image and the bits of every layer that follow from it, without the host: two launches, sums in a fixed order.
#include <cmath>

#include "common/status.h"
#include "cuda/codes.cuh"
#include "cuda/launch.cuh"

namespace adabm {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocks = ADABM_MEASURE_BYTES / sizeof(double);  // blocks for each image

ADABM_DEVICE float luma(const adabm_image_bits_args& a, const float* image, int row, int column) {
  row = row < 0 ? 0 : row >= a.height ? a.height - 1 : row;
  column = column < 0 ? 0 : column >= a.width ? a.width - 1 : column;
  const float* at = image + row * a.stride_h + column * a.stride_w;
  const float red = static_cast<float>(0.299 / 255) * ptx::load_constant(at);
  const float green = static_cast<float>(0.587 / 255) * ptx::load_constant(at + a.stride_c);
  const float blue = static_cast<float>(0.114 / 255) * ptx::load_constant(at + 2 * a.stride_c);
  return red + green + blue;
}

// workspace[image][block] gets the sum of |gradient| of both directions over the share of the block in the pixels. Grid: [kBlocks][images].
__global__ void __launch_bounds__(kThreads) measure(const __grid_constant__ adabm_image_bits_args a) {
  const int image = blockIdx.y, pixels = a.height * a.width;
  const float* x = a.x + image * a.stride_n;
  double sum = 0;
  for (int pixel = blockIdx.x * kThreads + threadIdx.x; pixel < pixels; pixel += kBlocks * kThreads) {
    const int row = pixel / a.width, column = pixel % a.width;
    float l[3][3];
#pragma unroll
    for (int i = 0; i < 3; i++)
#pragma unroll
      for (int j = 0; j < 3; j++) l[i][j] = luma(a, x, row + i - 1, column + j - 1);
    const float across = (l[0][2] - l[0][0]) + 2 * (l[1][2] - l[1][0]) + (l[2][2] - l[2][0]);
    const float down = (l[2][0] - l[0][0]) + 2 * (l[2][1] - l[0][1]) + (l[2][2] - l[0][2]);
    sum += static_cast<double>(fabsf(across)) + static_cast<double>(fabsf(down));
  }
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) sum += ptx::shuffle_down(sum, delta);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) ptx::store_shared(ptx::shared_base() + warp * 8, sum);
  ptx::sync_block();
  if (threadIdx.x) return;
  for (int w = 1; w < kWarps; w++) sum += ptx::load_shared<double>(ptx::shared_base() + w * 8);
  ptx::store_global(static_cast<double*>(a.workspace) + image * kBlocks + blockIdx.x, sum);
}

// Each thread takes one image.
__global__ void __launch_bounds__(kThreads) decide(const __grid_constant__ adabm_image_bits_args a) {
  const int image = blockIdx.x * kThreads + threadIdx.x;
  if (image >= a.batch) return;
  double sum = 0;
  for (int i = 0; i < kBlocks; i++) sum += ptx::load_global(static_cast<const double*>(a.workspace) + image * kBlocks + i);
  const float measure = static_cast<float>(sum / (2.0 * a.height * a.width) / 8 * 1000);
  if (a.measure) ptx::store_global(a.measure + image, measure);
  if (!a.bits) return;
  const int offset = (measure > ptx::load_constant(a.upper)) - (measure < ptx::load_constant(a.lower));
  for (int layer = 0; layer < a.layers; layer++) {
    const int b = ptx::load_constant(a.rules + 2 * layer) + ptx::load_constant(a.rules + 2 * layer + 1) * offset;
    ptx::store_global(a.bits + static_cast<int64_t>(layer) * a.batch + image, b < ADABM_MIN_BITS ? ADABM_MIN_BITS : b > ADABM_MAX_BITS ? ADABM_MAX_BITS : b);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace adabm

extern "C" adabm_status adabm_image_bits_cuda(const adabm_image_bits_args* args, int32_t device, void* stream) {
  using namespace adabm;
  using namespace adabm::cuda;
  return guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_image_bits_args), "args must be a struct of %zu bytes", sizeof(adabm_image_bits_args));
    const adabm_image_bits_args& a = *args;
    ADABM_REQUIRE(a.batch > 0 && a.height > 0 && a.width > 0, "batch, height and width must be positive, got %d, %d, %d", a.batch, a.height, a.width);
    ADABM_REQUIRE(a.batch <= 65535, "batch must be at most 65535, got %d", a.batch);
    ADABM_REQUIRE(static_cast<int64_t>(a.height) * a.width <= 1 << 30, "an image must have at most 2^30 pixels, got %dx%d", a.height, a.width);
    ADABM_REQUIRE(a.x && a.workspace && reinterpret_cast<uintptr_t>(a.workspace) % 8 == 0, "x and workspace must not be null, and workspace 8-byte aligned");
    ADABM_REQUIRE(a.workspace_bytes >= static_cast<uint64_t>(a.batch) * ADABM_MEASURE_BYTES, "workspace_bytes must be at least %llu for %d images, got %llu",
                  static_cast<unsigned long long>(a.batch) * ADABM_MEASURE_BYTES, a.batch, static_cast<unsigned long long>(a.workspace_bytes));
    ADABM_REQUIRE(a.measure || a.bits, "one of measure and bits must be given");
    ADABM_REQUIRE(!a.bits || (a.layers > 0 && a.rules && a.lower && a.upper), "bits needs layers, rules, lower and upper, got %d layers", a.layers);
    const DeviceScope scope(device);
    scope.check_pointer(a.x, "x"), scope.check_pointer(a.workspace, "workspace");
    launch(measure, "image measure", dim3(kBlocks, a.batch), dim3(kThreads), kWarps * sizeof(double), stream, a);
    launch(decide, "image bits", dim3((a.batch + kThreads - 1) / kThreads), dim3(kThreads), 0, stream, a);
  });
}
