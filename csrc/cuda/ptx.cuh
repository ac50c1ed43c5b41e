// Every instruction that the kernels do not get from plain C++, each in a device form and a host twin.
//
// Shared memory is an address here, not a pointer, and global memory is read and written by functions: the host runtime
// (tests/helpers/cuda_host) sees every access that way. Collectives involve all 32 lanes of a warp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#define ADABM_DEVICE __device__ __forceinline__

namespace adabm {
namespace ptx {

struct alignas(8) Words2 {
  uint32_t w[2];
};
struct alignas(16) Words4 {
  uint32_t w[4];
};

// Returns the value such that compilers know nothing about it: they keep it rather than compute it again, and move no computation with it out
// of the loop around this call.
ADABM_DEVICE uint32_t opaque(uint32_t value) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// Returns the number of this thread in its block (one-dimensional), read anew at this place: compilers compute numbers that follow from
// threadIdx.x before loops and keep in registers, of which some kernels have none to spare.
ADABM_DEVICE uint32_t thread_index() {
#if defined(__CUDACC__)
  uint32_t index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
#else
  return threadIdx.x;
#endif
}

// ---- memory

// Returns the address of the first byte of the dynamic shared memory of the block.
ADABM_DEVICE uint32_t shared_base() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared));
#else
  return cuda_host::kSharedBase;
#endif
}

template <class T>
ADABM_DEVICE T load_shared(uint32_t address) {
#if defined(__CUDACC__)
  return *static_cast<const T*>(__cvta_shared_to_generic(address));
#else
  T value;
  std::memcpy(&value, cuda_host::shared_read("load_shared", address, sizeof(T), alignof(T)), sizeof(T));
  return value;
#endif
}

template <class T>
ADABM_DEVICE void store_shared(uint32_t address, const T& value) {
#if defined(__CUDACC__)
  *static_cast<T*>(__cvta_shared_to_generic(address)) = value;
#else
  std::memcpy(cuda_host::shared_write("store_shared", address, sizeof(T), alignof(T)), &value, sizeof(T));
#endif
}

// Loads from memory that no thread writes while the kernel runs.
template <class T>
ADABM_DEVICE T load_constant(const T* pointer) {
#if defined(__CUDACC__)
  return __ldg(pointer);
#else
  cuda_host::global_read("load_constant", pointer, sizeof(T), alignof(T));
  return *pointer;
#endif
}

// Loads 1, 2 or 4 words (kWords) at once; the pointer is aligned to all of them.
template <int kWords>
ADABM_DEVICE void load_constant_words(uint32_t* words, const void* pointer) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4, "");
#if defined(__CUDACC__)
  if constexpr (kWords == 4) {
    const uint4 w = __ldg(static_cast<const uint4*>(pointer));
    words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
  } else if constexpr (kWords == 2) {
    const uint2 w = __ldg(static_cast<const uint2*>(pointer));
    words[0] = w.x, words[1] = w.y;
  } else {
    words[0] = __ldg(static_cast<const uint32_t*>(pointer));
  }
#else
  cuda_host::global_read("load_constant", pointer, 4 * kWords, 4 * kWords);
  std::memcpy(words, pointer, 4 * kWords);
#endif
}

ADABM_DEVICE Words4 load_constant(const Words4* pointer) {
#if defined(__CUDACC__)
  const uint4 four = __ldg(reinterpret_cast<const uint4*>(pointer));
  return {{four.x, four.y, four.z, four.w}};
#else
  cuda_host::global_read("load_constant", pointer, sizeof(Words4), alignof(Words4));
  return *pointer;
#endif
}

// Does the same where `wanted` is set, and returns 0 otherwise. It is a predicate; compilers would make a branch for every load.
ADABM_DEVICE uint32_t load_constant_if(bool wanted, const uint32_t* pointer) {
#if defined(__CUDACC__)
  uint32_t word;
  asm("{ .reg .pred p; setp.ne.b32 p, %2, 0; mov.b32 %0, 0; @p ld.global.nc.u32 %0, [%1]; }" : "=r"(word) : "l"(pointer), "r"(static_cast<int>(wanted)));
  return word;
#else
  return wanted ? load_constant(pointer) : 0u;
#endif
}

template <class T>
ADABM_DEVICE T load_global(const T* pointer) {
#if !defined(__CUDACC__)
  cuda_host::global_read("load_global", pointer, sizeof(T), alignof(T));
#endif
  return *pointer;
}

