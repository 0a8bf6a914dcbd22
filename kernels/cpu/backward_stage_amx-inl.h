// A unit of the backward pass on its way through the tile unit: S and dP become P and dS.
//
// P and dS are rounded and packed for three products: pairs of rows for those with output gradients and queries, pairs
// of keys (dS only) for that with keys.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_BACKWARD_STAGE_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BACKWARD_STAGE_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_BACKWARD_STAGE_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_BACKWARD_STAGE_AMX_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/backward_operands_amx-inl.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::amx {

// What a unit meets in the packed block: its row r attends key j when bit j of bits[r] is set.
struct UnitBlock {
  int unit = -1;         // none
  int groups = 0;        // of 32 keys, the rest is hidden
  bool partial = false;  // a bit is clear
  uint64_t bits[kUnitRows];
};

// A unit on its way: after Advance its S and dP are known, one Advance later P and dS, and then its dQ.
struct UnitStage : UnitBlock {
  int block = 0;                // of keys, by parity
  int parity = 0;               // of S, dP and pairs of dS
  int pass = 0, slot = 0;       // where P and dS are kept
  bool differentiated = false;  // S and dP are P and dS
  bool active() const { return unit >= 0; }
};

// Element [key][row] of [kKeyBlock][kTileRows] pairs of rows.
HWY_INLINE float Half(const uint32_t* pairs, int key, int row) {
  const uint32_t pair = pairs[key * kTileRows + row % kTileRows];
  return FloatFromBFloat16(static_cast<uint16_t>(row < kTileRows ? pair : pair >> 16));
}

// Bit l: row `first_row` + l attends key j.
HWY_INLINE __mmask16 Seen(const uint64_t* bits, int first_row, int j) {
  const __m512i bit = _mm512_set1_epi64(static_cast<int64_t>(uint64_t{1} << j));
  const __mmask8 low = _mm512_test_epi64_mask(_mm512_loadu_si512(bits + first_row), bit);
  const __mmask8 high = _mm512_test_epi64_mask(_mm512_loadu_si512(bits + first_row + 8), bit);
  return static_cast<__mmask16>(low | high << 8);
}

// P and dS / scale of two keys, 16 apart; P is exp2(scale log2(e) S - log2(e) LSE).
inline HWY_NOINLINE void WeighKeys(const TileOperands& operands, float scale, const UnitStage& stage, int i) {
  const int key = i / kTileRows * kGroup + i % kTileRows;
  const __m512 factor = _mm512_set1_ps(scale * kLog2E), log2e = _mm512_set1_ps(kLog2E);
  __m512 lse[2], delta[2], gradient[2][2];
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    lse[c] = _mm512_mul_ps(_mm512_load_ps(operands.Lse(stage.unit) + c * kLanes), log2e);
    delta[c] = _mm512_load_ps(operands.Delta(stage.unit) + c * kLanes);
  }
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const int j = key + h * kTileRows;
    const float* const scores = operands.Scores(stage.parity) + j * kUnitRows;
    const float* const gradients = operands.Gradients(stage.parity) + j * kUnitRows;
    __m512 p[2];
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      p[c] = _mm512_load_ps(scores + c * kLanes);
      gradient[h][c] = _mm512_load_ps(gradients + c * kLanes);
      if (HWY_LIKELY(!stage.differentiated)) {
        p[c] = bfloat16::Exp2(_mm512_fmsub_ps(p[c], factor, lse[c]));
        gradient[h][c] = _mm512_mul_ps(p[c], _mm512_sub_ps(gradient[h][c], delta[c]));
      }
      if (HWY_UNLIKELY(stage.partial)) {
        const __mmask16 seen = Seen(stage.bits, c * kLanes, j);
        p[c] = _mm512_maskz_mov_ps(seen, p[c]);
        gradient[h][c] = _mm512_maskz_mov_ps(seen, gradient[h][c]);
      }
    }
    _mm512_store_si512(operands.Probability(stage.pass, stage.slot) + j * kTileRows, JoinPairs(p[0], p[1]));
    _mm512_store_si512(operands.ScoreGradient(stage.pass, stage.slot) + j * kTileRows,
                       JoinPairs(gradient[h][0], gradient[h][1]));
  }
  uint32_t* const pairs = operands.GradientPairs(stage.parity) + i * kUnitRows;
  _mm512_store_si512(pairs, JoinPairs(gradient[0][0], gradient[1][0]));
  _mm512_store_si512(pairs + kLanes, JoinPairs(gradient[0][1], gradient[1][1]));
}

// Keys that no row of the unit attends, for the units of the pass that do.
HWY_INLINE void HideGroup(const TileOperands& operands, const UnitStage& stage, int g) {
  constexpr size_t kBytes = kGroup * kTileRows * sizeof(uint32_t);
  std::memset(operands.Probability(stage.pass, stage.slot) + g * kGroup * kTileRows, 0, kBytes);
  std::memset(operands.ScoreGradient(stage.pass, stage.slot) + g * kGroup * kTileRows, 0, kBytes);
}

// S and dP of a unit to P and dS, row by row and back: scores need more than a scale.
inline void Differentiate(const TileOperands& operands, const BackwardRows& rows, int64_t first_key, UnitStage* stage) {
  const int count = stage->groups * kGroup;
  float* const scores = operands.Rows();
  float* const gradients = scores + kUnitRows * kKeyBlock;
  float* const slope = gradients + kUnitRows * kKeyBlock;
  TransposeDwords(operands.Scores(stage->parity), kUnitRows, count, kUnitRows, scores, kKeyBlock);
  TransposeDwords(operands.Gradients(stage->parity), kUnitRows, count, kUnitRows, gradients, kKeyBlock);
  for (int r = 0; r < kUnitRows; ++r) {
    if (stage->bits[r] == 0) continue;
    rows.Differentiate(stage->unit * kUnitRows + r, first_key, count, scores + r * kKeyBlock, gradients + r * kKeyBlock,
                       slope);
  }
  TransposeDwords(scores, kKeyBlock, kUnitRows, count, operands.Scores(stage->parity), kUnitRows);
  TransposeDwords(gradients, kKeyBlock, kUnitRows, count, operands.Gradients(stage->parity), kUnitRows);
  stage->differentiated = true;
}

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
