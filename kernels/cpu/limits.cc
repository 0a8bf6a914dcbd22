#include "kernels/limits.h"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/limits.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each instruction set.
#include "kernels/cpu/limits-inl.h"

#if HWY_ONCE
#include <sys/mman.h>

#include <algorithm>
#include <chrono>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/decode.h"

namespace tessera {
namespace cpu {
HWY_EXPORT(MultiplyAdd);
HWY_EXPORT(ReadMemory);

// The macros work inside this namespace only.
double DispatchMultiplyAdd(int64_t steps, float* sink) {
  return HWY_DYNAMIC_DISPATCH(MultiplyAdd)(steps, sink);
}
void DispatchReadMemory(const std::byte* from, int64_t bytes, float* sink) {
  HWY_DYNAMIC_DISPATCH(ReadMemory)(from, bytes, sink);
}

}  // namespace cpu

namespace {

// The best of some runs, each from a common start to the last thread's end. `work(thread, run)` returns what a thread
// has done.
template <class Work>
double BestRate(int threads, int runs, const Work& work) {
  double best = 0;
  for (int run = 0; run < runs; ++run) {
    double done = 0;
    std::chrono::steady_clock::time_point start;
#pragma omp parallel num_threads(threads) reduction(+ : done)
    {
#pragma omp barrier
#pragma omp master
      start = std::chrono::steady_clock::now();
#pragma omp for schedule(static)
      for (int thread = 0; thread < threads; ++thread) done += work(thread, run);
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, done / seconds.count());
  }
  return best;
}

// A thread reads one slice of its share after the other: none is in a cache when its turn comes again.
constexpr int kSlices = 8;

}  // namespace

ReadBandwidth::ReadBandwidth(int threads, int64_t bytes) : threads_(threads) {
  constexpr size_t kHugePage = size_t{2} << 20;  // as caches are
  const int64_t slice = bytes / threads / kSlices / 1024 * 1024, share = slice * kSlices;
  const size_t rounded = (static_cast<size_t>(share) * threads + kHugePage - 1) / kHugePage * kHugePage;
  if (rounded == 0) return;
  buffer_.reset(static_cast<std::byte*>(std::aligned_alloc(kHugePage, rounded)));
  if (buffer_ == nullptr) return;
  slice_ = slice;
  (void)madvise(buffer_.get(), rounded, MADV_HUGEPAGE);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) std::fill_n(buffer_.get() + thread * share, share, std::byte{1});
}

double ReadBandwidth::Best() const {
  return BestRate(threads_, 7 * kSlices, [this](int thread, int run) {
    float sink = 0;
    cpu::DispatchReadMemory(buffer_.get() + (thread * kSlices + run % kSlices) * slice_, slice_, &sink);
    volatile float keep = sink;  // the loop has an effect
    return keep == keep ? static_cast<double>(slice_) : 0.0;
  });
}

double ReadBandwidth::OnePass() const {
  return BestRate(threads_, 1, [this](int thread, int) {
    float sink = 0;
    cpu::DispatchReadMemory(buffer_.get() + thread * kSlices * slice_, kSlices * slice_, &sink);
    volatile float keep = sink;
    return keep == keep ? static_cast<double>(kSlices * slice_) : 0.0;
  });
}

MachineLimits MeasureLimits(int threads, const ReadBandwidth& bandwidth) {
  // A run of a millisecond or two fits between two interruptions by other work, if there are enough of them.
  constexpr int64_t kSteps = 200'000;
  constexpr int kArithmeticRuns = 50;
  MachineLimits limits;
  limits.fp32_flops = BestRate(threads, kArithmeticRuns, [](int, int) {
    float sink = 0;
    const double flops = cpu::DispatchMultiplyAdd(kSteps, &sink);
    volatile float keep = sink;  // the loop has an effect
    return keep == keep ? flops : 0.0;
  });
  if (cpu::HasBFloat16Dot()) {
    limits.bf16_flops = BestRate(threads, kArithmeticRuns, [](int, int) {
      float sink = 0;
      const double flops = cpu::BFloat16DotPeak(kSteps, &sink);
      volatile float keep = sink;
      return keep == keep ? flops : 0.0;
    });
  }
  if (cpu::HasAmx()) {
    limits.tile_flops = BestRate(threads, kArithmeticRuns, [](int, int) {
      float sink = 0;
      const double flops = cpu::AmxDotPeak(kSteps / 8, &sink);
      volatile float keep = sink;
      return keep == keep ? flops : 0.0;
    });
  }
  limits.read_bytes = bandwidth.Best();
  return limits;
}

}  // namespace tessera
#endif  // HWY_ONCE
