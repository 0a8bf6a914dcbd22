// Barriers of compute capability 9.0: mbarriers in shared memory, which threads and the copy engine arrive at, and
// barriers of part of a block.
#pragma once

#include <cstdint>

namespace tessera::cuda::sm90 {

// An mbarrier takes 8 bytes. A phase is over after `arrivals` arrivals and once all bytes that were announced are
// there.
__device__ __forceinline__ void InitBarrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(arrivals) : "memory");
}
// After all of them, before a barrier of the block: the copy engine sees them initialised.
__device__ __forceinline__ void PublishBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(barrier) : "memory");
}
__device__ __forceinline__ void ArriveAndExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(barrier), "r"(bytes) : "memory");
}
// Announces bytes to the current phase, which this thread has yet to arrive at.
__device__ __forceinline__ void ExpectBytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(bytes) : "memory");
}
// Until the phase of this parity is over. The first phase has parity 0; a wait for parity 1 passes at once before that.
__device__ __forceinline__ void WaitForPhase(uint32_t barrier, uint32_t parity) {
  uint32_t over;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (over == 0);
}

// Of `threads` threads, whole warps, that name the same barrier from 1 to 15.
__device__ __forceinline__ void SyncThreads(int barrier, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" : : "r"(barrier), "r"(threads) : "memory");
}
// Whether any of them brings true.
__device__ __forceinline__ bool SyncThreadsOr(int barrier, int threads, bool value) {
  uint32_t any;
  asm volatile("{ .reg .pred p, q; setp.ne.u32 p, %3, 0; barrier.cta.red.or.pred q, %1, %2, p; selp.u32 %0, 1, 0, q; }"
               : "=r"(any)
               : "r"(barrier), "r"(threads), "r"(static_cast<uint32_t>(value))
               : "memory");
  return any != 0;
}

// The registers of a warpgroup from here on, a multiple of 8: what one gives back another may take.
template <int kRegisters>
__device__ __forceinline__ void GiveRegistersBack() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(kRegisters));
}

// Places in a ring of kStages tiles, in the order of use. A consumer waits for its parity of the tile's barrier of
// being full; a producer for the other parity of its barrier of being empty, which passes at once the first time
// around.
template <int kStages>
struct Place {
  uint32_t number = 0;
  __device__ __forceinline__ int stage() const { return static_cast<int>(number % kStages); }
  __device__ __forceinline__ uint32_t parity() const { return number / kStages % 2; }
};

}  // namespace tessera::cuda::sm90
