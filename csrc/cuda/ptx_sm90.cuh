// Instructions of compute capability 9.0 (sm_90a), each in a device form and a host twin, as in ptx.cuh.
//
// Products, their fences and waits involve all lanes of a warp, and the four warps of a warpgroup issue the same ones.
#pragma once

#include "cuda/ptx.cuh"

namespace adabm {
namespace ptx {

// ---- barriers in shared memory

constexpr int kBarrierBytes = 8;

// Prepares a barrier. A phase ends with the `arrivals`-th arrival, once all bytes that arrivals announced have come. All threads of the block must meet before
// the first use.
ADABM_DEVICE void mbarrier_init(uint32_t barrier, int arrivals) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#else
  cuda_host::mbarrier_init(barrier, arrivals);
#endif
}

ADABM_DEVICE void mbarrier_arrive(uint32_t barrier) {
#if defined(__CUDACC__)
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(barrier) : "memory");
#else
  cuda_host::mbarrier_arrive("mbarrier_arrive", barrier, 0);
#endif
}

// Arrives and announces bytes of bulk copies.
ADABM_DEVICE void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
#if defined(__CUDACC__)
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(barrier), "r"(bytes) : "memory");
#else
  cuda_host::mbarrier_arrive("mbarrier_arrive_expect", barrier, bytes);
#endif
}

// Waits for the end of a phase: the first has parity 0, the next 1, and so on.
ADABM_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
#if defined(__CUDACC__)
  uint32_t done;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (!done);
#else
  cuda_host::mbarrier_wait(barrier, parity);
#endif
}

// Arrives once all copies that this thread has started with cp_async so far have landed, whenever that is; the thread goes on at once.
// A thread that waits for the phase then sees the copied bytes. Other writes of this thread are not made visible.
ADABM_DEVICE void cp_async_arrive(uint32_t barrier) {
#if defined(__CUDACC__)
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
#else
  cuda_host::async_arrive("cp_async_arrive", barrier);
#endif
}

// Copies a multiple of 16 bytes from global to shared memory, both aligned to 16, by the copy engine; the bytes count for the phase of the
// barrier.
ADABM_DEVICE void bulk_copy(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
#if defined(__CUDACC__)
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier)
               : "memory");
#else
  cuda_host::bulk_copy(shared, global, bytes, barrier);
#endif
}

// The description of the source of a tensor copy; tensor_map.h makes it on the host, and kernels get it by value.
#if defined(__CUDACC__)
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};
#else
using TensorMap = cuda_host::TensorMap;
#endif

// Copies the box of a 4-dimensional tensor that begins at these coordinates, innermost first, to shared memory at a multiple of 128 bytes;
// positions outside the tensor become zeros. All bytes of the box count for the barrier's phase. `map` must be a kernel's
// __grid_constant__ parameter.
ADABM_DEVICE void tensor_copy(uint32_t shared, const TensorMap& map, int c, int w, int h, int n, uint32_t barrier) {
#if defined(__CUDACC__)
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared), "l"(&map),
               "r"(c), "r"(w), "r"(h), "r"(n), "r"(barrier)
               : "memory");
#else
  cuda_host::tensor_copy(shared, map, {c, w, h, n}, barrier);
#endif
}

// Makes ordinary writes to shared memory (cp_async included) visible to products and bulk copies: those of this thread to what comes
// after a barrier which it joins later, and those of others that it knows of, from a barrier it has waited at, to what it starts itself.
ADABM_DEVICE void fence_async() {
#if defined(__CUDACC__)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  cuda_host::fence_async();
#endif
}

// Waits for the other threads that name barrier `id` (1..15; 0 is sync_block); `threads` of them, a multiple of 32.
ADABM_DEVICE void sync_threads(int id, int threads) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  cuda_host::named_barrier(id, threads);
#endif
}

// ---- tensors in global memory

// Returns the value in a register of each thread. A value that is the same for a warp would be computed by ptxas again at every use; here it
// does not see that the smaller of x and x | y is x.
ADABM_DEVICE uint32_t own_register(uint32_t value, uint32_t thread) {
#if defined(__CUDACC__)
  asm("{\n.reg .b32 more;\nor.b32 more, %0, %1;\nmin.u32 %0, %0, more;\n}" : "+r"(value) : "r"(thread));
#else
  static_cast<void>(thread);
#endif
  return value;
}

