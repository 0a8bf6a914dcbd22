#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_SSSE3)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/unit/kernels/amx_software.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each instruction set.
#include "kernels/cpu/attend_amx-inl.h"
#include "kernels/cpu/backward_task_amx-inl.h"
#include "kernels/cpu/decode_amx-inl.h"

#if HWY_TARGET == HWY_AVX3
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "runtime/base/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {

// See AmxTiles. Registers are a thread's, as those of the processor; they hold rubbish until they are loaded, and are
// there from Begin to End only.
class SoftwareTiles {
 public:
  void Begin() {
    ASSERT_FALSE(begun_) << "Begin without End in between";
    begun_ = true;
    std::memset(tiles_, 0xff, sizeof tiles_);
  }
  void End() {
    ASSERT_TRUE(begun_) << "End without Begin";
    begun_ = false;
  }
  template <int kTile>
  void Zero() {
    std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  template <int kTile>
  void Load(const void* from, size_t stride) {
    for (size_t r = 0; r < 16; ++r) std::memcpy(tiles_[kTile][r], static_cast<const char*>(from) + r * stride, 64);
  }
  template <int kTile>
  void LoadOnce(const void* from, size_t stride) {
    Load<kTile>(from, stride);
  }
  template <int kTile>
  void Store(void* to, size_t stride) {
    for (size_t r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tiles_[kTile][r], 64);
  }
  // As Intel's manual says of TDPBF16PS: even and odd elements of the pairs are summed apart, then added to each other
  // and to the sum; denormal factors are zeros.
  template <int kSum, int kA, int kB>
  void Dot() {
    ASSERT_TRUE(begun_) << "a product before Begin or after End";
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        float even = 0, odd = 0;
        for (int k = 0; k < 16; ++k) {
          const uint32_t a = tiles_[kA][m][k], b = tiles_[kB][k][n];
          even = std::fma(Factor(a << 16), Factor(b << 16), even);
          odd = std::fma(Factor(a & 0xffff0000u), Factor(b & 0xffff0000u), odd);
        }
        const float sum = std::bit_cast<float>(tiles_[kSum][m][n]) + (even + odd);
        tiles_[kSum][m][n] = std::bit_cast<uint32_t>(sum);
      }
    }
  }

 private:
  static float Factor(uint32_t bits) { return (bits & 0x7f800000u) == 0 ? 0.0f : std::bit_cast<float>(bits); }

  static inline thread_local bool begun_ = false;
  static inline thread_local uint32_t tiles_[8][16][16];
};

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_AVX3

#if HWY_ONCE
#include <memory>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/backward_amx.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/decode_amx.h"
#include "kernels/cpu/kernel.h"
#include "tests/unit/kernels/amx_software.h"

namespace tessera::testing {

const AttentionKernel* SoftwareAmxKernel() {
#if HWY_TARGETS & HWY_AVX3
  if (!cpu::HasBFloat16Dot()) return nullptr;
  static const std::unique_ptr<const AttentionKernel> kernel =
      cpu::MakeKernel({HWY_AVX3,
                       32,
                       true,
                       false,
                       cpu::N_AVX3::amx::RunTask<cpu::N_AVX3::SoftwareTiles>,
                       {cpu::N_AVX3::amx::RunBackwardTask<cpu::N_AVX3::SoftwareTiles>,
                        cpu::TileBackwardLayout::kUnitRows, cpu::TileBackwardFloats}},
                      "amx-in-software");
  return kernel.get();
#else
  return nullptr;
#endif
}

const DecodeKernel* SoftwareAmxDecoder() {
#if HWY_TARGETS & HWY_AVX3
  if (!cpu::HasBFloat16Dot()) return nullptr;
  using Tiles = cpu::N_AVX3::SoftwareTiles;
  static const std::unique_ptr<const DecodeKernel> decoder = cpu::MakeDecoder(
      cpu::DecodeTileInstructionSet(cpu::N_AVX3::amx::FoldOnTiles<Tiles>, cpu::N_AVX3::amx::BeginTiles<Tiles>,
                                    cpu::N_AVX3::amx::EndTiles<Tiles>),
      "amx-in-software");
  return decoder.get();
#else
  return nullptr;
#endif
}

}  // namespace tessera::testing
#endif  // HWY_ONCE