// Loads where `wanted` is set; otherwise the words stay as they are.
ADABM_DEVICE void load_global_if(bool wanted, const Words4* pointer, Words4& words) {
#if defined(__CUDACC__)
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
               : "+r"(words.w[0]), "+r"(words.w[1]), "+r"(words.w[2]), "+r"(words.w[3])
               : "l"(pointer), "r"(static_cast<int>(wanted))
               : "memory");
#else
  if (wanted) words = load_global(pointer);
#endif
}

template <class T>
ADABM_DEVICE void store_global(T* pointer, const T& value) {
#if !defined(__CUDACC__)
  cuda_host::global_write("store_global", pointer, sizeof(T), alignof(T));
#endif
  *pointer = value;
}

// ---- bits

ADABM_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

ADABM_DEVICE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Returns four of the eight bytes in b:a, chosen by the lowest four nibbles of the selector, each 0..7.
ADABM_DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
#if defined(__CUDACC__)
  return __byte_perm(a, b, selector);
#else
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; i++) out |= static_cast<uint32_t>(both >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
  return out;
#endif
}

// Returns the bits of a where the mask has ones, and the bits of b elsewhere, in one instruction: compilers turn the usual forms into two.
ADABM_DEVICE uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(out) : "r"(mask), "r"(a), "r"(b));
  return out;
#else
  return (a & mask) | (b & ~mask);
#endif
}

// ---- floats

// Returns a b + c, rounded once and then clamped to 0..1; NaN gives 0.
ADABM_DEVICE float fma_saturate(float a, float b, float c) {
#if defined(__CUDACC__)
  float out;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(out) : "f"(a), "f"(b), "f"(c));
  return out;
#else
  const float sum = std::fmaf(a, b, c);
  return sum > 0.0f ? std::fminf(sum, 1.0f) : 0.0f;
#endif
}

// Returns a negative value times `slope`, and any other value as it is, by a comparison and a product; compilers would add a selection.
ADABM_DEVICE float multiply_negative(float value, float slope) {
#if defined(__CUDACC__)
  asm("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p mul.rn.f32 %0, %0, %1;\n}" : "+f"(value) : "f"(slope));
  return value;
#else
  return value < 0.0f ? value * slope : value;
#endif
}

// Returns the float16 nearest to each of two floats in 0..1, half to even, the first in the low half. Below 2^-13 float16 are the multiples
// of 2^-24, and their bits are the factor.
ADABM_DEVICE uint32_t pack_halves(float low, float high) {
#if defined(__CUDACC__)
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#else
  const auto half = [](float value) -> uint32_t {
    if (!(value >= 0.0f && value <= 1.0f)) cuda_host::fail("pack_halves of %g, which must be in 0..1", value);
    if (value < 0x1p-14f) return static_cast<uint32_t>(std::nearbyintf(value * 0x1p24f));
    const int exponent = std::ilogb(value);
    return static_cast<uint32_t>((exponent + 14) * 1024 + static_cast<int>(std::nearbyintf(std::ldexp(value, 10 - exponent))));
  };
  return half(low) | half(high) << 16;
#endif
}

#if !defined(__CUDACC__)
// Returns for each half of two pairs of float16 in 0..1 the one that `chosen` selects; their bits are in the order of their values.
template <class Chosen>
inline uint32_t each_half(const char* name, uint32_t a, uint32_t b, Chosen&& chosen) {
  const auto of = [&](uint32_t x, uint32_t y) {
    if (x > 0x3c00 || y > 0x3c00) cuda_host::fail("%s of 0x%x and 0x%x, which must be in 0..1", name, x, y);
    return chosen(x, y);
  };
  return of(a & 0xffffu, b & 0xffffu) | of(a >> 16, b >> 16) << 16;
}
#endif

// Returns the lesser ones of two pairs of float16 in 0..1.
ADABM_DEVICE uint32_t min_halves(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
  uint32_t out;
  asm("min.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
#else
  return each_half("min_halves", a, b, [](uint32_t x, uint32_t y) { return x < y ? x : y; });
#endif
}

// Returns the greater ones.
ADABM_DEVICE uint32_t max_halves(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
  uint32_t out;
  asm("max.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
#else
  return each_half("max_halves", a, b, [](uint32_t x, uint32_t y) { return x > y ? x : y; });
#endif
}

// ---- asynchronous copies (sm_80)

// Copies kBytes, 4 or 16, from global to shared memory; only the first source_bytes are read and zeros take the place of the others.
template <int kBytes>
ADABM_DEVICE void cp_async(uint32_t shared, const void* global, int source_bytes) {
  static_assert(kBytes == 4 || kBytes == 16, "");
#if defined(__CUDACC__)
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(source_bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(source_bytes) : "memory");
#else
  cuda_host::async_copy("cp_async", shared, global, kBytes, source_bytes);
#endif
}

ADABM_DEVICE void cp_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_host::async_commit();
#endif
}

// Waits until at most kPending of the latest groups of this thread are under way.
template <int kPending>
ADABM_DEVICE void cp_async_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  cuda_host::async_wait(kPending);
#endif
}