// Reads kCount (1 or 2) words of global memory where `wanted` is set; otherwise the words are undefined.
template <int kCount>
ADABM_DEVICE void load_words_if(bool wanted, const char* pointer, uint32_t* words) {
  static_assert(kCount == 1 || kCount == 2, "");
#if defined(__CUDACC__)
  if constexpr (kCount == 2)
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\n@p ld.global.v2.u32 {%0, %1}, [%2];\n}"
                 : "=r"(words[0]), "=r"(words[1])
                 : "l"(pointer), "r"(static_cast<int>(wanted))
                 : "memory");
  else
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p ld.global.u32 %0, [%1];\n}"
                 : "=r"(words[0])
                 : "l"(pointer), "r"(static_cast<int>(wanted))
                 : "memory");
#else
  for (int i = 0; i < kCount; i++) words[i] = wanted ? load_global(reinterpret_cast<const uint32_t*>(pointer) + i) : 0;
#endif
}

// ---- pairs of 16 bits

// Returns one of the two signed halves of a word as a float: one instruction of the unit for conversions, which has little else to do.
template <int kHalf>
ADABM_DEVICE float float_of_half(uint32_t word) {
#if defined(__CUDACC__)
  float out;
  if constexpr (kHalf == 0)
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f32.s16 %0, low;\n}" : "=f"(out) : "r"(word));
  else
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f32.s16 %0, high;\n}" : "=f"(out) : "r"(word));
  return out;
#else
  return static_cast<float>(static_cast<int16_t>(word >> (16 * kHalf)));
#endif
}

// Returns two numbers clamped to 0..65535, the first in the low half.
ADABM_DEVICE uint32_t pack_saturated(int32_t low, int32_t high) {
#if defined(__CUDACC__)
  uint32_t out;
  asm("cvt.pack.sat.u16.s32 %0, %1, %2;" : "=r"(out) : "r"(high), "r"(low));
  return out;
#else
  const auto half = [](int32_t x) -> uint32_t { return x < 0 ? 0 : x > 65535 ? 65535 : x; };
  return half(low) | half(high) << 16;
#endif
}

// Returns the signed halves of a + b, modulo 2^16, or the halves of `least` where these are greater.
ADABM_DEVICE uint32_t add_max_halves(uint32_t a, uint32_t b, uint32_t least) {
#if defined(__CUDACC__)
  uint32_t out;
  asm("{\n.reg .b32 sum;\nadd.s16x2 sum, %1, %2;\nmax.s16x2 %0, sum, %3;\n}" : "=r"(out) : "r"(a), "r"(b), "r"(least));
  return out;
#else
  const auto half = [&](int shift) -> uint32_t {
    const int16_t sum = static_cast<int16_t>((a >> shift) + (b >> shift)), low = static_cast<int16_t>(least >> shift);
    return static_cast<uint16_t>(sum > low ? sum : low);
  };
  return half(0) | half(16) << 16;
#endif
}

// ---- matrices to shared memory

// Stores kCount (2 or 4) 8x8 matrices of 16-bit elements, transposed: lane l holds in matrices[m] row l / 4, columns 2 (l % 4) (low half) and
// 2 (l % 4) + 1 of matrix m, and names 16 bytes for column l % 8 of matrix l / 8; lanes from 8 kCount on name nothing.
template <int kCount>
ADABM_DEVICE void store_matrices_transposed(uint32_t column, const uint32_t (&matrices)[kCount]) {
  static_assert(kCount == 2 || kCount == 4, "");
#if defined(__CUDACC__)
  if constexpr (kCount == 4)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(column), "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]),
                 "r"(matrices[3])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(column), "r"(matrices[0]), "r"(matrices[1]) : "memory");
#else
  struct Lane {
    uint32_t column;
    const uint32_t* matrices;
  } lane = {column, matrices};
  cuda_host::warp_collective("store_matrices_transposed", &lane, [](void* const* lanes) {
    for (int i = 0; i < 8 * kCount; i++) {
      uint16_t bytes[8];
      for (int row = 0; row < 8; row++) bytes[row] = static_cast<uint16_t>(static_cast<Lane*>(lanes[row * 4 + i % 8 / 2])->matrices[i / 8] >> (i % 2 * 16));
      std::memcpy(cuda_host::shared_write("store_matrices_transposed", static_cast<Lane*>(lanes[i])->column, 16, 16), bytes, 16);
    }
  });
#endif
}

// ---- registers between the warpgroups of a block

