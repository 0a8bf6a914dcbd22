// Hopper's asynchronous matrix products (PTX ISA, wgmma). A warpgroup of four warps calls each with all its lanes; lane
// l of warp w holds of the accumulators rows 16 w + l/4 and + 8, columns 8 i + 2 (l%4) + {0, 1}, as after mma.sync.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/element.cuh"

// The build compiles every source for every architecture; wgmma exists on one.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TESSERA_HAS_WGMMA 1
#else
#define TESSERA_HAS_WGMMA 0
#endif

namespace tessera::cuda::sm90 {

// Orders what this warp did to accumulators and operands in registers before the products that follow.
__device__ __forceinline__ void BeginProducts() {
  asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}
// Closes a group of products.
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}
// Until at most the last kGroups groups are in flight: registers and shared memory of the others may be touched again.
template <int kGroups>
__device__ __forceinline__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(kGroups) : "memory");
}
// Orders this thread's writes to shared memory before reads by the tensor cores, which go through another proxy.
__device__ __forceinline__ void PublishShared() {
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

// Where a matrix with rows of 128 bytes, swizzled as a whole, starts. `leading` and `stride` are in bytes: between
// panels of 64 columns (where columns are the side that is not summed over) and between groups of eight rows.
__device__ __forceinline__ uint64_t Descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 |
         uint64_t{1} << 62;
}

// The accumulators of a product with N columns as operands of inline assembly: their places, and the values.
#define TESSERA_LIST_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define TESSERA_LIST_64 \
  TESSERA_LIST_32       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TESSERA_LIST_128                                                                              \
  TESSERA_LIST_64                                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
  "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TESSERA_SUMS_8(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define TESSERA_SUMS_32(c, i) \
  TESSERA_SUMS_8(c, i), TESSERA_SUMS_8(c, i + 1), TESSERA_SUMS_8(c, i + 2), TESSERA_SUMS_8(c, i + 3)
#define TESSERA_SUMS_64(c, i) TESSERA_SUMS_32(c, i), TESSERA_SUMS_32(c, i + 4)
#define TESSERA_SUMS_128(c, i) TESSERA_SUMS_64(c, i), TESSERA_SUMS_64(c, i + 8)

// c[64 x N] = A[64 x 16] B[16 x N], or += where `add`. B is in shared memory: with k as its contiguous side, or with
// n where kAlongN. A is in shared memory with k as its contiguous side, or in registers, laid out as mma.sync has it.
// o0 and up: the places of the operands behind the accumulators.
#define TESSERA_PRODUCT(N, Element, type, o0, o1, o2, o3, o4, o5, o6)                                               \
  template <bool kAlongN>                                                                                           \
  __device__ __forceinline__ void Multiply(float(&c)[N / 8][4], uint64_t a, uint64_t b, bool add, Element) {        \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #o2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type \
                 "." type " {" TESSERA_LIST_##N "}, %" #o0 ", %" #o1 ", p, 1, 1, 0, %" #o3 "; }"                    \
                 : TESSERA_SUMS_##N(c, 0)                                                                           \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kAlongN)));                     \
  }                                                                                                                 \
  template <bool kAlongN>                                                                                           \
  __device__ __forceinline__ void Multiply(float(&c)[N / 8][4], const uint32_t(&a)[4], uint64_t b, bool add,        \
                                           Element) {                                                               \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #o5 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type \
                 "." type " {" TESSERA_LIST_##N "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4                \
                                                ", p, 1, 1, %" #o6 "; }"                                            \
                 : TESSERA_SUMS_##N(c, 0)                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),                  \
                   "n"(static_cast<int>(kAlongN)));                                                                 \
  }
#define TESSERA_PRODUCTS(Element, type)                          \
  TESSERA_PRODUCT(32, Element, type, 16, 17, 18, 19, 20, 21, 22) \
  TESSERA_PRODUCT(64, Element, type, 32, 33, 34, 35, 36, 37, 38) \
  TESSERA_PRODUCT(128, Element, type, 64, 65, 66, 67, 68, 69, 70)
TESSERA_PRODUCTS(BFloat16, "bf16")
TESSERA_PRODUCTS(Float16, "f16")
#undef TESSERA_PRODUCTS
#undef TESSERA_PRODUCT
#undef TESSERA_SUMS_128
#undef TESSERA_SUMS_64
#undef TESSERA_SUMS_32
#undef TESSERA_SUMS_8
#undef TESSERA_LIST_128
#undef TESSERA_LIST_64
#undef TESSERA_LIST_32

}  // namespace tessera::cuda::sm90
