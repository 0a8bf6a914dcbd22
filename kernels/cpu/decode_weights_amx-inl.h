// The softmax of decoding on a tile unit. Scores arrive as [key][pair], because keys are the product's left operand, so
// a vector holds 16 pairs and a pair's maximum and sums need no reduction; weights leave as [pair][key].
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_DECODE_WEIGHTS_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_DECODE_WEIGHTS_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_DECODE_WEIGHTS_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_DECODE_WEIGHTS_AMX_INL_H_
#endif

#include <hwy/highway.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/decode_amx.h"
#include "kernels/cpu/product_amx-inl.h"
#include "kernels/cpu/softmax-inl.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::amx {

// Turns a group's scores into weights a few keys at a time, for the tile unit to work meanwhile. Weights are rounded to
// bf16, and their rounded sum is kept beside the exact one: outputs are divided by it, so that a row which attends one
// key returns its value exactly.
class Weigher {
 public:
  Weigher(const DecodeState& state, int count) : state_(state), count_(count) {}

  // Calls of Piece() that a tile of 16 pairs takes.
  static int Pieces(int count) {
    return (count + DecodeTileLayout::kStepKeys - 1) / DecodeTileLayout::kStepKeys * kPiecesPerStep;
  }

  // Of pairs [first, first + pairs): `score` [count][score_stride] fp32 becomes `weight` [steps][kPairs][kStepKeys /
  // 2].
  void Start(int first, int pairs, float* score, int score_stride, uint32_t* weight) {
    first_ = first;
    left_ = pairs;
    score_ = score;
    stride_ = score_stride;
    weight_ = weight;
    key_ = 0;
  }

  HWY_NOINLINE void Piece() {
    if (key_ == 0) Open();
    if (key_ + kPieceKeys <= count_) {
      WeighPiece<true>();
    } else {
      WeighPiece<false>();
    }
    key_ += kPieceKeys;
    if (key_ % DecodeTileLayout::kStepKeys != 0) return;
    Turn();
    if (key_ >= count_) Close();
  }

 private:
  static constexpr int kPieceKeys = 8;
  static constexpr int kPiecesPerStep = DecodeTileLayout::kStepKeys / kPieceKeys;

  int Lanes() const { return std::min(left_, kTileRows); }

