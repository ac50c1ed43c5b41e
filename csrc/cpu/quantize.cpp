// Features to codes: the input of a network, or a feature map that another library computed.
#include "common/rules.h"
#include "common/status.h"
#include "cpu/features.h"
#include "cpu/isa/choose.h"
#include "cpu/spans.h"
#include "cpu/thread_pool.h"

namespace {

struct Job {
  const adabm_quantize_args& a;
  const adabm::Kernels& kernels;
  std::vector<std::vector<adabm::Strip>> strips;  // the strips of each image
};

void quantize_task(void* context, int task) {
  const Job& job = *static_cast<const Job*>(context);
  const adabm_quantize_args& a = job.a;
  const int image = task / a.height, row = task % a.height, bits = a.bits[image] - ADABM_MIN_BITS;
  adabm::QuantizeArgs q = {};
  q.stride_w = a.stride_w, q.stride_c = a.stride_c;
  q.shift = a.shift, q.features = adabm::feature_format(a.x_format, a.x_fraction);
  q.channels = a.channels, q.padded_channels = a.y_channels, q.y_stride = a.y_pitch;
  q.scale = a.grid[bits * 2], q.offset = a.grid[bits * 2 + 1];
  q.top = static_cast<float>((1 << a.bits[image]) - 1);
  for (const adabm::Span& span : adabm::strip_of(job.strips[image], row).computed) {
    q.x = adabm::feature_at(q.features, a.x, image * a.stride_n + row * a.stride_h + span.begin * a.stride_w);
    q.y_q = a.y_q + (static_cast<ptrdiff_t>(task) * a.width + span.begin) * a.y_pitch;
    q.width = span.columns();
    job.kernels.quantize_row(q);
  }
}

}  // namespace

extern "C" adabm_status adabm_quantize_cpu(const adabm_quantize_args* args) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(args && args->struct_bytes == sizeof(adabm_quantize_args), "args must be a struct of %zu bytes", sizeof(adabm_quantize_args));
    adabm_quantize_args a = *args;
    ADABM_REQUIRE(a.threads >= 1 && a.threads <= adabm::kMaxThreads, "threads must be 1..%d, got %d", adabm::kMaxThreads, a.threads);
    ADABM_REQUIRE(!a.packed_codes && !a.y_start, "packed_codes and y_start must be 0 on the CPU, got %d and %d", a.packed_codes, a.y_start);
    adabm::check_rules(a);
    for (int n = 0; n < a.batch; n++) ADABM_REQUIRE(a.bits[n] >= ADABM_MIN_BITS && a.bits[n] <= ADABM_MAX_BITS, "bits[%d] must be 2..8, got %d", n, a.bits[n]);
    Job job = {a, adabm::choose_kernels(a.isa), {}};
    for (int n = 0; n < a.batch; n++) job.strips.push_back(adabm::strips_of(a.region, n, a.height, a.width));
    adabm::parallel_for(a.threads, a.batch * a.height, quantize_task, &job);
  });
}