// ---- barriers and shuffles

ADABM_DEVICE void sync_block() {
#if defined(__CUDACC__)
  __syncthreads();
#else
  cuda_host::block_barrier("sync_block");
#endif
}

// Waits for the other lanes of the warp.
ADABM_DEVICE void sync_warp() {
#if defined(__CUDACC__)
  __syncwarp();
#else
  cuda_host::warp_collective("sync_warp", nullptr, [](void* const*) {});
#endif
}

// Returns whether the condition holds for any lane of the warp. Compilers know of a vote, unlike of other exchanges between lanes, that it is
// the same for all of them: products of a warpgroup may stand behind a branch on it.
ADABM_DEVICE bool any_lane(bool condition) {
#if defined(__CUDACC__)
  return __any_sync(0xffffffffu, condition);
#else
  cuda_host::warp_collective("any_lane", &condition, [](void* const* lanes) {
    bool any = false;
    for (int i = 0; i < 32; i++) any |= *static_cast<bool*>(lanes[i]);
    for (int i = 0; i < 32; i++) *static_cast<bool*>(lanes[i]) = any;
  });
  return condition;
#endif
}

// Returns a word whose bit i says whether the condition holds for lane i of the warp.
ADABM_DEVICE uint32_t lanes_where(bool condition) {
#if defined(__CUDACC__)
  return __ballot_sync(0xffffffffu, condition);
#else
  struct Lane {
    bool in;
    uint32_t out;
  } lane = {condition, 0};
  cuda_host::warp_collective("lanes_where", &lane, [](void* const* lanes) {
    uint32_t found = 0;
    for (int i = 0; i < 32; i++) found |= static_cast<uint32_t>(static_cast<Lane*>(lanes[i])->in) << i;
    for (int i = 0; i < 32; i++) static_cast<Lane*>(lanes[i])->out = found;
  });
  return lane.out;
#endif
}

template <class T>
ADABM_DEVICE T shuffle_down(T value, int delta) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "");
#if defined(__CUDACC__)
  return __shfl_down_sync(0xffffffffu, value, delta);
#else
  struct Lane {
    T in, out;
    int delta;
  } lane = {value, value, delta};
  cuda_host::warp_collective("shuffle_down", &lane, [](void* const* lanes) {
    auto at = [&](int i) -> Lane& { return *static_cast<Lane*>(lanes[i]); };
    for (int i = 0; i < 32; i++) at(i).out = at(i + at(i).delta < 32 ? i + at(i).delta : i).in;
  });
  return lane.out;
#endif
}

// ---- matrices

// Loads four 8x8 matrices of 16-bit elements (rows of 16 bytes). Lane i names row i % 8 of matrix i / 8; it gets bytes 4 (i % 4) .. + 3 of
// row i / 4 of each.
ADABM_DEVICE void ldmatrix_x4(uint32_t (&out)[4], uint32_t row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
#else
  struct Lane {
    uint32_t* out;
    uint32_t row;
  } lane = {out, row};
  cuda_host::warp_collective("ldmatrix_x4", &lane, [](void* const* lanes) {
    for (int m = 0; m < 4; m++)
      for (int r = 0; r < 8; r++) {
        const void* bytes = cuda_host::shared_read("ldmatrix_x4", static_cast<Lane*>(lanes[m * 8 + r])->row, 16, 16);
        for (int q = 0; q < 4; q++) std::memcpy(static_cast<Lane*>(lanes[r * 4 + q])->out + m, static_cast<const char*>(bytes) + q * 4, 4);
      }
  });
#endif
}

