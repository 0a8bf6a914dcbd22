// Finds out whether AMX may be used, and how fast it is.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/amx.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each instruction set.
#include "kernels/cpu/tiles_amx-inl.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {

double TilePeak(int64_t steps, float* sink) {
  // Data as attention has it: a tile unit runs zeros faster than numbers.
  alignas(64) uint16_t data[4][16 * 32];
  uint32_t state = 1;
  for (auto& tile : data) {
    for (uint16_t& half : tile) {
      state = state * 1664525u + 1013904223u;
      half = static_cast<uint16_t>(0x3f80u + (state >> 24) + (state >> 16 & 0x8000u));  // +-[1, 4)
    }
  }
  alignas(64) float sums[16 * 16];
  AmxTiles tiles;
  tiles.Begin();
  tiles.Zero<0>();
  tiles.Zero<1>();
  tiles.Zero<2>();
  tiles.Zero<3>();
  for (int64_t step = 0; step < steps; ++step) {
    tiles.Load<4>(data[0], 64);
    tiles.Load<6>(data[2], 64);
    tiles.Dot<0, 4, 6>();
    tiles.Load<7>(data[3], 64);
    tiles.Dot<1, 4, 7>();
    tiles.Load<5>(data[1], 64);
    tiles.Dot<2, 5, 6>();
    tiles.Dot<3, 5, 7>();
  }
  tiles.Store<0>(sums, 64);
  tiles.End();
  *sink += sums[0];
  return static_cast<double>(steps) * 4 * 2 * 16 * 16 * 32;
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
#include "kernels/cpu/attend.h"

#if HWY_TARGETS & HWY_AVX3
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tessera::cpu {

#if HWY_TARGETS & HWY_AVX3
namespace {

bool ProcessorHasAmx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return false;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;  // configuration and data
  return (low & kTileState) == kTileState;
}

// Linux keeps the 8 KiB of tile state from processes that have not asked for it.
bool SystemGrantsTiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool HasAmx() {
  static const bool has = ProcessorHasAmx() && SystemGrantsTiles();
  return has;
}
double AmxDotPeak(int64_t steps, float* sink) {
  return N_AVX3::TilePeak(steps, sink);
}
#else
bool HasAmx() {
  return false;
}
double AmxDotPeak(int64_t, float*) {
  return 0;
}
#endif

}  // namespace tessera::cpu
#endif  // HWY_ONCE
