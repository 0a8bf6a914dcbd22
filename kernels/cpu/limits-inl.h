// Loops that do nothing but multiply-add in registers, or read memory.
#if defined(TESSERA_KERNELS_CPU_LIMITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_LIMITS_INL_H_
#undef TESSERA_KERNELS_CPU_LIMITS_INL_H_
#else
#define TESSERA_KERNELS_CPU_LIMITS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Flops of `steps` steps; twelve sums hide the latency of a multiply-add.
double MultiplyAdd(int64_t steps, float* sink) {
  constexpr int kSums = 12;
  const hn::ScalableTag<float> d;
  hn::Vec<decltype(d)> sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sum[i] = hn::Set(d, *sink + static_cast<float>(i));
  const auto a = hn::Set(d, 0.99f + *sink), b = hn::Set(d, 0.01f + *sink);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sum[i] = hn::MulAdd(sum[i], a, b);
  }
#pragma GCC unroll 12
  for (int i = 1; i < kSums; ++i) sum[0] = hn::Add(sum[0], sum[i]);
  *sink = hn::GetLane(sum[0]);
  return 2.0 * static_cast<double>(steps) * kSums * static_cast<double>(hn::Lanes(d));
}

// Reads `bytes` bytes, a multiple of 1024.
void ReadMemory(const std::byte* from, int64_t bytes, float* sink) {
  const hn::ScalableTag<uint32_t> d;
  const auto* const words = reinterpret_cast<const uint32_t*>(from);
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d), b = hn::Zero(d), c = hn::Zero(d), e = hn::Zero(d);
  for (int64_t i = 0; i < bytes / 4; i += 4 * lanes) {
    a = hn::Or(a, hn::LoadU(d, words + i));
    b = hn::Or(b, hn::LoadU(d, words + i + lanes));
    c = hn::Or(c, hn::LoadU(d, words + i + 2 * lanes));
    e = hn::Or(e, hn::LoadU(d, words + i + 3 * lanes));
  }
  *sink += static_cast<float>(hn::GetLane(hn::Or(hn::Or(a, b), hn::Or(c, e))));
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