#if !defined(__CUDACC__)
// d[16x8] += a[16xK] b[Kx8]: the fragments of mma.sync.m16n8 with rows of 32 bytes, K = 32 codes of 8 bits or 64 of 4.
template <int kBits>
inline void mma_twin(const char* name, int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Lane {
    int32_t* d;
    const uint32_t *a, *b;
  } lane = {d, a, b};
  cuda_host::warp_collective(name, &lane, [](void* const* lanes) {
    constexpr int kCodes = 32 / kBits, kDepth = 8 * kCodes;  // codes of a register, and K
    int16_t left[16][kDepth], right[8][kDepth];
    for (int i = 0; i < 32; i++) {
      const Lane& l = *static_cast<Lane*>(lanes[i]);
      const int group = i / 4, quarter = i % 4;
      for (int c = 0; c < kCodes; c++) {
        for (int r = 0; r < 4; r++) left[group + r % 2 * 8][(r / 2 * 4 + quarter) * kCodes + c] = l.a[r] >> (c * kBits) & ((1 << kBits) - 1);
        for (int r = 0; r < 2; r++) right[group][(r * 4 + quarter) * kCodes + c] = static_cast<int32_t>(l.b[r] << (32 - (c + 1) * kBits)) >> (32 - kBits);
      }
    }
    for (int i = 0; i < 32; i++)
      for (int r = 0; r < 4; r++) {
        const int16_t *x = left[i / 4 + r / 2 * 8], *w = right[i % 4 * 2 + r % 2];
        int32_t sum = 0;
        for (int k = 0; k < kDepth; k++) sum += x[k] * w[k];
        static_cast<Lane*>(lanes[i])->d[r] += sum;
      }
  });
}
#endif

// `begins` are the registers that the products are added to.
#define ADABM_MMA(shape_and_types, begins) "mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " begins ";"
#define ADABM_MMA_U8S8 "m16n8k32.row.col.s32.u8.s8.s32"
#define ADABM_MMA_U4S4 "m16n8k64.row.col.s32.u4.s4.s32"
#define ADABM_MMA_INPUTS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])
#define ADABM_MMA_ADDS "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : ADABM_MMA_INPUTS
#define ADABM_MMA_BEGINS "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : ADABM_MMA_INPUTS, "r"(first), "r"(first), "r"(first), "r"(first)
// A predicate inside the instruction: around it, a branch would copy the accumulators back and forth.
#define ADABM_MMA_IF(shape_and_types) "{ .reg .pred p; setp.ne.b32 p, %10, 0; @p " ADABM_MMA(shape_and_types, "{%0, %1, %2, %3}") " }"

// d[16x8] += a[16xK] b[Kx8], a of unsigned and b of signed numbers: bytes, K = 32, or numbers of 4 bits, K = 64. The latter is one
// instruction on sm_80..89 only.
template <int kBits>
ADABM_DEVICE void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kBits == 8 || kBits == 4, "");
#if defined(__CUDACC__)
  if constexpr (kBits == 8)
    asm volatile(ADABM_MMA(ADABM_MMA_U8S8, "{%0, %1, %2, %3}") : ADABM_MMA_ADDS);
  else
    asm volatile(ADABM_MMA(ADABM_MMA_U4S4, "{%0, %1, %2, %3}") : ADABM_MMA_ADDS);
#else
  mma_twin<kBits>(kBits == 8 ? "mma_u8s8" : "mma_u4s4", d, a, b);
#endif
}

// Does the same, but begins at `first`: d = first + a b.
template <int kBits>
ADABM_DEVICE void mma_from(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int32_t first) {
#if defined(__CUDACC__)
  if constexpr (kBits == 8)
    asm volatile(ADABM_MMA(ADABM_MMA_U8S8, "{%10, %11, %12, %13}") : ADABM_MMA_BEGINS);
  else
    asm volatile(ADABM_MMA(ADABM_MMA_U4S4, "{%10, %11, %12, %13}") : ADABM_MMA_BEGINS);
#else
  for (int32_t& sum : d) sum = first;
  mma<kBits>(d, a, b);
#endif
}

// d += a b where `wanted` is set, which must be the same for the whole warp.
template <int kBits>
ADABM_DEVICE void mma_if(bool wanted, int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  if constexpr (kBits == 8)
    asm volatile(ADABM_MMA_IF(ADABM_MMA_U8S8) : ADABM_MMA_ADDS, "r"(static_cast<int>(wanted)));
  else
    asm volatile(ADABM_MMA_IF(ADABM_MMA_U4S4) : ADABM_MMA_ADDS, "r"(static_cast<int>(wanted)));
#else
  if (wanted) mma<kBits>(d, a, b);
#endif
}

#undef ADABM_MMA
#undef ADABM_MMA_U8S8
#undef ADABM_MMA_U4S4
#undef ADABM_MMA_INPUTS
#undef ADABM_MMA_ADDS
#undef ADABM_MMA_BEGINS
#undef ADABM_MMA_IF

}  // namespace ptx
}  // namespace adabm
