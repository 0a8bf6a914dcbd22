// The forward pass on a tile unit, with the softmax in AVX-512 beside it.
//
// A tile of work is 32 query rows against the 64 keys of a packed block. Three of them are in flight, each a stage
// behind the other, in one straight line of instructions: while the tile unit multiplies queries and keys of one and
// weights and values of another, the vector unit turns the scores of a third into weights, one row after each tile
// product. The out-of-order core runs both units at once. The line does not stop between row blocks or key blocks: it
// drains only where a row block would meet itself, because its reference score may change in one stage while another
// still adds to its output.
//
// Floor, in cycles per tile: 16 for each of (D + Dv) / 32 * 8 products, of operands that are in the first-level cache;
// the softmax beside takes about 7 multiplier operations per 16 scores, which run at one a cycle while the tile unit
// works: 128 vectors, 900 cycles, against 512 at widths of 64 and 1024 at 128. So the vector unit binds at 64 and the
// tile unit at 128. This file has been run on a tile unit in software only; nothing here is a measurement of it.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_ATTEND_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_ATTEND_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_ATTEND_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_ATTEND_AMX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "kernels/cpu/attend_bf16-inl.h"
#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/product_amx-inl.h"
#include "kernels/cpu/runner-inl.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::amx {

using bfloat16::kLanes;
using bfloat16::kPairs;
using bfloat16::PairsOf;

// See TaskRunner. Queries, keys and values take the places that ArenaLayout has for them, as pairs:
//   query  [pairs][depth]                along the width, padded with zeros to whole tiles
//   key    [depth][kKeyBlock]            along the width
//   value  [2][kPairs][v_stride]         of keys 16 apart, which is how two vectors of weights are rounded and joined
//   score  [2][kRows][kKeyBlock] scores, then [2][kRows][kPairs] weights
template <class Tiles>
class TileArithmetic {
 public:
  static constexpr int kRows = 2 * kTileRows;

  TileArithmetic(const AttendArgs& args, const Arena& arena)
      : args_(args),
        arena_(arena),
        depth_((PairsOf(args.query.width) + kTileRows - 1) / kTileRows * kTileRows),
        v_stride_(arena.layout.v_stride) {
    tiles_.Begin();
  }
  ~TileArithmetic() { tiles_.End(); }
  TileArithmetic(const TileArithmetic&) = delete;
  TileArithmetic& operator=(const TileArithmetic&) = delete;

  void LoadQuery(int pair, const void* row, float factor) {
    bfloat16::CopyQuery(row, args_.query.width, factor, depth_, Query(pair));
  }

  void LoadBlock(int64_t row, int count, int kv_head) {
    buffer_ ^= 1;
    // Tiles in flight still read the block before the last one.
    for (const Stage* stage : {&scored_, &weighed_}) {
      if (stage->active() && stage->buffer == buffer_) Drain();
    }
    bfloat16::PackTransposed(args_.key, row, count, kv_head, depth_, Key());
    const bfloat16::Interleaver interleave;
    finite_ = true;
    uint32_t* value = Value(buffer_);
    for (int j = 0; j < kPairs; ++j, value += v_stride_) {
      const int first = j / kTileRows * kGroup + j % kTileRows, second = first + kTileRows;
      finite_ &= bfloat16::PackTwoRows(interleave, first < count ? args_.value.At(row + first, kv_head) : nullptr,
                                       second < count ? args_.value.At(row + second, kv_head) : nullptr,
                                       args_.value.width, v_stride_, value);
    }
  }

  template <class Modify>
  void Fold(const TileBlock<kRows>& tile, float scale, const Modify* modify) {
    Stage stage;
    stage.first_pair = tile.first_pair;
    stage.vectors = (tile.end + kLanes - 1) / kLanes;
    stage.buffer = buffer_;
    stage.partial = tile.partial;
    stage.finite = finite_;
    stage.scale = scale;
    std::copy(tile.bits, tile.bits + kRows, stage.bits);
    if (modify != nullptr) {  // works on the whole tile, where Arena has its scores
      Drain();
      parity_ = 0;
    }
    if (scored_.first_pair == stage.first_pair || weighed_.first_pair == stage.first_pair) Drain();
    stage.parity = parity_;
    parity_ ^= 1;
    Advance(stage);
    if (modify != nullptr) {
      (*modify)();
      Drain();
    }
  }

  // Before accumulators are read.
  void Finish() { Drain(); }

 private:
  // A tile on its way: after Advance its scores are known, one Advance later its weights, and then its products.
  struct Stage {
    int first_pair = -1;  // none
    int vectors = 0;      // of 16 keys, the rest is hidden
    int buffer = 0;       // of values
    int parity = 0;       // of scores and weights
    bool partial = false;
    bool finite = true;
    float scale = 1.0f;
    uint64_t bits[kRows];
    bool active() const { return first_pair >= 0; }
  };

  uint32_t* At(size_t offset) const { return reinterpret_cast<uint32_t*>(arena_.data + offset); }
  uint32_t* Query(int pair) const { return At(arena_.layout.query) + static_cast<size_t>(pair) * depth_; }
  uint32_t* Key() const { return At(arena_.layout.key); }
  uint32_t* Value(int buffer) const {
    return At(arena_.layout.value) + static_cast<size_t>(buffer) * kPairs * v_stride_;
  }
  float* Scores(const Stage& stage) const { return arena_.Scores() + stage.parity * kRows * kKeyBlock; }
  uint32_t* Weights(const Stage& stage) const {
    return At(arena_.layout.score) + 2 * kRows * kKeyBlock + stage.parity * kRows * kPairs;
  }

  void Drain() {
    while (scored_.active() || weighed_.active()) Advance(Stage());
  }

