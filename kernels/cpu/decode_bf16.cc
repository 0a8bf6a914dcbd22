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
#include <limits>

// GCC 12 warns of the operand that unmasked intrinsics leave undefined on purpose (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// The instruction set holds for this namespace only: as a compiler flag it would leak into inline functions shared with
// other files.
HWY_PUSH_ATTRIBUTES("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
namespace tessera::cpu::bfloat16 {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kMaxSlack = 5.5f;  // as in softmax-inl.h
constexpr int kHalves = 32;        // bf16 elements of a vector

inline __m512bh AsHalves(__m512i v) {
  return reinterpret_cast<__m512bh>(v);
}

// Loads 32 elements of a row, or as many as it has from `i` on, and zeros.
inline __m512i LoadHalves(const std::byte* row, int i, int width) {
  if (width - i >= kHalves) return _mm512_loadu_si512(row + 2 * i);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << (width - i)) - 1, row + 2 * i);
}

void LoadQuery(const DecodeState& state, int pair, const void* row) {
  uint16_t* const to = reinterpret_cast<uint16_t*>(state.query) + static_cast<size_t>(pair) * state.qk_stride;
  std::memcpy(to, row, static_cast<size_t>(state.qk_width) * 2);
  std::fill(to + state.qk_width, to + state.qk_stride, 0);
  if (state.query_factor == 1.0f) return;
  for (int i = 0; i < state.qk_width; ++i) {
    to[i] = BFloat16FromFloat(state.query_factor * FloatFromBFloat16(to[i]));
  }
}

// Where the products with the values read them.
enum class Values : uint8_t {
  kRows,         // in the cache's rows, interleaved on the way
  kRowsAndKeep,  // likewise, and left in the state for the block's other tiles
  kKept
};

// The share of one tile of pairs in asking for the next block. Every step of the products asks for a line or a few:
// asked for in bursts, lines fill the queue of outstanding misses and hold up the products behind them.
class Ahead {
 public:
  // `turn` of `turns` tiles.
  Ahead(const DecodeState& state, const DecodeBlock& next, int turn, int turns) : next_(next) {
    // A step meets four lines that may be asked for. Under a latent cache scores and values read the same rows: the
    // scores ask for the even ones, the values for the odd ones.
    const int lines = state.value_in_key ? 2 : 4;
    begin_ = lines * turn / turns;
    end_ = next.count == kDecodeKeys ? lines * (turn + 1) / turns : begin_;
    whole_ = begin_ == 0 && end_ == 4;
    rows_of_four_ = whole_ && state.qk_width == 4 * kHalves;
  }
  // Steps of the scores are 32 columns of keys j to j + 3: line 0 is that of the first, 1 of the third, 2 and 3 of the
  // others.
  void AskKeys(int j, int column) const {
    if (rows_of_four_) {
#pragma GCC unroll 4
      for (int line = 0; line < 4; ++line) Ask(next_.key[j + column / kHalves] + 2 * kHalves * line);
      return;
    }
    if (whole_) {
#pragma GCC unroll 4
      for (int line = 0; line < 4; ++line) Ask(next_.key[j + line] + 2 * column);
      return;
    }
    for (int line = begin_; line < end_; ++line) Ask(next_.key[j + (line % 2) * 2 + line / 2] + 2 * column);
  }
  // Steps of the values are 64 columns of values j and j + 1: lines 0 and 1 are those of the second.
  void AskValues(int j, int column) const {
    if (whole_) {
#pragma GCC unroll 4
      for (int line = 0; line < 4; ++line) Ask(next_.value[j + line / 2] + 2 * (column + line % 2 * kHalves));
      return;
    }
    for (int line = begin_; line < end_; ++line) {
      Ask(next_.value[j + 1 - line / 2] + 2 * (column + line % 2 * kHalves));
    }
  }
  // Lines of a latent row that are not value.
  void AskRest(const DecodeState& state, int j) const {
    for (int column = state.v_width; column < state.qk_width; column += kHalves) Ask(next_.key[j + 1] + 2 * column);
  }
  bool asks() const {
    return begin_ < end_;
  }

