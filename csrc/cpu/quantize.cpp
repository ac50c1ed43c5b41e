// Floats to codes: the input of a network, or a feature map that another library computed.
#include "common/status.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace {

struct Job {
  const adabm_quantize_args& a;
  const adabm::Kernels& kernels;
};

void quantize_task(void* context, int task) {
  const Job& job = *static_cast<const Job*>(context);
  const adabm_quantize_args& a = job.a;
  const int image = task / a.height, row = task % a.height, bits = a.bits[image] - ADABM_MIN_BITS;
  adabm::QuantizeArgs q = {};
  q.x = a.x + image * a.stride_n + row * a.stride_h;
  q.stride_w = a.stride_w, q.stride_c = a.stride_c;
  q.shift = a.shift;
  q.width = a.width, q.channels = a.channels, q.padded_channels = a.y_channels, q.y_stride = a.y_pitch;
  q.scale = a.grid[bits * 2], q.offset = a.grid[bits * 2 + 1];
  q.top = static_cast<float>((1 << a.bits[image]) - 1);
  q.y_q = a.y_q + static_cast<ptrdiff_t>(task) * a.width * a.y_pitch;
  job.kernels.quantize_row(q);
}

}  // namespace

extern "C" adabm_status adabm_quantize_cpu(const adabm_quantize_args* args) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_quantize_args), "args must be a struct of %zu bytes",
                  sizeof(adabm_quantize_args));
    adabm_quantize_args a = *args;
    const int dense = a.channels > 0 ? (a.channels + 3) / 4 * 4 : 0;
    a.y_channels = a.y_channels ? a.y_channels : dense;
    a.y_pitch = a.y_pitch ? a.y_pitch : dense;
    ADABM_REQUIRE(a.threads >= 1 && a.threads <= adabm::kMaxThreads, "threads must be 1..%d, got %d", adabm::kMaxThreads, a.threads);
    ADABM_REQUIRE(a.batch > 0 && a.height > 0 && a.width > 0 && a.channels > 0,
                  "batch, height, width and channels must be positive, got %d, %d, %d, %d", a.batch, a.height, a.width, a.channels);
    ADABM_REQUIRE(static_cast<int64_t>(a.batch) * a.height < INT32_MAX, "batch times height must fit 31 bits");
    ADABM_REQUIRE(a.stride_c >= 0 && a.stride_c < 1 << 27, "stride_c must be 0..2^27-1, got %lld", static_cast<long long>(a.stride_c));
    ADABM_REQUIRE(a.y_channels >= a.channels && a.y_pitch >= a.y_channels && a.y_pitch < 1 << 20,
                  "y_channels must be 0 or channels..y_pitch and y_pitch below 2^20, got %d and %d", a.y_channels, a.y_pitch);
    ADABM_REQUIRE(a.x && a.grid && a.bits && a.y_q, "x, grid, bits and y_q must not be null");
    for (int n = 0; n < a.batch; n++)
      ADABM_REQUIRE(a.bits[n] >= ADABM_MIN_BITS && a.bits[n] <= ADABM_MAX_BITS, "bits[%d] must be 2..8, got %d", n, a.bits[n]);
    Job job = {a, adabm::choose_kernels(a.isa)};
    adabm::parallel_for(a.threads, a.batch * a.height, quantize_task, &job);
  });
}
