// Decoding in bf16 on a tile unit, with the softmax and the packing in AVX-512 beside it.
//
// Scores are S^T = K Q^T: keys are read where they lie in the cache, queries are transposed once a chunk. Then the
// output gets weights times values, of which 32 columns are packed at a time. Pairs (query row, head) go in groups of
// 32: while the tile unit multiplies keys and one group, the vector unit turns the scores of the group before into
// weights; while it multiplies weights and some columns of the values, the next columns are packed. After each tile
// product comes a bit of that, and a few lines of the next block are asked for.
//
// Floor, in cycles per 64 keys of a latent cache of 576/512, a product of 16 x 16 x 32 taking 16:
//   128 pairs: 64 * 1088 * 128 products at 512 a cycle, 17,400. Between the products: stores of the outputs, 256 tiles
//     once every 256 keys, 1,300 at 20 each, or 3,600 at 57 where the first-level cache has lost their lines (rows that
//     lie 2 KiB apart fall into few of its sets); of the scores, 32 tiles, 600 to 1,800; a quarter of the softmax, that
//     of the last group, 1,400; transposing queries, 700 a block of 64 in the shortest chunks. In all 21,400 to 24,900.
//     Operands come half from the first and half from the second-level cache, 63 cycles for four tiles where four
//     products take 64. Beside the products: the rest of the softmax, 18 operations (9 of them multiplier's, which run
//     at one a cycle while the tile unit works) for each of 384 vectors in the 9,200 of the scores; packing, 1,024
//     permutations at two cycles in the 8,200 of the values.
//   1 to 16 pairs: scores 1,150; packing 2,100 of permutations, 3,500 where its lines come slowly from the second-level
//     cache, which hides the products with the values, 1,000; softmax 800; tiles of scores and outputs 400. In all
//     4,500 to 6,000, whatever the number of pairs. The 73.7 KB of the rows take 9,200 to 14,700 at 5 to 8 bytes a
//     cycle.
// Without tiles, vdpbf16ps takes two cycles on processors that have them: 4,400 a pair, and the packing. So tiles win
// on this shape from the first pair on. Their loss is greatest for one pair of few columns: at 128/128, 2,000 to 2,500
// for 1 to 16 pairs against 1,600 for one and 2,700 for two; but reading 32.8 KB takes 4,100 to 6,600. So where there
// are tiles, this decoder goes before that of AVX-512 BF16 for every shape.
//
// This file has been run on a tile unit in software only; nothing here is a measurement of it.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_DECODE_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_DECODE_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_DECODE_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_DECODE_AMX_INL_H_
#endif

#include <hwy/highway.h>
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cpu/decode_amx.h"
#include "kernels/cpu/decode_operands_amx-inl.h"
#include "kernels/cpu/decode_weights_amx-inl.h"
#include "kernels/cpu/product_amx-inl.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::amx {

// Folds one block into pairs [first, first + pairs).
template <class Tiles>
class TileFold {
  using Layout = DecodeTileLayout;

 public:
  TileFold(const DecodeState& state, const DecodeHeadBlock& block, const DecodeHeadBlock& next, int first, int pairs)
      : state_(state),
        block_(block),
        layout_(state),
        first_(first),
        pairs_(pairs),
        groups_((pairs + Layout::kPairs - 1) / Layout::kPairs),
        steps_((block.count + Layout::kStepKeys - 1) / Layout::kStepKeys),
        strips_(state.v_stride / Layout::kColumns),
        weigher_(state, block.count),
        packer_(state, block),
        ahead_(state, next, Turns()) {}

  void Run() {
    Pack(0, KeyProducts(0));
    for (int group = 0; group < groups_; ++group) {
      MultiplyKeys(group);
      FinishBeside();
      Weigh(group, group + 1 < groups_ ? KeyProducts(group + 1) : 1);
    }
    FinishBeside();
    for (int strip = 0; strip < strips_; ++strip) {
      if (strip + 1 < strips_) Pack(strip + 1, Tiles16(pairs_) * 2 * steps_);
      for (int group = 0; group < groups_; ++group) MultiplyValues(strip, group);
      FinishBeside();
    }
  }

 private:
  static constexpr int Tiles16(int rows) { return (rows + kTileRows - 1) / kTileRows; }
  int PairsOf(int group) const { return std::min(pairs_ - group * Layout::kPairs, Layout::kPairs); }
  int KeyProducts(int group) const {
    return Tiles16(block_.count) * Tiles16(PairsOf(group)) * (layout_.depth / kTileRows);
  }
  // Times that Ask is called: once for each product and each piece of what is done beside them.
  int64_t Turns() const {
    const int64_t tiles = Tiles16(pairs_);
    return tiles * Tiles16(block_.count) * (layout_.depth / kTileRows) + tiles * Weigher::Pieces(block_.count) +
           int64_t{strips_} * (tiles * 2 * steps_ + ValuePacker::Pieces(block_.count));
  }

  // Scores are [key][pair] in columns of whole tiles; of a group and the one before it.
  int ScoreStride(int group) const { return Tiles16(PairsOf(group)) * kTileRows; }
  float* Scores(int group) const {
    return state_.scratch + layout_.score + static_cast<size_t>(group % 2) * Layout::kKeys * Layout::kPairs;
  }
  uint32_t* Weights(int group) const {
    return ScratchPairs(state_, layout_.weight) + static_cast<size_t>(group) * Layout::kPairs * Layout::kKeys / 2;
  }
  uint32_t* Strip(int strip) const {
    return ScratchPairs(state_, layout_.value) + static_cast<size_t>(strip % 2) * Layout::kKeys / 2 * Layout::kColumns;
  }