 private:
  // Not _mm_prefetch: GCC 12 takes a function that does nothing else for one without effect, and drops its calls.
  static void Ask(const std::byte* address) {
    asm volatile("prefetcht0 (%0)" ::"r"(address));
  }

  const DecodeBlock& next_;
  int begin_, end_;    // of the lines of a step
  bool whole_;         // all four, the common case of one tile: without a loop products are a third faster
  bool rows_of_four_;  // and a step may ask for a whole row: in order, keys 128 wide come 3 to 6 % faster
};

// Nothing to do before the products: they read the rows as they lie, and prefetch the next block's between each other.
void LoadBlock(const DecodeState& /*state*/, const DecodeBlock& /*block*/, const DecodeBlock& /*next*/) {}

// The sums of four vectors' lanes.
inline __m128 FourSums(const __m512* v) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512d ab2 = _mm512_castps_pd(ab), cd2 = _mm512_castps_pd(cd);
  const __m512 sums =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// scores[r][j] = query r . key j. Missing keys of the last four repeat the first of them; their scores are not used.
template <int kRows>
inline void Scores(const DecodeState& state, const DecodeBlock& block, const Ahead& ahead, const uint16_t* query) {
  const int whole = state.qk_width / kHalves * kHalves;
  for (int j = 0; j < block.count; j += 4) {
    const std::byte* keys[4];
    for (int k = 0; k < 4; ++k) keys[k] = block.key[j + k < block.count ? j + k : j];
    __m512 sum[kRows][4];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum[r][k] = _mm512_setzero_ps();
    }
    for (int i = 0; i < whole; i += kHalves) {
      ahead.AskKeys(j, i);
      __m512bh key[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) key[k] = AsHalves(_mm512_loadu_si512(keys[k] + 2 * i));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512bh q = AsHalves(_mm512_load_si512(query + r * state.qk_stride + i));
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sum[r][k] = _mm512_dpbf16_ps(sum[r][k], q, key[k]);
      }
    }
    if (whole < state.qk_width) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const __m512bh key = AsHalves(LoadHalves(keys[k], whole, state.qk_width));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sum[r][k] =
              _mm512_dpbf16_ps(sum[r][k], AsHalves(_mm512_load_si512(query + r * state.qk_stride + whole)), key);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) _mm_store_ps(state.score + r * kDecodeKeys + j, FourSums(sum[r]));
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

// Pairs of value rows as vdpbf16ps wants them: element 2i from the even row, 2i + 1 from the odd one.
struct Interleave {
  Interleave() {
    alignas(64) uint16_t order[2][kHalves];
    for (int i = 0; i < kHalves; ++i) {
      order[0][i] = static_cast<uint16_t>(i / 2 + (i % 2) * kHalves);
      order[1][i] = static_cast<uint16_t>(order[0][i] + kHalves / 2);
    }
    low = _mm512_load_si512(order[0]);
    high = _mm512_load_si512(order[1]);
  }
  __m512i low, high;  // which elements make columns 0 to 15 and 16 to 31
};

