// How fast the processor multiplies where nothing else hinders it: what benchmarks measure the kernels against.
#include "common/status.h"
#include "cpu/isa/choose.h"
#include "cpu/thread_pool.h"

extern "C" adabm_status adabm_peak_cpu(int32_t isa, int32_t threads, int64_t rounds, int64_t* macs) {
  using namespace adabm;
  return guarded([&] {
    ADABM_REQUIRE(threads >= 1 && threads <= kMaxThreads, "threads must be 1..%d, got %d", kMaxThreads, threads);
    ADABM_REQUIRE(rounds >= 1 && rounds <= int64_t{1} << 40, "rounds must be 1..2^40, got %lld", static_cast<long long>(rounds));
    ADABM_REQUIRE(macs, "macs must not be null");
    struct Work {
      const Kernels& kernels;
      int64_t rounds;
    } work = {choose_kernels(isa), rounds};
    if (!work.kernels.peak) throw Error(ADABM_UNSUPPORTED, "instruction set %s has no products of its own to measure", work.kernels.name);
    parallel_for(threads, threads, [](void* context, int) { static_cast<Work*>(context)->kernels.peak(static_cast<Work*>(context)->rounds); }, &work);
    *macs = work.kernels.peak(1) * rounds * threads;
  });
}
