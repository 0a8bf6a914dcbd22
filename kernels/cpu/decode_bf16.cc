// Decoding with the bf16 dot products of AVX-512 (vdpbf16ps). Cached rows are multiplied as they lie: scores need no
// conversion at all, values one interleaving of neighbouring rows on the way. Twice the arithmetic of fp32 per
// instruction; sums stay fp32. Weights are rounded to bf16, and the outputs are divided by the sum of the rounded ones,
// so that a row which attends one key returns its value exactly.
#include "kernels/cpu/decode.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <hwy/targets.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <span>

#include "kernels/cpu/decode_ahead_bf16-inl.h"
#include "kernels/cpu/decode_products_bf16-inl.h"

// GCC 12 warns of the operand that unmasked intrinsics leave undefined on purpose (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// The instruction set holds for this namespace only: as a compiler flag it would leak into inline functions shared with
// other files.
HWY_PUSH_ATTRIBUTES("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
namespace tessera::cpu::bfloat16 {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kMaxSlack = 5.5f;  // as in softmax-inl.h

void LoadQuery(const DecodeState& state, int pair, const void* row) {
  uint16_t* const to = reinterpret_cast<uint16_t*>(state.query) + static_cast<size_t>(pair) * state.qk_stride;
  std::memcpy(to, row, static_cast<size_t>(state.qk_width) * 2);
  std::fill(to + state.qk_width, to + state.qk_stride, 0);
  if (state.query_factor == 1.0f) return;
  for (int i = 0; i < state.qk_width; ++i) {
    to[i] = BFloat16FromFloat(state.query_factor * FloatFromBFloat16(to[i]));
  }
}

// 2^x, 0 for x = -inf. The polynomial is that of softmax-inl.h.
inline __m512 Exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(1.326472722e-03f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.671512640e-03f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550733743e-02f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402224209e-01f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931469776e-01f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, _mm512_sub_ps(x, f));
}

inline void CapScores(float* row, int count, float scale, float cap) {
  for (int i = 0; i < count; ++i) row[i] = cap * std::tanh(row[i] * scale / cap);
}

// As SoftmaxRow of softmax-inl.h, but leaves the weights rounded to bf16 in the first half of the row.
inline void Softmax(const DecodeState& state, int count, int pair, float* row, float* output) {
  const bool capped = state.soft_cap > 0.0f;
  if (capped) CapScores(row, count, state.scale, state.soft_cap);
  std::fill(row + count, row + (count + kHalves - 1) / kHalves * kHalves, -std::numeric_limits<float>::infinity());
  const __m512 factor = _mm512_set1_ps(capped ? 1.0f : state.scale);
  __m512 largest = _mm512_load_ps(row);
  for (int i = 16; i < count; i += 16) largest = _mm512_max_ps(largest, _mm512_load_ps(row + i));
  float* const lane_sums = state.sum + static_cast<size_t>(pair) * kDecodeLanes;
  float* const lane_weights = state.weight + static_cast<size_t>(pair) * kDecodeLanes;
  __m512 sum = _mm512_load_ps(lane_sums), weight = _mm512_load_ps(lane_weights);
  __m512 max = _mm512_set1_ps(state.max[pair]);
  if (_mm512_cmp_ps_mask(_mm512_fmsub_ps(largest, factor, max), _mm512_set1_ps(kMaxSlack), _CMP_GT_OQ) != 0) {
    const float raised = _mm512_reduce_max_ps(largest) * (capped ? 1.0f : state.scale);
    const __m512 shrink = _mm512_set1_ps(std::exp(state.max[pair] - raised));
    sum = _mm512_mul_ps(sum, shrink);
    weight = _mm512_mul_ps(weight, shrink);
    for (int i = 0; i < state.v_stride; i += 16) {
      _mm512_store_ps(output + i, _mm512_mul_ps(_mm512_load_ps(output + i), shrink));
    }
    state.max[pair] = raised;
    max = _mm512_set1_ps(raised);
  }
  const __m512 log2e = _mm512_set1_ps(kLog2E);
  for (int i = 0; i < count; i += kHalves) {
    const __m512 low = Exp2(_mm512_mul_ps(_mm512_fmsub_ps(_mm512_load_ps(row + i), factor, max), log2e));
    const __m512 high = Exp2(_mm512_mul_ps(_mm512_fmsub_ps(_mm512_load_ps(row + i + 16), factor, max), log2e));
    sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
    const __m512i rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(rounded, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    weight = _mm512_add_ps(weight, _mm512_add_ps(even, odd));
    _mm512_store_si512(reinterpret_cast<uint16_t*>(row) + i, rounded);  // behind what is still to be read
  }
  _mm512_store_ps(lane_sums, sum);
  _mm512_store_ps(lane_weights, weight);
}

template <int kRows>
__attribute__((noinline)) void ScoreTile(const DecodeState& state, const DecodeHeadBlock& block, Ahead& ahead,
                                         int first) {
  float* const scores = state.score + static_cast<size_t>(first) * kDecodeKeys;
  Scores<kRows>(state, block, ahead,
                reinterpret_cast<const uint16_t*>(state.query) + static_cast<size_t>(first) * state.qk_stride, scores);
  for (int r = 0; r < kRows; ++r) {
    Softmax(state, block.count, first + r, scores + r * kDecodeKeys,
            state.output + static_cast<size_t>(first + r) * state.v_stride);
  }
}

template <int kRows, Values kValues>
__attribute__((noinline)) void ValueTile(const DecodeState& state, const DecodeHeadBlock& block, Ahead& ahead,
                                         int first) {
  AddValues<kRows, kValues>(state, block, ahead, state.score + static_cast<size_t>(first) * kDecodeKeys,
                            state.output + static_cast<size_t>(first) * state.v_stride);
}

using TileFunction = void (*)(const DecodeState&, const DecodeHeadBlock&, Ahead&, int);
constexpr TileFunction kScoreRows[] = {nullptr,      ScoreTile<1>, ScoreTile<2>, ScoreTile<3>,
                                       ScoreTile<4>, ScoreTile<5>, ScoreTile<6>};
template <Values kValues>
constexpr TileFunction kValueRows[] = {nullptr,
                                       ValueTile<1, kValues>,
                                       ValueTile<2, kValues>,
                                       ValueTile<3, kValues>,
                                       ValueTile<4, kValues>,
                                       ValueTile<5, kValues>,
                                       ValueTile<6, kValues>};
static_assert(std::size(kScoreRows) == kDecodeRows + 1 && std::size(kValueRows<Values::kKept>) == kDecodeRows + 1);

// The pairs of all heads that see a block, as register tiles.
class Tiles {
 public:
  Tiles(int head_pairs, std::span<const DecodeRun> runs) : head_pairs_(head_pairs), runs_(runs) {
    for (const DecodeRun& run : runs) count_ += TilesOf(run);
  }
  // Of each head.
  int count() const { return count_; }
  void Score(const DecodeState& state, const DecodeHeadBlock& rows, int head, Ahead& ahead) const {
    ForEach(head, [&](int pair, int pairs) { kScoreRows[pairs](state, rows, ahead, pair); });
  }
  void AddValues(const DecodeState& state, const DecodeHeadBlock& rows, int head, Ahead& ahead) const {
    const TileFunction* add = count_ == 1 ? kValueRows<Values::kRows> : kValueRows<Values::kRowsAndKeep>;
    ForEach(head, [&](int pair, int pairs) {
      add[pairs](state, rows, ahead, pair);
      add = kValueRows<Values::kKept>;
    });
  }

 private:
  static int TilesOf(const DecodeRun& run) { return (run.count + kDecodeRows - 1) / kDecodeRows; }
  template <class Tile>
  void ForEach(int head, const Tile& tile) const {
    for (const DecodeRun& run : runs_) {
      // As equal as they can be: a tile of two rows takes as many loads as one of six.
      int first = head_pairs_ * head + run.first, left = run.count;
      for (int tiles = TilesOf(run); tiles > 0; --tiles) {
        const int rows = (left + tiles - 1) / tiles;
        tile(first, rows);
        first += rows;
        left -= rows;
      }
    }
  }

  const int head_pairs_;
  const std::span<const DecodeRun> runs_;
  int count_ = 0;
};

void Fold(const DecodeState& state, const DecodeBlock& block, const DecodeBlock& next, int head_pairs,
          std::span<const DecodeRun> runs) {
  const Tiles tiles(head_pairs, runs);
  const bool once = tiles.count() == 1;
  const int score_steps = tiles.count() * ScoreSteps(state, block.count);
  const int value_steps = tiles.count() * ValueSteps(state, block.count);
  const int key_bytes = 2 * state.qk_width, value_bytes = 2 * state.v_width;
  const DecodeHeadBlock behind = next.head(0);
  if (state.value_in_key) {
    for (int head = 0; head < block.heads; ++head) {
      const DecodeHeadBlock rows = block.head(head);
      const DecodeHeadBlock then = head + 1 < block.heads ? block.head(head + 1) : behind;
      Ahead ahead(rows.key, rows.count, then.key, then.count, key_bytes, score_steps + value_steps, false);
      tiles.Score(state, rows, head, ahead);
      tiles.AddValues(state, rows, head, ahead);
    }
    return;
  }
  // All heads' scores come before the first head's values: a page has its keys behind each other, then its values.
  for (int head = 0; head < block.heads; ++head) {
    const DecodeHeadBlock rows = block.head(head);
    const DecodeRows then = head + 1 < block.heads ? block.head(head + 1).key : block.head(0).value;
    Ahead ahead(rows.key, rows.count, then, rows.count, key_bytes, score_steps, once);
    tiles.Score(state, rows, head, ahead);
  }
  for (int head = 0; head < block.heads; ++head) {
    const DecodeHeadBlock rows = block.head(head);
    const bool last = head + 1 == block.heads;
    Ahead ahead(rows.value, rows.count, last ? behind.key : block.head(head + 1).value,
                last ? behind.count : rows.count, value_bytes, value_steps, once);
    tiles.AddValues(state, rows, head, ahead);
  }
}

void Add(float factor, const float* from, int width, float* to) {
  const __m512 f = _mm512_set1_ps(factor);
  for (int i = 0; i < width; i += 16) {
    _mm512_store_ps(to + i, _mm512_fmadd_ps(f, _mm512_load_ps(from + i), _mm512_load_ps(to + i)));
  }
}

double DotPeak(int64_t steps, float* sink) {
  constexpr int kSums = 24;  // two instructions a cycle, six cycles each, and as many again in hand
  __m512 sum[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_ps(*sink + static_cast<float>(i));
  const __m512bh a = AsHalves(_mm512_set1_epi32(static_cast<int>(*sink) + 0x3f7d3f7d));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], a, a);
  }
#pragma GCC unroll 24
  for (int i = 1; i < kSums; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  *sink = _mm512_cvtss_f32(sum[0]);
  return 4.0 * static_cast<double>(steps) * kSums * 16;
}

}  // namespace
}  // namespace tessera::cpu::bfloat16
HWY_POP_ATTRIBUTES

namespace tessera::cpu {

const DecodeInstructionSet& DecodeBFloat16InstructionSet() {
  static constexpr DecodeInstructionSet set{HWY_AVX3, bfloat16::LoadQuery, bfloat16::Fold, bfloat16::Add, true};
  return set;
}
bool HasBFloat16Dot() {
  return __builtin_cpu_supports("avx512bf16") != 0;
}
double BFloat16DotPeak(int64_t steps, float* sink) {
  return bfloat16::DotPeak(steps, sink);
}

}  // namespace tessera::cpu
#else
namespace tessera::cpu {

const DecodeInstructionSet& DecodeBFloat16InstructionSet() {
  static constexpr DecodeInstructionSet none;
  return none;
}
bool HasBFloat16Dot() {
  return false;
}
double BFloat16DotPeak(int64_t, float*) {
  return 0;
}

}  // namespace tessera::cpu
#endif
