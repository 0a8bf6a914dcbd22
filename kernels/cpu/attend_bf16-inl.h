// The forward pass in bf16 dot products: twice the arithmetic of fp32 per instruction, sums in fp32, weights rounded to
// bf16 before they meet the values.
//
// Floor, in cycles per (row, 16 keys) on a core that starts two vdpbf16ps a cycle (Zen 5): products of (D + Dv) / 2 /
// 2, so 32 at widths of 64 and 64 at 128; the softmax adds 3 (one fused multiply-add for the exponent, Exp2's five, at
// two a cycle; maxima, sums, rounding and shifts run in other pipes). That bounds the share of the dot product peak to
// 91 % and 96 %. What is above it: loads and stores of a tile's 24 sums around each product (about 24 cycles of 384),
// filling and draining the pipes between the phases of a tile, packing (1 to 2 %), and half of every block on the
// diagonal.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_ATTEND_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_ATTEND_BF16_INL_H_
#undef TESSERA_KERNELS_CPU_ATTEND_BF16_INL_H_
#else
#define TESSERA_KERNELS_CPU_ATTEND_BF16_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/runner-inl.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::bfloat16 {

// A query row of `width` halves times `factor`, -1, 0 or 1, as `stride` pairs; null is a row of zeros.
HWY_INLINE void CopyQuery(const void* row, int width, float factor, int stride, uint32_t* to) {
  CopyRow(row, width, stride, to);
  if (factor == 1.0f) return;
  auto* const halves = reinterpret_cast<uint16_t*>(to);
  for (int i = 0; i < width; ++i) halves[i] = BFloat16FromFloat(factor * FloatFromBFloat16(halves[i]));
}

// The reference score of the exponentials, in base 2. It need not be `max` to the last bit: weights of all keys have it
// alike, and the LSE knows no more than its rounding. Finite for kNoMax too.
HWY_INLINE float InBase2(float max) {
  return std::max(max * kLog2E, kNoMax);
}

// Lanes whose score, times `scale`, passes the reference score by more than its slack.
HWY_INLINE __mmask16 Above(const Arena& arena, int pair, __m512 largest, __m512 scale) {
  const __m512 above = _mm512_fmsub_ps(largest, scale, _mm512_set1_ps(*arena.Max(pair)));
  return _mm512_cmp_ps_mask(above, _mm512_set1_ps(kMaxSlack), _CMP_GT_OQ);
}

// Makes the largest lane, times `scale`, the reference score.
inline HWY_NOINLINE void Raise(const Arena& arena, int pair, __m512 largest, float scale) {
  const float raised = _mm512_reduce_max_ps(largest) * scale;
  float* const max = arena.Max(pair);
  Rescale(std::exp2(InBase2(*max) - InBase2(raised)), arena.layout.v_stride, arena.Sum(pair), arena.Output(pair));
  *max = raised;
}

// See TaskRunner. Queries, keys and values take the places that ArenaLayout has for them, as pairs:
//   query [pairs][PairsOf(qk_width)], key [PairsOf(qk_width)][kKeyBlock], value [kPairs][v_stride].
class PairArithmetic {
 public:
  static constexpr int kRows = kRowBlock;

  PairArithmetic(const AttendArgs& args, const Arena& arena)
      : args_(args), arena_(arena), depth_(PairsOf(args.query.width)) {}

  void LoadQuery(int pair, const void* row, float factor) {
    CopyQuery(row, args_.query.width, factor, depth_, Query(pair));
  }

  void LoadBlock(int64_t row, int count, int kv_head) {
    PackTransposed(args_.key, row, count, kv_head, depth_, At(arena_.layout.key));
    finite_ = PackRowPairs(args_.value, row, count, kv_head, arena_.layout.v_stride, At(arena_.layout.value));
    PrefetchRows(args_.key, row + kKeyBlock, kv_head);
    PrefetchRows(args_.value, row + kKeyBlock, kv_head);
  }

