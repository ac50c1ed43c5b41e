#include "cpu/isa.h"

#include "common/status.h"

namespace adabm {

static const char* const kNames[ADABM_ISA_COUNT] = {"auto", "scalar", "avx2", "avx512vnni"};

bool isa_present(int isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == ADABM_ISA_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == ADABM_ISA_AVX512VNNI)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
  return isa == ADABM_ISA_SCALAR;
}

const Kernels* isa_kernels(int isa) {
  switch (isa) {
    case ADABM_ISA_SCALAR: return kernels_scalar();
    case ADABM_ISA_AVX2: return kernels_avx2();
    case ADABM_ISA_AVX512VNNI: return kernels_avx512vnni();
    default: return nullptr;
  }
}

const Kernels& choose_kernels(int isa) {
  ADABM_REQUIRE(isa >= 0 && isa < ADABM_ISA_COUNT, "isa must be 0..%d, got %d", ADABM_ISA_COUNT - 1, isa);
  if (isa == ADABM_ISA_AUTO) {
    static const Kernels* const best = [] {
      for (int i = ADABM_ISA_COUNT - 1; i > ADABM_ISA_SCALAR; i--)
        if (isa_kernels(i) && isa_present(i)) return isa_kernels(i);
      return kernels_scalar();
    }();
    return *best;
  }
  if (!isa_kernels(isa)) throw Error(ADABM_UNSUPPORTED, "instruction set %s was not built into this library", kNames[isa]);
  if (!isa_present(isa)) throw Error(ADABM_UNSUPPORTED, "instruction set %s is not present on this processor", kNames[isa]);
  return *isa_kernels(isa);
}

}  // namespace adabm

extern "C" adabm_status adabm_isa_cpu(int32_t isa, int32_t* built, int32_t* present) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(isa > 0 && isa < ADABM_ISA_COUNT, "isa must be 1..%d, got %d", ADABM_ISA_COUNT - 1, isa);
    ADABM_REQUIRE(built && present, "built and present must not be null");
    *built = adabm::isa_kernels(isa) != nullptr;
    *present = adabm::isa_present(isa);
  });
}
