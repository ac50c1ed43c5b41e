// Chooses the instruction set that computes: the fastest that was built and that the processor and the operating system allow, or the one
// that the caller names. Each instruction set has a file beside this one, which fills a table of kernels (cpu/isa/kernels.h).
#include "cpu/isa/choose.h"

#include "common/status.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace adabm {

#if defined(__x86_64__)
// The __builtin_cpu_supports of older compilers does not know AVX-VNNI. The operating system saves its registers if it does so for AVX2.
static bool has_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

#if defined(__x86_64__)
static bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kAmxTile) && (edx & kAmxInt8);
}
#endif

static bool on_processor(int isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == ADABM_ISA_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == ADABM_ISA_AVXVNNI) return on_processor(ADABM_ISA_AVX2) && has_avxvnni();
  if (isa == ADABM_ISA_AVX512VNNI)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  if (isa == ADABM_ISA_AMX) return on_processor(ADABM_ISA_AVX512VNNI) && has_amx();
#elif defined(__aarch64__) && defined(__linux__)
  if (isa == ADABM_ISA_NEON) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__) && defined(__APPLE__)
  if (isa == ADABM_ISA_NEON) return true;  // every ARM processor of Apple has the dot product
#endif
  return isa == ADABM_ISA_SCALAR;
}

// Returns why this process may not use AMX on a processor that has it; null where it may.
static const char* why_amx_refused() {
#if defined(__x86_64__) && defined(__linux__)
  // A process asks once (arch_prctl(2)); then all its threads have the permission.
  static const int error = [] {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA of Linux 5.16
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) ? errno : 0;
  }();
  if (error == ENOSPC) return "is refused by the operating system: a thread's alternate signal stack (sigaltstack) is too small for it";
  return error ? "is refused by the operating system: it takes Linux 5.16 or newer and leave to call arch_prctl" : nullptr;
#else
  return "is used on Linux only";
#endif
}

// Returns why this process cannot run an instruction set; null where it can.
static const char* why_absent(int isa) {
  if (!on_processor(isa)) return "is not present on this processor";
  return isa == ADABM_ISA_AMX ? why_amx_refused() : nullptr;
}

static const char* const kNames[ADABM_ISA_COUNT] = {"auto", "scalar", "neon", "avx2", "avxvnni", "avx512vnni", "amx"};

// Returns the kernels of an instruction set; null where it was not built.
static const Kernels* isa_kernels(int isa) {
  switch (isa) {
    case ADABM_ISA_SCALAR: return kernels_scalar();
    case ADABM_ISA_NEON: return kernels_neon();
    case ADABM_ISA_AVX2: return kernels_avx2();
    case ADABM_ISA_AVXVNNI: return kernels_avxvnni();
    case ADABM_ISA_AVX512VNNI: return kernels_avx512vnni();
    case ADABM_ISA_AMX: return kernels_amx();
    default: return nullptr;
  }
}

const Kernels& choose_kernels(int isa) {
  ADABM_REQUIRE(isa >= 0 && isa < ADABM_ISA_COUNT, "isa must be 0..%d, got %d", ADABM_ISA_COUNT - 1, isa);
  if (isa == ADABM_ISA_AUTO) {
    static const Kernels* const best = [] {
      for (int i = ADABM_ISA_COUNT - 1; i > ADABM_ISA_SCALAR; i--)
        if (isa_kernels(i) && !why_absent(i)) return isa_kernels(i);
      return kernels_scalar();
    }();
    return *best;
  }
  if (!isa_kernels(isa)) throw Error(ADABM_UNSUPPORTED, "instruction set %s was not built into this library", kNames[isa]);
  if (const char* why = why_absent(isa)) throw Error(ADABM_UNSUPPORTED, "instruction set %s %s", kNames[isa], why);
  return *isa_kernels(isa);
}

}  // namespace adabm

extern "C" adabm_status adabm_isa_cpu(int32_t isa, int32_t* built, int32_t* present) {
  return adabm::guarded([&] {
    ADABM_REQUIRE(isa > 0 && isa < ADABM_ISA_COUNT, "isa must be 1..%d, got %d", ADABM_ISA_COUNT - 1, isa);
    ADABM_REQUIRE(built && present, "built and present must not be null");
    *built = adabm::isa_kernels(isa) != nullptr;
    *present = !adabm::why_absent(isa);
  });
}
