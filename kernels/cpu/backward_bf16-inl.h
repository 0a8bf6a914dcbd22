// The backward pass in bf16 dot products: P and dS are rounded to bf16 before the products with them, sums are fp32.
//
// Floor, in cycles per (row, 16 keys) on a core that starts two vdpbf16ps a cycle: the five products take (3 D + 2 Dv)
// / 4, so 80 at widths of 64; P and dS take 3.5 in the same pipes (one fused multiply-add for the exponent, Exp2's
// five, one product) and their conversions about 1. That bounds the share of the dot product peak to 95 % at 64.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_BACKWARD_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BACKWARD_BF16_INL_H_
#undef TESSERA_KERNELS_CPU_BACKWARD_BF16_INL_H_
#else
#define TESSERA_KERNELS_CPU_BACKWARD_BF16_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/backward_runner-inl.h"
#include "kernels/cpu/bfloat16-inl.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::bfloat16 {

// See BackwardRunner. Operands take the places that BackwardLayout has for them, as pairs:
//   query, output_gradient   [pairs][stride / 2] along the width, then [pairs / 2][stride] of neighbouring rows
//   key_transposed           [PairsOf(qk_width)][kKeyBlock], value_transposed likewise
//   key                      [kPairs][qk_stride] of neighbouring rows
//   probability              [kPassRows / 2][kKeyBlock] of neighbouring rows; S of the tile in hand in fp32
//   score_gradient           the same of dS; dP in fp32, then dS [kRowBlock][kPairs] of neighbouring keys
class PairBackward {
 public:
  PairBackward(const AttendBackwardArgs& args, const BackwardArena& arena)
      : args_(args), arena_(arena), layout_(arena_.layout), pairs_(PairsIn(arena_.layout)) {}

  bool LoadPair(int pair, const void* query, const void* output_gradient) {
    return LoadRow(layout_.query, query, args_.query.width, layout_.qk_stride, pair) &
           LoadRow(layout_.output_gradient, output_gradient, args_.value.width, layout_.v_stride, pair);
  }

  void LoadBlock(int64_t row, int count, int kv_head) {
    PackTransposed(args_.key, row, count, kv_head, PairsOf(args_.key.width), At(layout_.key_transposed));
    PackTransposed(args_.value, row, count, kv_head, PairsOf(args_.value.width), At(layout_.value_transposed));
    keys_finite_ = PackRowPairs(args_.key, row, count, kv_head, layout_.qk_stride, At(layout_.key));
    PrefetchRows(args_.key, row + kKeyBlock, kv_head);
    PrefetchRows(args_.value, row + kKeyBlock, kv_head);
  }

  float* Scores(int) const { return arena_.data + layout_.probability + kPassPairs * kKeyBlock; }
  float* Gradients(int) const { return arena_.data + layout_.score_gradient + kPassPairs * kKeyBlock; }

  void Skip(int tile) {
    std::memset(OfTile(layout_.probability, tile), 0, kRowBlock / 2 * kKeyBlock * sizeof(uint32_t));
    std::memset(OfTile(layout_.score_gradient, tile), 0, kRowBlock / 2 * kKeyBlock * sizeof(uint32_t));
  }

  void Multiply(const BackwardTile& tile) {
    const int vectors = (tile.count + kLanes - 1) / kLanes;
    const int q_stride = layout_.qk_stride / 2, g_stride = layout_.v_stride / 2;
    Product<kRowBlock>(At(layout_.query) + static_cast<size_t>(tile.first_pair) * q_stride, 1, q_stride,
                       At(layout_.key_transposed), kKeyBlock, PairsOf(args_.query.width), vectors, Scores(0),
                       kKeyBlock);
    Product<kRowBlock>(At(layout_.output_gradient) + static_cast<size_t>(tile.first_pair) * g_stride, 1, g_stride,
                       At(layout_.value_transposed), kKeyBlock, PairsOf(args_.value.width), vectors, Gradients(0),
                       kKeyBlock);
  }