  // What is done beside the next `products` products.
  void Weigh(int group, int products) {
    weigher_.Start(first_ + group * Layout::kPairs, PairsOf(group), Scores(group), ScoreStride(group), Weights(group));
    StartBeside(true, Tiles16(PairsOf(group)) * Weigher::Pieces(block_.count), products);
  }
  void Pack(int strip, int products) {
    packer_.Start(strip * Layout::kColumns, Strip(strip));
    StartBeside(false, ValuePacker::Pieces(block_.count), products);
  }
  void StartBeside(bool weighing, int pieces, int products) {
    weighing_ = weighing;
    pieces_ = left_ = pieces;
    products_ = products;
    credit_ = 0;
  }
  HWY_INLINE void Piece() {
    ahead_.Ask();
    if (weighing_) {
      weigher_.Piece();
    } else {
      packer_.Piece();
    }
    --left_;
  }
  // Called after each product: as many pieces as keep step with them.
  HWY_INLINE void Beside() {
    ahead_.Ask();
    if (left_ == 0) return;
    for (credit_ += pieces_; credit_ >= products_ && left_ > 0; credit_ -= products_) Piece();
  }
  void FinishBeside() {
    while (left_ > 0) Piece();
  }

  // Keys pass the first-level cache by: a group's queries stay there, 36 KiB at a width of 576.
  void MultiplyKeys(int group) {
    const uint32_t* const query = ScratchPairs(state_, layout_.query) + first_ + group * Layout::kPairs;
    const int stride = ScoreStride(group), query_stride = layout_.query_stride;
    float* score = Scores(group);
    for (int base = 0; base < block_.count; base += 2 * kTileRows, score += 2 * kTileRows * stride) {
      bool in_place;
      const KeyRows keys = KeysAt(state_, layout_, block_, base, &in_place);
      const auto multiply = [&]<int kM, int kN>() HWY_ATTR {
        MultiplyTiles<kM, kN, false, Once::kLeft>(
            tiles_, [=](int i) HWY_ATTR { return keys.first + i * kTileRows; }, keys.stride,
            [=](int i) HWY_ATTR { return query + static_cast<size_t>(i) * kTileRows * query_stride; }, query_stride,
            layout_.depth / kTileRows, score, stride, [this]() HWY_ATTR { Beside(); });
      };
      const bool two_keys = block_.count - base > kTileRows, two_pairs = stride > kTileRows;
      if (two_keys && two_pairs) {
        multiply.template operator()<2, 2>();
      } else if (two_keys) {
        multiply.template operator()<2, 1>();
      } else if (two_pairs) {
        multiply.template operator()<1, 2>();
      } else {
        multiply.template operator()<1, 1>();
      }
    }
  }

  void MultiplyValues(int strip, int group) {
    const int rows = PairsOf(group);
    if (rows > kTileRows) {
      MultiplyValueTiles<2>(strip, group, rows);
    } else {
      MultiplyValueTiles<1>(strip, group, rows);
    }
  }
  template <int kM>
  void MultiplyValueTiles(int strip, int group, int rows) {
    const uint32_t* const weights = Weights(group);
    const uint32_t* const value = Strip(strip);
    float* const output = state_.output + static_cast<size_t>(first_ + group * Layout::kPairs) * state_.v_stride +
                          static_cast<size_t>(strip) * Layout::kColumns;
    const auto left = [=](int i) HWY_ATTR { return weights + i * Layout::kPairs * kTileRows; };
    const auto right = [=](int i) HWY_ATTR { return value + i * kTileRows * Layout::kColumns; };
    const auto beside = [this]() HWY_ATTR { Beside(); };
    if (rows == kM * kTileRows) {
      MultiplyTiles<kM, 2, true, Once::kLeft>(tiles_, left, kTileRows, right, Layout::kColumns, steps_, output,
                                              state_.v_stride, beside);
      return;
    }
    // Rows behind the last pair's are another chunk's, which another thread may be working on.
    float* const sums = state_.scratch + layout_.staging;
    MultiplyTiles<kM, 2, false, Once::kLeft>(tiles_, left, kTileRows, right, Layout::kColumns, steps_, sums,
                                             Layout::kColumns, beside);
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < Layout::kColumns; c += bfloat16::kLanes) {
        float* const to = output + static_cast<size_t>(r) * state_.v_stride + c;
        _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_load_ps(sums + r * Layout::kColumns + c)));
      }
    }
  }

  const DecodeState& state_;
  const DecodeHeadBlock& block_;
  const DecodeTileLayout layout_;
  const int first_, pairs_, groups_, steps_, strips_;
  Tiles tiles_;
  Weigher weigher_;
  ValuePacker packer_;
  Ahead ahead_;
  bool weighing_ = false;
  int pieces_ = 0, left_ = 0, products_ = 1, credit_ = 0;
};

template <class Tiles>
void FoldOnTiles(const DecodeState& state, const DecodeBlock& block, const DecodeBlock& next, int head_pairs,
                 std::span<const DecodeRun> runs) {
  FoldHeadByHead(
      block, next, head_pairs, runs,
      [&](const DecodeHeadBlock& rows, const DecodeHeadBlock& /*following*/) HWY_ATTR { LoadKeys(state, rows); },
      [&](const DecodeHeadBlock& rows, const DecodeHeadBlock& following, int first, int count)
          HWY_ATTR { TileFold<Tiles>(state, rows, following, first, count).Run(); });
}
template <class Tiles>
void BeginTiles() {
  Tiles().Begin();
}
template <class Tiles>
void EndTiles() {
  Tiles().End();
}

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