  // One step of the line: scores of `next`, weights of the tile before, products with values of the one before that.
  void Advance(const Stage& next) {
    const int products = (next.active() ? 2 * next.vectors * (depth_ / kTileRows) : 0) +
                         (weighed_.active() ? 2 * ((weighed_.vectors + 1) / 2) * (v_stride_ / kTileRows) : 0);
    rows_ = scored_.active() ? kRows : 0;
    rows_left_ = rows_;
    products_ = std::max(1, products);
    credit_ = 0;
    if (next.active()) MultiplyKeys(next);
    if (weighed_.active()) MultiplyValues(weighed_);
    while (rows_left_ > 0) WeighRow(scored_, kRows - rows_left_--);
    weighed_ = scored_;
    scored_ = next;
  }

  // Called after each tile product: as many rows of the softmax as keep step with the products.
  HWY_INLINE void Beside() {
    for (credit_ += rows_; credit_ >= products_ && rows_left_ > 0; credit_ -= products_) {
      WeighRow(scored_, kRows - rows_left_--);
    }
  }

  void MultiplyKeys(const Stage& stage) {
    const uint32_t* const query = Query(stage.first_pair);
    int c = 0;
    const auto columns = [&]<int kColumns>() HWY_ATTR {
      const uint32_t* const key = Key() + c * kLanes;
      MultiplyTiles<2, kColumns, false>(
          tiles_, [=](int i) HWY_ATTR { return query + i * kTileRows; }, depth_,
          [=](int i) HWY_ATTR { return key + i * kTileRows * kKeyBlock; }, kKeyBlock, depth_ / kTileRows,
          Scores(stage) + c * kLanes, kKeyBlock, [this]() HWY_ATTR { Beside(); });
    };
    for (; c + 2 <= stage.vectors; c += 2) columns.template operator()<2>();
    if (c < stage.vectors) columns.template operator()<1>();
  }

  void MultiplyValues(const Stage& stage) {
    const uint32_t* const weights = Weights(stage);
    const uint32_t* const value = Value(stage.buffer);
    float* const output = arena_.Output(stage.first_pair);
    const int groups = (stage.vectors + 1) / 2;
    if (HWY_UNLIKELY(stage.partial && !stage.finite)) {
      for (int r = 0; r < kRows; ++r) {
        const uint64_t bits = stage.bits[r];
        const auto seen = [=](int half) HWY_ATTR {
          const int pair = half / 2;
          return (bits >> (pair / kTileRows * kGroup + pair % kTileRows + half % 2 * kTileRows) & 1) != 0;
        };
        bfloat16::AddSeenProduct(weights + r * kPairs, 1, seen, value, v_stride_, groups * kTileRows,
                                 output + r * v_stride_);
      }
      return;
    }
    int c = 0;
    const auto columns = [&]<int kColumns>() HWY_ATTR {
      const uint32_t* const rows = value + c;
      MultiplyTiles<2, kColumns, true>(
          tiles_, [=](int i) HWY_ATTR { return weights + i * kTileRows; }, kPairs,
          [=, this](int i) HWY_ATTR { return rows + static_cast<size_t>(i) * kTileRows * v_stride_; }, v_stride_,
          groups, output + c, v_stride_, [this]() HWY_ATTR { Beside(); });
    };
    for (; c + 2 * kLanes <= v_stride_; c += 2 * kLanes) columns.template operator()<2>();
    if (c < v_stride_) columns.template operator()<1>();
  }

  // Scores of one row to weights. As PairArithmetic::Softmax, for one row at a time.
  HWY_NOINLINE void WeighRow(const Stage& stage, int r) {
    float* const row = Scores(stage) + r * kKeyBlock;
    uint32_t* const weights = Weights(stage) + r * kPairs;
    const int pair = stage.first_pair + r;
    if (HWY_UNLIKELY(stage.partial)) MaskScores(stage.bits[r], stage.vectors * kLanes, row);
    __m512 largest = _mm512_load_ps(row);
    for (int c = 1; c < stage.vectors; ++c) largest = _mm512_max_ps(largest, _mm512_load_ps(row + c * kLanes));
    if (HWY_UNLIKELY(bfloat16::Above(arena_, pair, largest, _mm512_set1_ps(stage.scale)) != 0)) {
      bfloat16::Raise(arena_, pair, largest, stage.scale);
    }
    const __m512 factor = _mm512_set1_ps(stage.scale * kLog2E);
    const __m512 max = _mm512_set1_ps(bfloat16::InBase2(*arena_.Max(pair)));
    __m512 sum = _mm512_load_ps(arena_.Sum(pair));
    for (int c = 0; c < stage.vectors; c += 2) {
      const __m512 a = bfloat16::Exp2(_mm512_fmsub_ps(_mm512_load_ps(row + c * kLanes), factor, max));
      __m512 b = _mm512_setzero_ps();
      if (c + 1 < stage.vectors) {
        b = bfloat16::Exp2(_mm512_fmsub_ps(_mm512_load_ps(row + (c + 1) * kLanes), factor, max));
      }
      sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
      _mm512_store_si512(weights + c / 2 * kLanes, JoinPairs(a, b));
    }
    _mm512_store_ps(arena_.Sum(pair), sum);
  }

  const AttendArgs& args_;
  const Arena arena_;
  const int depth_;
  const int v_stride_;
  Tiles tiles_;
  Stage scored_, weighed_;
  int buffer_ = 0;
  int parity_ = 0;
  bool finite_ = true;
  // Of the step in hand.
  int rows_ = 0, rows_left_ = 0, products_ = 1, credit_ = 0;
};

template <class Tiles>
void RunTask(const AttendArgs& args, const Task& task, RowMask& mask, float* arena) {
  TaskRunner<TileArithmetic<Tiles>>(args, task, mask, arena).Run();
}

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