  template <class Modify>
  void Fold(const TileBlock<kRows>& tile, float scale, const Modify* modify) {
    const int begin = modify != nullptr ? 0 : tile.begin / kLanes;
    const int vectors = (tile.end + kLanes - 1) / kLanes - begin;
    float* const scores = arena_.Scores() + begin * kLanes;
    Product<kRowBlock>(Query(tile.first_pair), 1, depth_, At(arena_.layout.key) + begin * kLanes, kKeyBlock, depth_,
                       vectors, scores, kKeyBlock);
    if (modify != nullptr) (*modify)();
    if (HWY_UNLIKELY(tile.partial)) {
      for (int r = 0; r < kRowBlock; ++r) {
        MaskScores(tile.bits[r] >> (begin * kLanes), vectors * kLanes, scores + r * kKeyBlock);
      }
    }
    ForColumns(vectors, [&]<int kVectors>(int) HWY_ATTR { Softmax<kVectors>(scores, scale, tile.first_pair); });
    const auto* const weights = reinterpret_cast<const uint32_t*>(scores);
    const int v_stride = arena_.layout.v_stride;
    const uint32_t* const value = At(arena_.layout.value) + begin * (kLanes / 2) * v_stride;
    const int pairs = PairsOf(tile.end - begin * kLanes);
    float* const output = arena_.Output(tile.first_pair);
    if (HWY_LIKELY(finite_ || !tile.partial)) {
      AddProduct<kRowBlock>(weights, 1, kKeyBlock, value, v_stride, pairs, output);
      return;
    }
    for (int r = 0; r < kRowBlock; ++r) {
      const uint64_t bits = tile.bits[r] >> (begin * kLanes);
      AddSeenProduct(
          weights + r * kKeyBlock, 1, [=](int j) HWY_ATTR { return (bits >> j & 1) != 0; }, value, v_stride, pairs,
          output + r * v_stride);
    }
  }

  void Finish() {}

 private:
  uint32_t* At(size_t offset) const { return reinterpret_cast<uint32_t*>(arena_.data + offset); }
  uint32_t* Query(int pair) const { return At(arena_.layout.query) + static_cast<size_t>(pair) * depth_; }

  // As SoftmaxRow of softmax-inl.h for the rows of a tile at once, which hides each one's latencies behind the others.
  // Leaves the weights as pairs of bf16 in the first half of a row, behind what is still to be read.
  template <int kVectors>
  HWY_INLINE void Softmax(float* scores, float scale, int first_pair) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 largest[kRowBlock];
    __mmask16 any = 0;
#pragma GCC unroll 6
    for (int r = 0; r < kRowBlock; ++r) {
      largest[r] = _mm512_load_ps(scores + r * kKeyBlock);
#pragma GCC unroll 4
      for (int c = 1; c < kVectors; ++c) {
        largest[r] = _mm512_max_ps(largest[r], _mm512_load_ps(scores + r * kKeyBlock + c * kLanes));
      }
      any |= Above(arena_, first_pair + r, largest[r], factor);
    }
    if (HWY_UNLIKELY(any != 0)) {
      for (int r = 0; r < kRowBlock; ++r) {
        if (Above(arena_, first_pair + r, largest[r], factor) != 0) Raise(arena_, first_pair + r, largest[r], scale);
      }
    }
    const __m512 factor2 = _mm512_set1_ps(scale * kLog2E);
#pragma GCC unroll 6
    for (int r = 0; r < kRowBlock; ++r) {
      float* const row = scores + r * kKeyBlock;
      const __m512 max2 = _mm512_set1_ps(InBase2(*arena_.Max(first_pair + r)));
      float* const sums = arena_.Sum(first_pair + r);
      __m512 sum = _mm512_load_ps(sums);
      __m512 weight[4] = {};
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; ++c) {
        weight[c] = Exp2(_mm512_fmsub_ps(_mm512_load_ps(row + c * kLanes), factor2, max2));
        sum = _mm512_add_ps(sum, weight[c]);
      }
#pragma GCC unroll 2
      for (int c = 0; c < kVectors; c += 2) {
        _mm512_store_si512(row + c * kLanes / 2,
                           reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(weight[c + 1], weight[c])));
      }
      _mm512_store_ps(sums, sum);
    }
  }

  const AttendArgs& args_;
  const Arena arena_;
  const int depth_;
  bool finite_ = true;
};

inline void RunTask(const AttendArgs& args, const Task& task, RowMask& mask, float* arena) {
  TaskRunner<PairArithmetic>(args, task, mask, arena).Run();
}

}  // namespace tessera::cpu::HWY_NAMESPACE::bfloat16
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