// output[r][c] += sum over keys of weight and value for columns c in [first, first + 16 kVectors).
template <int kRows, int kVectors, Values kValues>
inline void AddColumns(const DecodeState& state, const DecodeBlock& block, const Ahead& ahead,
                       const Interleave& interleave, int first, float* output) {
  static_assert(kVectors % 2 == 0);
  output += first;
  uint16_t* kept = reinterpret_cast<uint16_t*>(state.value) + 2 * first;
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) sum[r][c] = _mm512_load_ps(output + r * state.v_stride + 16 * c);
  }
  __mmask32 present[kVectors / 2];  // columns of the value that there are
  for (int c = 0; c < kVectors / 2; ++c) {
    const int left = state.v_width - first - kHalves * c;
    present[c] = left >= kHalves ? ~__mmask32{0} : (__mmask32{1} << std::max(left, 0)) - 1;
  }
  const int32_t* const weights = reinterpret_cast<const int32_t*>(state.score);
  for (int j = 0; j < block.count; j += 2, kept += 2 * state.v_stride) {
    __m512bh columns[kVectors];
    if constexpr (kValues == Values::kKept) {
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) columns[c] = AsHalves(_mm512_load_si512(kept + kHalves * c));
    } else {
      const bool odd = j + 1 < block.count;  // a row that is missing is zero, not just its weight: 0 * inf is NaN
      const std::byte* const rows[2] = {block.value[j] + 2 * first, block.value[odd ? j + 1 : j] + 2 * first};
#pragma GCC unroll 4
      for (int c = 0; c < kVectors / 2; ++c) {
        const __m512i a = _mm512_maskz_loadu_epi16(present[c], rows[0] + 2 * kHalves * c);
        const __m512i b = _mm512_maskz_loadu_epi16(odd ? present[c] : 0, rows[1] + 2 * kHalves * c);
        const __m512i low = _mm512_permutex2var_epi16(a, interleave.low, b);
        const __m512i high = _mm512_permutex2var_epi16(a, interleave.high, b);
        if constexpr (kValues == Values::kRowsAndKeep) {
          _mm512_store_si512(kept + 2 * kHalves * c, low);
          _mm512_store_si512(kept + 2 * kHalves * c + kHalves, high);
        }
        columns[2 * c] = AsHalves(low);
        columns[2 * c + 1] = AsHalves(high);
      }
    }
    ahead.AskValues(j, first);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh weight = AsHalves(_mm512_set1_epi32(weights[r * kDecodeKeys + j / 2]));
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], weight, columns[c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) _mm512_store_ps(output + r * state.v_stride + 16 * c, sum[r][c]);
  }
}

template <int kRows, Values kValues>
__attribute__((noinline)) void FoldTile(const DecodeState& state, const DecodeBlock& block, const Ahead& ahead,
                                        int first) {
  Scores<kRows>(state, block, ahead,
                reinterpret_cast<const uint16_t*>(state.query) + static_cast<size_t>(first) * state.qk_stride);
  float* const output = state.output + static_cast<size_t>(first) * state.v_stride;
  for (int r = 0; r < kRows; ++r) {
    Softmax(state, block.count, first + r, state.score + r * kDecodeKeys, output + r * state.v_stride);
  }
  if (state.value_in_key && ahead.asks()) {
    for (int j = 0; j < block.count; j += 2) ahead.AskRest(state, j);
  }
  const Interleave interleave;
  int i = 0;
  for (; i + 64 <= state.v_stride; i += 64) AddColumns<kRows, 4, kValues>(state, block, ahead, interleave, i, output);
  if (i < state.v_stride) AddColumns<kRows, 2, kValues>(state, block, ahead, interleave, i, output);
}

using FoldFunction = void (*)(const DecodeState&, const DecodeBlock&, const Ahead&, int);
template <int kRows>
constexpr FoldFunction kFoldRows[] = {FoldTile<kRows, Values::kRows>, FoldTile<kRows, Values::kRowsAndKeep>,
                                      FoldTile<kRows, Values::kKept>};

void Fold(const DecodeState& state, const DecodeBlock& block, const DecodeBlock& next, int first, int pairs) {
  static constexpr const FoldFunction* kFold[] = {nullptr,      kFoldRows<1>, kFoldRows<2>, kFoldRows<3>,
                                                  kFoldRows<4>, kFoldRows<5>, kFoldRows<6>};
  static_assert(std::size(kFold) == kDecodeRows + 1);
  const int tiles = (pairs + kDecodeRows - 1) / kDecodeRows;
  for (int tile = 0; tile < tiles; ++tile) {
    const Ahead ahead(state, next, tile, tiles);
    const Values values = tiles == 1 ? Values::kRows : tile == 0 ? Values::kRowsAndKeep : Values::kKept;
    const int rows = std::min(pairs - tile * kDecodeRows, kDecodeRows);
    kFold[rows][static_cast<int>(values)](state, block, ahead, first + tile * kDecodeRows);
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
  static constexpr DecodeInstructionSet set{HWY_AVX3,       bfloat16::LoadQuery, bfloat16::LoadBlock,
                                            bfloat16::Fold, bfloat16::Add,       true};
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