  // Settles the reference scores of 16 pairs. Lanes without a pair hold what is never used.
  void Open() {
    factor_ = state_.scale;
    if (state_.soft_cap > 0.0f) {
      for (int j = 0; j < count_; ++j) {
        ModifyScores(score_ + j * stride_, kTileRows, state_.scale, state_.soft_cap, 0.0f, 0.0f, 0.0f);
      }
      factor_ = 1.0f;
    }
    __m512 largest[4];
    for (int i = 0; i < 4; ++i) largest[i] = _mm512_load_ps(score_ + std::min(i, count_ - 1) * stride_);
    int j = 4;
    for (; j + 4 <= count_; j += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) largest[i] = _mm512_max_ps(largest[i], _mm512_load_ps(score_ + (j + i) * stride_));
    }
    for (; j < count_; ++j) largest[0] = _mm512_max_ps(largest[0], _mm512_load_ps(score_ + j * stride_));
    const __m512 most = _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3]));
    const auto pairs = static_cast<__mmask16>((1u << Lanes()) - 1);
    const __m512 max = _mm512_maskz_loadu_ps(pairs, state_.max + first_);
    const __m512 scores = _mm512_mul_ps(most, _mm512_set1_ps(factor_));
    const __mmask16 above =
        _mm512_mask_cmp_ps_mask(pairs, _mm512_sub_ps(scores, max), _mm512_set1_ps(kMaxSlack), _CMP_GT_OQ);
    if (HWY_UNLIKELY(above != 0)) Raise(above, scores);
    _mm512_store_ps(max_, _mm512_maskz_loadu_ps(pairs, state_.max + first_));
    _mm512_store_ps(sum_, _mm512_setzero_ps());
    _mm512_store_ps(rounded_sum_, _mm512_setzero_ps());
  }

  // Makes `scores` the reference scores of the lanes of `raised`. All that a pair has folded is in its output by now:
  // products of a block come before the weights of the next.
  HWY_NOINLINE void Raise(__mmask16 raised, __m512 scores) {
    alignas(64) float score[kTileRows];
    _mm512_store_ps(score, scores);
    for (int lane = 0; lane < Lanes(); ++lane) {
      if ((raised >> lane & 1) == 0) continue;
      const auto pair = static_cast<size_t>(first_ + lane);
      const float shrink = std::exp(state_.max[pair] - score[lane]);
      float* const rounded = state_.weight + pair * kDecodeLanes;
      _mm512_store_ps(rounded, _mm512_mul_ps(_mm512_load_ps(rounded), _mm512_set1_ps(shrink)));
      Rescale(shrink, state_.v_stride, state_.sum + pair * kDecodeLanes, state_.output + pair * state_.v_stride);
      state_.max[pair] = score[lane];
    }
  }

  // About nine multiplier operations a vector, which run at one a cycle while the tile unit works.
  template <bool kWhole>
  HWY_INLINE void WeighPiece() {
    const __m512 factor = _mm512_set1_ps(factor_), log2e = _mm512_set1_ps(kLog2E), max = _mm512_load_ps(max_);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    // Of this object the loop uses copies: the compiler must take each store for one to its members.
    const float* const scores = score_ + key_ * stride_;
    const int stride = stride_, count = count_ - key_;
    const auto weigh = [=](int key) HWY_ATTR {
      if (!kWhole && key >= count) return _mm512_setzero_ps();
      // The difference is taken in units of the score, where it is exact for the largest ones.
      const __m512 score = _mm512_load_ps(scores + key * stride);
      return bfloat16::Exp2(_mm512_mul_ps(_mm512_fmsub_ps(score, factor, max), log2e));
    };
    __m512 sum = _mm512_setzero_ps(), rounded_sum = _mm512_setzero_ps();
    uint32_t* const joined = joined_ + key_ % DecodeTileLayout::kStepKeys / 2 * kTileRows;
#pragma GCC unroll 4
    for (int i = 0; i < kPieceKeys; i += 2) {
      const __m512 even = weigh(i), odd = weigh(i + 1);
      sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
      const __m512i pairs = JoinPairs(even, odd);
      rounded_sum = _mm512_add_ps(rounded_sum, _mm512_add_ps(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
                                                             _mm512_castsi512_ps(_mm512_and_si512(pairs, upper))));
      _mm512_store_si512(joined + i / 2 * kTileRows, pairs);
    }
    _mm512_store_ps(sum_, _mm512_add_ps(_mm512_load_ps(sum_), sum));
    _mm512_store_ps(rounded_sum_, _mm512_add_ps(_mm512_load_ps(rounded_sum_), rounded_sum));
  }

  // The step's weights to rows of pairs.
  HWY_INLINE void Turn() {
    __m512i v[kTileRows];
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) v[i] = _mm512_load_si512(joined_ + i * kTileRows);
    bfloat16::Transpose(v);
    const int step = key_ / DecodeTileLayout::kStepKeys - 1;
    uint32_t* const to = weight_ + step * DecodeTileLayout::kPairs * kTileRows;
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) _mm512_store_si512(to + i * kTileRows, v[i]);
  }

  // Adds what the block summed up, and goes on to the next 16 pairs.
  void Close() {
    for (int lane = 0; lane < Lanes(); ++lane) {
      state_.sum[static_cast<size_t>(first_ + lane) * kDecodeLanes] += sum_[lane];
      state_.weight[static_cast<size_t>(first_ + lane) * kDecodeLanes] += rounded_sum_[lane];
    }
    first_ += kTileRows;
    left_ -= kTileRows;
    score_ += kTileRows;
    weight_ += kTileRows * kTileRows;
    key_ = 0;
  }

  const DecodeState& state_;
  const int count_;
  int first_ = 0, left_ = 0, stride_ = 0, key_ = 0;
  float* score_ = nullptr;
  uint32_t* weight_ = nullptr;
  float factor_ = 1.0f;
  alignas(64) float max_[kTileRows];
  alignas(64) float sum_[kTileRows];
  alignas(64) float rounded_sum_[kTileRows];
  alignas(64) uint32_t joined_[kTileRows * kTileRows];
};

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