template <int kRegisters>
ADABM_DEVICE void give_registers() {
#if defined(__CUDACC__)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

template <int kRegisters>
ADABM_DEVICE void take_registers() {
#if defined(__CUDACC__)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// ---- products of a warpgroup

// Returns the descriptor by which a product finds B in shared memory, without swizzle: rows of 16 bytes (16 of the depth of one column), eight columns 128
// bytes in a row; group_bytes from one such group to the next, half_bytes from the first 16 of the depth to the last 16. All of
// them multiples of 16 below kDescriptorBytes, which a multiprocessor's shared memory does not reach; of the start, which an address
// in the window of shared memory is, the bits above are left out. Adding n to the result moves the start by 16 n bytes.
constexpr uint32_t kDescriptorBytes = 1 << 18;
ADABM_DEVICE uint64_t matrix_descriptor(uint32_t start, uint32_t half_bytes, uint32_t group_bytes) {
  constexpr uint32_t kUnits = kDescriptorBytes / 16 - 1;
  return static_cast<uint64_t>(start >> 4 & kUnits) | static_cast<uint64_t>(half_bytes >> 4 & kUnits) << 16 |
         static_cast<uint64_t>(group_bytes >> 4 & kUnits) << 32;
}

// Must stand before the first product, and before a product whose registers were read or written since the last one.
ADABM_DEVICE void wgmma_fence() {
#if defined(__CUDACC__)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  cuda_host::product_fence();
#endif
}

ADABM_DEVICE void wgmma_commit() {
#if defined(__CUDACC__)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  cuda_host::product_commit();
#endif
}

// Waits until at most kPending of the latest groups of this warp are under way.
template <int kPending>
ADABM_DEVICE void wgmma_wait() {
#if defined(__CUDACC__)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
  cuda_host::product_wait(kPending);
#endif
}

// d[64 x kColumns] (+)= a[64 x 32] b[32 x kColumns], a of signed bytes in registers, b of unsigned ones in shared memory. Neither
// registers nor memory may be touched before the wait. Warp w of the four has rows 16 w ..; in it, lane l holds of a, for k from
// 4 (l % 4): row l / 4, row l / 4 + 8, and the same from k + 16; and of d, for columns 8 j + 2 (l % 4) + {0, 1}: row l / 4 in
// d[4 j + {0, 1}], row l / 4 + 8 in d[4 j + {2, 3}].
template <int kColumns>
ADABM_DEVICE void wgmma_s8u8(int32_t (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t descriptor, int accumulate) {
  static_assert(kColumns == 128 || kColumns == 112, "");
#if defined(__CUDACC__)
  // clang-format off: eight or sixteen registers a line
  if constexpr (kColumns == 128)
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k32.s32.s8.u8 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
                 "}, {%64, %65, %66, %67}, %68, p;\n}"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]),
                 "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]),
                 "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
                 "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]),
                 "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]),
                 "+r"(d[40]), "+r"(d[41]), "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]),
                 "+r"(d[48]), "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
                 "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(accumulate));
  else
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %61, 0;\nwgmma.mma_async.sync.aligned.m64n112k32.s32.s8.u8 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55"
                 "}, {%56, %57, %58, %59}, %60, p;\n}"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]),
                 "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]),
                 "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
                 "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]),
                 "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]),
                 "+r"(d[40]), "+r"(d[41]), "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]),
                 "+r"(d[48]), "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(accumulate));
  // clang-format on
#else
  cuda_host::product("wgmma_s8u8", d, kColumns, a, descriptor, accumulate);
#endif
}

// Does the same with a in shared memory too: rows of 16 bytes as for B, eight outputs 128 bytes in a row.
template <int kColumns>
ADABM_DEVICE void wgmma_s8u8(int32_t (&d)[kColumns / 2], uint64_t a, uint64_t descriptor, int accumulate) {
  static_assert(kColumns == 128, "");
#if defined(__CUDACC__)
  // clang-format off: eight or sixteen registers a line
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k32.s32.s8.u8 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
               "}, %64, %65, p;\n}"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]),
               "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]),
               "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
               "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]),
               "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]),
               "+r"(d[40]), "+r"(d[41]), "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]),
               "+r"(d[48]), "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
               "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
               : "l"(a), "l"(descriptor), "r"(accumulate));
  // clang-format on
#else
  cuda_host::product("wgmma_s8u8", d, kColumns, a, descriptor, accumulate);
#endif
}

}  // namespace ptx
}  // namespace adabm