  void Differentiate(const BackwardTile& tile) {
    const __m512 factor = _mm512_set1_ps(args_.score.scale * kLog2E);
    const int count = (tile.count + kLanes - 1) / kLanes * kLanes;
    for (int r = 0; r < kRowBlock; ++r) {
      float* const scores = Scores(0) + r * kKeyBlock;
      float* const gradients = Gradients(0) + r * kKeyBlock;
      const __m512 lse = _mm512_set1_ps(arena_.data[layout_.lse + tile.first_pair + r] * kLog2E);
      const __m512 delta = _mm512_set1_ps(arena_.data[layout_.delta + tile.first_pair + r]);
#pragma GCC unroll 4
      for (int j = 0; j < count; j += kLanes) {
        const __m512 p = Exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + j), factor, lse));
        _mm512_store_ps(scores + j, p);
        _mm512_store_ps(gradients + j, _mm512_mul_ps(p, _mm512_sub_ps(_mm512_load_ps(gradients + j), delta)));
      }
    }
  }

  void AddToQueries(const BackwardTile& tile) {
    RoundRows(tile, Scores(0), OfTile(layout_.probability, tile.tile));
    RoundRows(tile, Gradients(0), OfTile(layout_.score_gradient, tile.tile));
    const auto* const gradient = reinterpret_cast<const uint32_t*>(Gradients(0));  // rounded in place
    float* const query_gradient = arena_.QueryGradient(tile.first_pair);
    if (HWY_LIKELY(keys_finite_ || !tile.partial)) {
      AddProduct<kRowBlock>(gradient, 1, kKeyBlock, At(layout_.key), layout_.qk_stride, PairsOf(tile.count),
                            query_gradient);
      return;
    }
    for (int r = 0; r < kRowBlock; ++r) {
      const uint64_t bits = tile.bits[r];
      AddSeenProduct(
          gradient + r * kKeyBlock, 1, [=](int j) HWY_ATTR { return (bits >> j & 1) != 0; }, At(layout_.key),
          layout_.qk_stride, PairsOf(tile.count), query_gradient + r * layout_.qk_stride);
    }
  }

  void AddToKeys(int first_pair, int row, int depth, const uint64_t* bits) {
    AddToKeys(At(layout_.probability) + row / 2 * kKeyBlock, bits,
              RowPairs(layout_.output_gradient, first_pair, layout_.v_stride), layout_.v_stride, depth / 2,
              arena_.ValueGradient(0));
    AddToKeys(At(layout_.score_gradient) + row / 2 * kKeyBlock, bits,
              RowPairs(layout_.query, first_pair, layout_.qk_stride), layout_.qk_stride, depth / 2,
              arena_.KeyGradient(0));
  }

 private:
  static constexpr int kPassPairs = kTilesPerPass * kRowBlock / 2;
  static_assert(kRowBlock % 2 == 0 && kPassPairs >= kRowBlock);

  static int PairsIn(const BackwardLayout& layout) {
    return static_cast<int>((layout.output_gradient - layout.query) / layout.qk_stride);
  }
  uint32_t* At(size_t offset) const {
    return reinterpret_cast<uint32_t*>(arena_.data + offset);
  }
  uint32_t* OfTile(size_t array, int tile) const {
    return At(array) + tile * (kRowBlock / 2) * kKeyBlock;
  }
  uint32_t* RowPairs(size_t array, int pair, int stride) const {
    return At(array) + static_cast<size_t>(pairs_) * (stride / 2) + static_cast<size_t>(pair / 2) * stride;
  }

  // Row `pair` along the width, and with its even neighbour as pairs of rows.
  bool LoadRow(size_t array, const void* row, int width, int stride, int pair) {
    uint32_t* const along = At(array) + static_cast<size_t>(pair) * (stride / 2);
    CopyRow(row, width, stride / 2, along);
    if (pair % 2 == 0) return true;
    return PackTwoRows(interleave_, along - stride / 2, along, stride, stride, RowPairs(array, pair, stride));
  }

  // Rounds a tile: its rows in place, as pairs of neighbouring keys, and `to` as pairs of neighbouring rows. Keys of
  // the last, unfinished vectors become zero.
  void RoundRows(const BackwardTile& tile, float* rows, uint32_t* to) const {
    const int count = (tile.count + kLanes - 1) / kLanes * kLanes;
    for (int r = 0; r < kRowBlock; r += 2) {
      float* const even = rows + r * kKeyBlock;
      float* const odd = even + kKeyBlock;
      uint32_t* const pairs = to + r / 2 * kKeyBlock;
#pragma GCC unroll 2
      for (int j = 0; j < kKeyBlock; j += 2 * kLanes) {
        const __m512i a = Round(even, j, count), b = Round(odd, j, count);
        _mm512_store_si512(even + j / 2, a);
        _mm512_store_si512(odd + j / 2, b);
        _mm512_store_si512(pairs + j, interleave_.Low(a, b));
        _mm512_store_si512(pairs + j + kLanes, interleave_.High(a, b));
      }
    }
  }
  static HWY_INLINE __m512i Round(const float* row, int j, int count) {
    const __m512 low = j < count ? _mm512_load_ps(row + j) : _mm512_setzero_ps();
    const __m512 high = j + kLanes < count ? _mm512_load_ps(row + j + kLanes) : _mm512_setzero_ps();
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  }

  // output[j] += sum over `depth` pairs of rows of left[pair][j] * right[pair], for every key j of the block.
  static void AddToKeys(const uint32_t* left, const uint64_t* bits, const uint32_t* right, int stride, int depth,
                        float* output) {
    if (HWY_UNLIKELY(bits != nullptr)) {
      for (int j = 0; j < kKeyBlock; ++j) {
        AddSeenProduct(
            left + j, kKeyBlock, [=](int i) HWY_ATTR { return (bits[i] >> j & 1) != 0; }, right, stride, depth,
            output + j * stride);
      }
      return;
    }
    constexpr int kRest = kKeyBlock % kRowBlock;
    for (int j = 0; j + kRowBlock <= kKeyBlock; j += kRowBlock) {
      AddProduct<kRowBlock>(left + j, kKeyBlock, 1, right, stride, depth, output + j * stride);
    }
    constexpr int kLast = kKeyBlock - kRest;
    AddProduct<kRest>(left + kLast, kKeyBlock, 1, right, stride, depth, output + kLast * stride);
  }

  const AttendBackwardArgs& args_;
  const BackwardArena arena_;
  const BackwardLayout& layout_;
  const int pairs_;  // rows of the arrays, padding included
  const Interleaver interleave_;
  bool keys_finite_ = true;
};

inline void RunBackwardTask(const AttendBackwardArgs& args, const BackwardTask& task, RowMask& mask, float* arena) {
  BackwardRunner<PairBackward>(args, task, mask, arena).Run();
}

}  // namespace tessera::cpu::HWY_NAMESPACE::bfloat16
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
